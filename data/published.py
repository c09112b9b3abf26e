"""Published data sets: from the files of their hub repositories to the layouts that loading reads. (no torch)"""

import json
import random
import re
from pathlib import Path

from data.arguments import UserError
from data.files import write_json_lines, write_text
from data.tasks import BUILT_IN_TASKS, GOEMOTIONS_EKMAN, GOEMOTIONS_GROUP

# split -> where the hub repository has it, and how many rows it must have
SPLITS = {
    "goemotions": {
        "train": ("simplified/train-*.parquet", 43_410),
        "dev": ("simplified/validation-*.parquet", 5_426),
        "test": ("simplified/test-*.parquet", 5_427),
    },
    "sst2": {"train": ("train.jsonl", 6_920), "dev": ("dev.jsonl", 872), "test": ("test.jsonl", 1_821)},
    "r8": {"train": ("train.json", 5_485), "test": ("test.json", 2_189)},
    "chnsenticorp": {
        "train": ("data/train-*.parquet", 9_600),
        "dev": ("data/validation-*.parquet", 1_200),
        "test": ("data/test-*.parquet", 1_200),
    },
    "emotion": {
        "train": ("split/train-*.parquet", 16_000),
        "val": ("split/validation-*.parquet", 2_000),
        "test": ("split/test-*.parquet", 2_000),
    },
}
# one line of a single-label data set -> file ending, header, the line, labels in the order of the hub's ids
LAYOUTS = {
    "sst2": ("tsv", "", "{text}\t{id}", ("Negative", "Positive")),
    "r8": ("txt", "", "{label}\t{text}", ("acq", "crude", "earn", "grain", "interest", "money-fx", "ship", "trade")),
    "chnsenticorp": ("tsv", "label\ttext_a\n", "{id}\t{text}", ("负面", "正面")),
    "emotion": ("txt", "", "{text};{label}", ("sadness", "joy", "love", "anger", "fear", "surprise")),
}
CHN_REVIEWS_LINES = {"neg.txt": 18_576, "pos.txt": 16_548}  # of label 0, of label 1


def read_rows(path: Path) -> list[dict]:
    """Rows of a Parquet file, a JSON array or a JSON Lines file."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.ParquetFile(path).read().to_pylist()
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.split("\n") if line.strip()]


def read_split(name: str, split: str, folder: Path) -> list[dict]:
    """Rows of one split, checked in number; a tab or line break in a text becomes a space.

    Raises:
        UserError: the number of rows is not the one in SPLITS, or there is no column of texts or labels.
    """
    pattern, expected = SPLITS[name][split]
    paths = sorted(folder.glob(pattern))
    rows = [row for path in paths for row in read_rows(path)]
    where = f"{name}: {', '.join(path.relative_to(folder).as_posix() for path in paths)}"
    if len(rows) != expected:
        raise UserError(f"{where}: found {len(rows):,} rows, expected {expected:,}")
    columns = {"text", "labels", "id"} if name == "goemotions" else {"text", "label"}
    if any(not columns <= row.keys() for row in rows):
        raise UserError(f"{where}: found columns {', '.join(rows[0])}, expected {', '.join(sorted(columns))}")
    broken = 0
    for row in rows:
        text = re.sub(r"[\t\r\n]+", " ", row["text"])
        broken += text != row["text"]
        row["text"] = text
    note = f"; in {broken:,} texts a tab or line break became a space" if broken else ""
    print(f"{name}: {split} has {len(rows):,} rows{note}")
    return rows


def label_of(name: str, labels: tuple[str, ...], number: int) -> str:
    """The label that has this id on the hub."""
    if number not in range(len(labels)):
        raise UserError(f"{name}: a row has label {number!r}, expected 0 to {len(labels) - 1}")
    return labels[number]


def write_labels(folder: Path, task: str) -> None:
    """`labels.txt`: one label a line, line number = id."""
    write_text(folder / "labels.txt", "".join(f"{label}\n" for label in BUILT_IN_TASKS[task].labels))


def convert_goemotions(raw: Path, ready: Path) -> None:
    """`{original,ekman,group}/{train,dev,test}.tsv`: text, ids joined by commas, comment id."""
    names = BUILT_IN_TASKS["goemotions-original"].labels
    taxonomies = {"original": {name: name for name in names}, "ekman": GOEMOTIONS_EKMAN, "group": GOEMOTIONS_GROUP}
    for split in SPLITS["goemotions"]:
        rows = read_split("goemotions", split, raw)
        gold = [[label_of("goemotions", names, number) for number in row["labels"]] for row in rows]
        for taxonomy, coarser in taxonomies.items():
            ids = BUILT_IN_TASKS[f"goemotions-{taxonomy}"].ids
            numbers = [sorted({ids[coarser[label]] for label in labels}) for labels in gold]
            lines = [
                f"{row['text']}\t{','.join(map(str, own))}\t{row['id']}\n"
                for row, own in zip(rows, numbers, strict=True)
            ]
            write_text(ready / taxonomy / f"{split}.tsv", "".join(lines))
    for taxonomy in taxonomies:
        write_labels(ready / taxonomy, f"goemotions-{taxonomy}")


def convert_single_label(name: str, raw: Path, ready: Path) -> None:
    """One file a split, in the layout that LAYOUTS states."""
    ending, header, layout, labels = LAYOUTS[name]
    for split in SPLITS[name]:
        lines = [
            layout.format(text=row["text"], id=row["label"], label=label_of(name, labels, row["label"]))
            for row in read_split(name, split, raw)
        ]
        write_text(ready / f"{split}.{ending}", header + "".join(f"{line}\n" for line in lines))
    write_labels(ready, name)


def convert_chn_reviews(raw: Path, ready: Path) -> None:
    """`{train,dev,test}.jsonl`: 80, 10 and 10 % of each label, shuffled with a fixed seed.

    Nearly every review stands in the source twice. Each is kept once, so that none is in two splits; one that has
    both labels is dropped. Three out of four are sentences of ChnSentiCorp, of all its splits: do not train on these
    and test on those.
    """
    found: dict[str, set[int]] = {}
    for label, (name, expected) in enumerate(CHN_REVIEWS_LINES.items()):
        lines = (raw / name).read_text(encoding="utf-8").removesuffix("\n").split("\n")
        if len(lines) != expected:
            raise UserError(f"chn-reviews: {name}: found {len(lines):,} lines, expected {expected:,}")
        for line in lines:
            found.setdefault(line.strip(), set()).add(label)
    found.pop("", None)
    both = sum(len(labels) > 1 for labels in found.values())
    print(f"chn-reviews: {sum(CHN_REVIEWS_LINES.values()):,} lines hold {len(found):,} different reviews", end="; ")
    print(f"{both} of them have both labels and are dropped")
    order = random.Random(0)
    splits: dict[str, list[dict]] = {"dev": [], "test": [], "train": []}
    for label in (0, 1):
        rows = [{"text": text, "label": label} for text, labels in found.items() if labels == {label}]
        order.shuffle(rows)
        tenth = len(rows) // 10
        for split, part in zip(splits, (rows[:tenth], rows[tenth : 2 * tenth], rows[2 * tenth :]), strict=True):
            splits[split] += part
    for split, rows in splits.items():
        order.shuffle(rows)
        write_json_lines(ready / f"{split}.jsonl", rows)
        print(f"chn-reviews: {split} has {len(rows):,} rows, {sum(row['label'] for row in rows):,} of them positive")
    write_labels(ready, "chnsenticorp")

"""Put together what several machines predicted (`inference.py --shard i/n`), and score it.

    python -m scripts.gather --output_dir outputs/sft/test --model_path outputs/sft

Writes predictions.jsonl, and where the rows have gold labels test_results.json and test_summary.txt, as one machine
would have. The parts stay.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.arguments import UserError, flag, run
from data.contract import contract_for
from data.engine.models import check_model_path
from data.files import PREDICTIONS_FILE, exclusive, file_hash, read_json
from data.prediction_files import PART_NAME, different_settings, new_predictions, remove_results, write_results
from data.prediction_rows import Cuts, rows_of
from data.tasks import Task

SETTINGS = {"flags": dict, "files": dict, "rows": int, "first_row": int, "last_row": int, "sha256": str}


@dataclass
class Args:
    output_dir: str | None = flag(None, "the folder with the parts")
    model_path: str | None = flag(None, "the model that predicted them")
    task: str | None = flag(None, "of an untuned model: its task")
    label_path: str | None = flag(None, "of an untuned model: its labels.txt")
    allow_none: bool | None = flag(None, "of an untuned model: it may also answer that none of the labels applies")
    seed: int = flag(42, "seed, noted in the results")

    def __post_init__(self):
        for name in ("output_dir", "model_path"):
            if getattr(self, name) is None:
                raise UserError(f"--{name} is needed")


def find_parts(folder: Path) -> list[Path]:
    """The files of all parts, in order.

    Raises:
        UserError: there are none, some miss, or they are parts of different wholes.
    """
    pattern = re.compile(PART_NAME.format(i=r"(\d{5})", n=r"(\d{5})").replace(".", r"\."))
    found = {match.groups(): path for path in folder.glob("*") if (match := pattern.fullmatch(path.name))}
    counts = sorted({count for _, count in found})
    if not counts:
        raise UserError(f"--output_dir {folder}: no parts such as {PART_NAME.format(i='00001', n='00008')} in it")
    if len(counts) > 1:
        raise UserError(f"--output_dir {folder}: parts of {' and of '.join(str(int(count)) for count in counts)}")
    wanted = [(f"{i:05}", counts[0]) for i in range(1, int(counts[0]) + 1)]
    missing = [int(i) for i, n in wanted if (i, n) not in found]
    if missing:
        listed = ", ".join(map(str, missing))
        raise UserError(f"--output_dir {folder}: part {listed} of {int(counts[0])} is not there yet")
    return [found[part] for part in wanted]


def check_parts(parts: Sequence[Path], task: Task) -> None:
    """Raise a `UserError` naming the first part that is not whole, or does not belong to the same whole as the others.

    What a part is of stands beside it. One of an earlier EmoTune has nothing beside it: its rows are read and counted.
    """
    beside = [read_json(path.with_suffix(".json"), missing_ok=True, fields=SETTINGS) for path in parts]
    known = [(path, settings) for path, settings in zip(parts, beside, strict=True) if "flags" in settings]
    for path, settings in known[1:]:
        first, of_first = known[0]
        difference = different_settings(of_first, settings, first.name)
        if difference or settings.get("rows") != of_first.get("rows"):
            raise UserError(f"{path}: is of other predictions than {first.name}: {difference or 'of another file'}")
    for path, settings in zip(parts, beside, strict=True):
        if settings and settings.get("sha256") != file_hash(path):
            raise UserError(
                f"{path}: is not what was predicted: its SHA-256 is not that in {path.with_suffix('.json')}"
            )
    counts = [
        settings["last_row"] - settings["first_row"] + 1
        if settings.keys() >= SETTINGS.keys() else sum(1 for _ in rows_of(path, task))
        for path, settings in zip(parts, beside, strict=True)
    ]  # fmt: skip
    total = known[0][1].get("rows", sum(counts)) if known else sum(counts)
    for i, (path, count) in enumerate(zip(parts, counts, strict=True)):
        wanted = total * (i + 1) // len(parts) - total * i // len(parts)
        if count != wanted:
            raise UserError(
                f"{path}: has {count:,} rows, but part {i + 1} of {len(parts)} of {total:,} rows has {wanted:,}"
            )


def main(args: Args) -> None:
    check_model_path(args.model_path)
    contract = contract_for(args.model_path, args.task, args.label_path, allow_none=args.allow_none)
    folder = Path(args.output_dir)
    parts = find_parts(folder)
    cuts = Cuts(contract.max_length, contract.task.what_is_lost)
    with exclusive(folder, PREDICTIONS_FILE):
        check_parts(parts, contract.task)
        rows = (row for part in parts for row in rows_of(part, contract.task))
        with new_predictions(folder, rows) as written:
            measured = contract.task.measure(cuts.counted(written), contract)
            results = measured | {"parts": len(parts), "seed": args.seed}
            if len(measured) > 1:  # more than their number
                print(write_results(folder, results, f"task {contract.task.name}", contract.task))
            else:
                remove_results(folder)
    print(f"{folder / PREDICTIONS_FILE}: {results['n']} rows of {len(parts)} parts")
    cuts.say()


if __name__ == "__main__":
    run(main, Args, {})

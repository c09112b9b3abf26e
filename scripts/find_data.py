"""What a launcher gives main_SFT.py for a data set, one flag or value a line: model, task and files, all looked for.

    python -m scripts.find_data --name sst2                    # models/Qwen2.5-7B-Instruct, data/sst2, outputs/sst2
    python -m scripts.find_data --name goemotions/group --model models/minilm-l6
    python -m scripts.find_data --name psyqa                   # counselling cases, a folder for each split
    python -m scripts.find_data --name mine --own --model models/minilm-l6 --folder data/mine --output_dir outputs/mine

scripts/train_task.sh and train.sh call it; the names, and what is not given, come from the table in data/published.py.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from data.arguments import UserError, flag, run
from data.published import DATA_SETS, DataSet
from data.summaries.psyqa import FILE_NAME
from data.tasks import BUILT_IN_TASKS
from download import KNOWN

ENDINGS = ("tsv", "txt", "csv", "json", "jsonl", "parquet")
# folder in models/ -> what download.py calls it
MODELS = {each.model.rpartition("/")[2]: each.model for each in DATA_SETS.values()}
MODELS |= {name: name for name, item in KNOWN.items() if item.kind == "model"}
TO_TRAIN_ON = [each for each in DATA_SETS.values() if not each.test_only]
FOLDERS = {f"{each.name}/{folder}".rstrip("/"): each for each in TO_TRAIN_ON for folder in each.tasks}


@dataclass
class Args:
    name: str = flag("", f"data set: {', '.join(FOLDERS)}; or, with --own, the name of another")
    model: str = flag("", "model to train (default: the data set's own, in models/)")
    folder: str = flag("", "where its files are (default: data/NAME)")
    output_dir: str = flag("", "where the run goes (default: outputs/NAME)")
    own: bool = flag(False, "take a name that is not in the table; the other flags are needed then")

    def __post_init__(self):
        data_set = DATA_SETS.get(self.name.partition("/")[0])
        if data_set and data_set.test_only:
            files = ", ".join(data_set.cases)
            raise UserError(
                f"{self.name}: has only {files}, nothing to train on; psyqa has counselling cases to train on"
            )
        if self.name in FOLDERS:
            self.model = self.model or f"models/{FOLDERS[self.name].model.rpartition('/')[2]}"
            self.folder = self.folder or f"data/{self.name}"
            self.output_dir = self.output_dir or f"outputs/{self.name.replace('/', '-')}"
        elif not self.own:
            raise UserError(f"{self.name or 'no data set'}: unknown; known data sets are {', '.join(FOLDERS)}")
        for name in ("name", "model", "folder", "output_dir"):
            value = getattr(self, name)
            if not value:
                raise UserError(f"--{name} is needed")
            if len(value.splitlines()) > 1 or value != value.strip("\r\n"):  # each value is to be a line of its own
                raise UserError(f"--{name} {value!r}: holds a line break")


def download_command(kind: str, name: str, folder: str) -> str:
    """The end of a message that says what is missing: the command that gets it."""
    default = f"data/{name}" if kind == "dataset" else f"models/{name.rpartition('/')[2]}"
    target = f" --target_dir {folder}" if folder != default else ""
    return f"get it with: python download.py --{kind} {name}{target}"


def check_model(model: str) -> None:
    """Raise a `UserError` where a model is meant as a folder and is none; a hub id is left to main_SFT.py."""
    as_folder = re.match(r"[./~]|models/|outputs/|[^/]*/[^/]*/", model)
    if Path(model).is_dir() or not as_folder:
        return
    folder = model.rpartition("/")[2]
    name = MODELS.get(folder) or (f"Qwen/{folder}" if folder.startswith("Qwen") else None)
    hint = f"; {download_command('model', name, model)}" if name else ""
    raise UserError(f"MODEL={model}: no such folder{hint}")


def split_file(folder: Path, *splits: str) -> Path | None:
    """The first file there is of a split, in whatever format: (data/emotion, "dev", "val") -> data/emotion/val.txt."""
    names = (name for split in splits for name in (*(f"{split}.{e}" for e in ENDINGS), f"{split}/{FILE_NAME}"))
    return next((folder / name for name in names if (folder / name).is_file()), None)


def task_flags(name: str, data_set: DataSet | None, folder: str) -> list[str] | None:
    """The flags that name a data set's task; None where the name is no task, and there is no labels.txt."""
    task = data_set.tasks.get(name.partition("/")[2]) if data_set else None
    if task and not task.labels:
        return ["--task", task.kind]  # asks in the language of the files
    if name in BUILT_IN_TASKS:
        return ["--task", name]
    return ["--label_path", f"{folder}/labels.txt"] if Path(folder, "labels.txt").is_file() else None


def data_flags(name: str, folder: str) -> list[str]:
    """The flags that name a data set's task and files.

    Raises:
        UserError: there is nothing to train on, nothing to score, or no labels.txt where the name is no task.
    """
    data_set = DATA_SETS.get(name.partition("/")[0])
    above = folder.removesuffix(name.partition("/")[1] + name.partition("/")[2])
    hint = f"; {download_command('dataset', data_set.name, above)}" if data_set else ""
    path = Path(folder)
    train, test = split_file(path, "train"), split_file(path, "test")
    dev = split_file(path, "dev", "val", "validation")
    if train is None:
        expected = "train.tsv, .txt, .csv, .json, .jsonl or .parquet"
        expected = f"train/{FILE_NAME}" if data_set and data_set.questions else expected
        raise UserError(f"{folder}: no train file ({expected}) there{hint}")
    if test is None:  # scored on dev, which then must not choose the checkpoint: main_SFT.py splits train
        test, dev = dev, None
    if test is None:
        raise UserError(f"{folder}: neither a test nor a dev file there, so nothing to score{hint}")
    task = task_flags(name, data_set, folder)
    if task is None:
        raise UserError(f"{folder}: no labels.txt there{hint}")
    flags = [*task, "--train_data_path", str(train), "--test_data_path", str(test)]
    return [*flags, "--dev_data_path", str(dev)] if dev else flags


def main(args: Args) -> None:
    """Print the flags, once everything they name is found."""
    model = args.model.removesuffix("/")
    check_model(model)
    flags = ["--model_path", model, *data_flags(args.name, args.folder), "--output_dir", args.output_dir]
    print("\n".join(flags))


if __name__ == "__main__":
    run(main, Args, {})

"""Put together what several machines predicted (`inference.py --shard i/n`), and score it.

    python -m scripts.gather --output_dir outputs/sft/test --model_path outputs/sft

Writes predictions.jsonl, and where the rows have gold labels test_results.json and test_summary.txt, as one machine
would have. The parts stay.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from data.arguments import UserError, flag, run
from data.contract import contract_for
from data.engine.models import check_model_path
from data.files import PREDICTIONS_FILE, write_json_lines
from data.prediction_files import PART_NAME, measure, remove_results, rows_of, write_results


@dataclass
class Args:
    output_dir: str | None = flag(None, "the folder with the parts")
    model_path: str | None = flag(None, "the model that predicted them")
    task: str | None = flag(None, "of an untuned model: its task")
    label_path: str | None = flag(None, "of an untuned model: its labels.txt")
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


def main(args: Args) -> None:
    check_model_path(args.model_path)
    contract = contract_for(args.model_path, args.task, args.label_path)
    folder = Path(args.output_dir)
    parts = find_parts(folder)
    remove_results(folder)
    write_json_lines(folder / PREDICTIONS_FILE, (row for part in parts for row in rows_of(part)))
    results = measure(rows_of(folder / PREDICTIONS_FILE), contract) | {"parts": len(parts), "seed": args.seed}
    print(f"{folder / PREDICTIONS_FILE}: {results['n']} rows of {len(parts)} parts")
    if "accuracy" in results:
        print(write_results(folder, results, f"task {contract.task.name}"))


if __name__ == "__main__":
    run(main, Args, {})

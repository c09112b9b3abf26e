"""Calibrate a finished run or a merged model on labelled rows that it was not trained on; task.json keeps it.

    # temperature and thresholds; a promise that is there already is made anew
    python -m scripts.calibrate --model_path outputs/sft --dev_data_path fresh.tsv

    # sets of labels that hold 90 % of the right ones, for inference.py --coverage 0.9
    python -m scripts.calibrate --model_path outputs/merged --dev_data_path fresh.tsv --coverage 0.9

Training does so by itself on its validation rows (main_SFT.py --coverage 0.9). These have chosen the checkpoint, too,
which makes a promise slightly too good; on fresh rows it is clean. Nothing but task.json and calibration.json changes,
each of which is replaced whole.
"""

from dataclasses import dataclass
from pathlib import Path

from data.arguments import UserError, check_at_least, flag, run
from data.conformal import LEVELS, check_rows
from data.contract import Contract, Precision
from data.engine.evaluation import calibrate_run, say_promise
from data.engine.models import check_model_path
from data.files import TASK_FILE, exclusive, file_hash
from data.loading import load_examples
from data.tasks import check_has_labels

SHOWN = ("ece", "brier", "f1_macro")


@dataclass
class Args:
    model_path: str | None = flag(None, "a run, or a merged model")
    dev_data_path: str | None = flag(None, "labelled rows to calibrate on, none of which it was trained on")
    coverage: float | None = flag(
        None, "promise sets of labels that hold this share of the right ones, such as 0.9 (default: what it promises "
        "already, if anything)",
    )  # fmt: skip
    batch_size: int = flag(64, "texts a batch")
    precision: Precision = flag(
        "auto", "number format of the weights; auto = bf16 or fp32, whichever is faster by measure; on a GPU "
        "bf16, or fp16 where it has no bf16",
    )  # fmt: skip
    device: str | None = flag(None, "cpu, cuda, cuda:1, mps ... (default: the first GPU, else the CPU)")

    def __post_init__(self):
        if self.model_path is None:
            raise UserError("--model_path is needed: a run, or a merged model")
        if self.dev_data_path is None:
            raise UserError("--dev_data_path is needed: labelled rows to calibrate on")
        check_at_least(self, batch_size=1)
        if self.coverage is not None and not LEVELS[0] <= self.coverage <= LEVELS[1]:
            raise UserError(f"--coverage {self.coverage}: must be from {LEVELS[0]} to {LEVELS[1]}")


def contract_of(args: Args) -> Contract:
    """What the model was trained on.

    Raises:
        UserError: it is untuned, its answers have no probabilities, or the rows are those it was trained on.
    """
    check_model_path(args.model_path)
    if not (Path(args.model_path) / TASK_FILE).is_file():
        raise UserError(f"--model_path {args.model_path}: no {TASK_FILE} there; a run or a merged model is calibrated")
    contract = Contract.load(args.model_path)
    check_has_labels(contract.task, None, args.model_path, "a calibration")
    if contract.cot:
        raise UserError(f"--model_path {args.model_path}: answers with reasoning, which has no probabilities of labels")
    return contract


def check_not_learnt(args: Args, contract: Contract) -> None:
    """Raise a `UserError` where the model was trained on these very rows; say so where they chose its checkpoint."""
    hashes, found = contract.data_hashes or {}, file_hash(args.dev_data_path)
    if found == hashes.get("train_data_path"):
        raise UserError(f"--dev_data_path {args.dev_data_path}: the model was trained on these rows; use others")
    if found == hashes.get("dev_data_path"):
        print("these rows have chosen the checkpoint, too: a promise made on them is slightly too good")


def main(args: Args) -> None:
    contract = contract_of(args)
    examples = load_examples(args.dev_data_path, contract.task, "--dev_data_path")
    check_not_learnt(args, contract)
    promised = contract.coverage.level if contract.coverage else None
    level = promised if args.coverage is None else args.coverage
    if level is not None:
        check_rows(level, len(examples), f"rows in {args.dev_data_path}")
    with exclusive(args.model_path):
        metrics = calibrate_run(args.model_path, examples, args.batch_size, args.precision, level, args.device)
    changes = (f"{n} {metrics['before'][n]:.4f} -> {metrics['after'][n]:.4f}" for n in SHOWN)
    print(f"calibrated on {len(examples):,} rows: {', '.join(changes)}")
    say_promise(args.model_path)
    print(f"written to {Path(args.model_path) / TASK_FILE}")


if __name__ == "__main__":
    run(main, Args, {})

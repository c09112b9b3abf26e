"""Label a corpus of any size on a Ray cluster, or with a Ray of this machine's own.

    # two processes here; files and folders, larger than memory
    python -m scripts.label_corpus --model_path outputs/quickstart/merged --input_path comments more.parquet \\
        --output_dir outputs/corpus --workers 2

    # eight processes of a cluster, with a GPU each if it has GPUs; all machines see the folders under the same names
    python -m scripts.label_corpus --model_path outputs/merged --input_path /shared/comments \\
        --output_dir /shared/labels --workers 8 --address ray-head:6379
    # ... where the cluster asks for a token, as Ray's own do (ray start --head): RAY_AUTH_MODE=token before the command

    # the vLLM engine; then one file, scored where the rows have labels
    python -m scripts.label_corpus --model_path outputs/merged --input_path comments --output_dir outputs/corpus \\
        --backend vllm
    python -m scripts.gather --output_dir outputs/corpus --model_path outputs/merged

Rows are read as inference.py reads them, file behind file, and cut into parts. Each part is a file
predictions-00001-of-00025.jsonl with the rows that `inference.py --shard 1/25` would write, and appears when it is
whole. corpus.json says which rows are of which file, corpus_summary.json what was answered. Stopped or killed, the same
command makes the parts that are not there; it refuses to if model, files or settings are others than it began with.
A process that dies, on whatever machine, is started anew, and its part made again: no row is lost, none is there twice.

Needs Ray: pip install -r scripts/requirements-ray.txt
"""

import sys
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from data.arguments import UserError, check_at_least, check_output_dir, flag, run
from data.calibration import Decision
from data.contract import Contract, Precision, contract_for, decided_by
from data.corpus import (
    CORPUS_FILE,
    CORPUS_SUMMARY_FILE,
    Corpus,
    added,
    begin_or_continue,
    cut,
    finished_parts,
    in_words,
    input_files,
    remove_leftovers,
)
from data.encoding import Objective
from data.engine.models import check_model_path
from data.engine.predictor import check_promise, pick_backend
from data.engine.ray_labelling import Labelling, Share, connected, label_parts, looked_at, settled_precision, share_out
from data.engine.settings import BackendName, PredictionSettings, weighs_answers
from data.files import REJECTED_FILE, exclusive, read_json, write_json, write_json_lines
from data.prediction_files import Settings
from data.tasks import check_has_labels
from inference import prediction_settings

UNDECIDING = ("input_path", "address", "cpus_per_worker")  # files are known by what is in them
EngineName = Literal["transformers", "vllm"]


@dataclass
class Args:
    # what to label, and with what
    model_path: str | None = flag(None, "hub id, or a directory: an untuned model, a run, or a merged model")
    input_path: list[str] = flag([], "data files, and folders of which all data files are taken, by name")
    output_dir: str | None = flag(None, "where the parts go; not in a folder that is read")
    task: str | None = flag(None, "task to ask an untuned model for: a built-in task, single_label or multi_label")
    label_path: str | None = flag(None, "labels.txt of your own task: one label a line, line number = id")
    objective: Objective | None = flag(
        None, "how an untuned model answers: generate = it writes, score = labels are compared (default: generate)"
    )
    allow_none: bool | None = flag(
        None, "an untuned model may also answer that none of the labels applies (multi_label; default: as trained)"
    )
    limit: int | None = flag(None, "label the first N rows only")
    skip_bad_rows: bool = flag(False, "list bad rows in rejected.jsonl instead of stopping at the first")
    # where
    workers: int = flag(1, "processes that label side by side, each with the model")
    address: str | None = flag(
        None,
        "a Ray cluster that this machine is of: auto, or its head, such as ray-head:6379 (default: a Ray of this "
        "machine's own, which ends with it)",
    )
    backend: EngineName = flag("transformers", "engine: vllm is for models that write their answers")
    cpus_per_worker: int | None = flag(None, "cores of each process (default: those there are, shared out)")
    tensor_parallel_size: int = flag(1, "GPUs a model is spread over (vllm)")
    rows_per_part: int = flag(4096, "most rows of a part: what is done again if a process dies")
    # how; see inference.py
    decide: Decision | None = flag(
        None, "of a model that writes its answers: answer = the labels it writes; thresholds = those whose probability "
        "reaches the label's threshold (default: as trained, else answer)",
    )  # fmt: skip
    probabilities: bool | None = flag(
        None, "also of a model that writes its answers: how probable each label is (default: on, but for vllm, where "
        "it takes several times as long)",
    )  # fmt: skip
    coverage: float | None = flag(
        None, "also give the set of labels that holds this share of the right ones, such as 0.9, which the model was "
        "calibrated for (--coverage in training, or scripts.calibrate)",
    )  # fmt: skip
    max_set_size: int | None = flag(None, "with --coverage: abstain where the set has more labels (default: never)")
    batch_size: int = flag(64, "texts a batch")
    compile: bool = flag(False, "compile the model's layers: a minute at the start, then faster (transformers)")
    max_length: int | None = flag(None, "tokens of prompt and answer together (default: task.json's, else 512)")
    precision: Precision = flag(
        "auto", "number format of the weights; auto = bf16 or fp32, whichever one of the processes finds faster; on a "
        "GPU bf16, or fp16 where it has no bf16",
    )  # fmt: skip

    def __post_init__(self):
        for name, what in (
            ("model_path", "a hub id or a directory"),
            ("input_path", "data files, or folders with such files"),
            ("output_dir", "where the parts go"),
        ):
            if not getattr(self, name):
                raise UserError(f"--{name} is needed: {what}")
        check_output_dir(self.output_dir)
        check_at_least(
            self, workers=1, cpus_per_worker=1, tensor_parallel_size=1, rows_per_part=1, limit=1, batch_size=1,
            max_length=1,
        )  # fmt: skip
        if self.backend == "vllm" and self.compile:
            raise UserError("--compile: is for transformers; vllm does so by itself")
        if self.backend != "vllm" and self.tensor_parallel_size > 1:
            raise UserError(f"--tensor_parallel_size {self.tensor_parallel_size}: needs --backend vllm")

    @property
    def gpus_per_worker(self) -> int | None:
        """None = one where there are any."""
        return self.tensor_parallel_size if self.tensor_parallel_size > 1 else None


# --- what is labelled, and how ---------------------------------------------------------------------------------------


def contract_of(args: Args) -> Contract:
    """What the model was trained on, with the flags checked against it.

    Raises:
        UserError: they contradict each other, or the task has no labels.
    """
    check_model_path(args.model_path)
    contract = contract_for(
        args.model_path, args.task, args.label_path, None, args.max_length, args.objective, None, args.allow_none
    )
    check_has_labels(contract.task, args.task, args.model_path, "labelling")
    settings = PredictionSettings(**predictor_settings(args))
    weighs_answers(settings, decided_by(contract, args.decide))
    check_promise(contract, args.coverage, args.max_set_size, args.model_path, settings)
    return contract


def predictor_settings(args: Args) -> dict[str, Any]:
    """What the predictor of a process is made of; places as all machines name them."""
    given = {each.name: getattr(args, each.name) for each in fields(PredictionSettings) if hasattr(args, each.name)}
    for name in ("model_path", "label_path"):
        if given[name] is not None and Path(given[name]).exists():
            given[name] = str(Path(given[name]).absolute())
    return given | {"workers": 1, "backend": engine(args)}


def engine(args: Args) -> BackendName:
    """The backend that `--backend` means for this model."""
    return pick_backend(args.model_path, "vllm" if args.backend == "vllm" else None)


def corpus_of(args: Args, contract: Contract, paths: list[Path]) -> tuple[Corpus, list[dict[str, Any]]]:
    """The rows of all files, and those that are bad.

    Raises:
        UserError: a file or a row is not right.
    """
    with tqdm(total=len(paths), desc="read", unit="file") as bar:
        found = looked_at(paths, contract.task, args.skip_bad_rows, bar.update)
    corpus = cut([file for file, _ in found], args.rows_per_part, args.limit, args.skip_bad_rows)
    return corpus, [row for _, rejected in found for row in rejected]


def settings_of(args: Args) -> Settings:
    """What decides the predictions, but for the rows."""
    settings = prediction_settings(args)
    settings["flags"] = {name: value for name, value in settings["flags"].items() if name not in UNDECIDING}
    return settings


# --- the command ----------------------------------------------------------------------------------------------------


def main(args: Args) -> None:
    contract = contract_of(args)
    paths = input_files(args.input_path, args.output_dir)
    directory = Path(args.output_dir).resolve()
    with exclusive(directory, CORPUS_FILE), connected(args.address, args.workers) as resources:
        share = share_out(resources, args.workers, args.cpus_per_worker, args.gpus_per_worker)
        corpus, rejected = corpus_of(args, contract, paths)
        args = replace(args, precision=precision_of(args, directory, share))
        settings = begin_or_continue(directory, corpus, settings_of(args))
        if rejected:
            write_json_lines(directory / REJECTED_FILE, rejected)
            print(f"{len(rejected):,} bad rows skipped; {directory / REJECTED_FILE} has them")
        remove_leftovers(directory)  # of an earlier start
        begin, done = time.perf_counter(), finished_parts(directory, corpus, settings)
        made = label(args, Labelling(str(directory), corpus, contract.task, of_process(args), settings), done, share)
        seconds = time.perf_counter() - begin
        remove_leftovers(directory)
        counts = added((each["counts"] for each in finished_parts(directory, corpus, settings).values()), contract.task)
        if counts["rows"] != corpus.rows:
            raise UserError(f"{directory}: has {counts['rows']:,} of {corpus.rows:,} rows; give the same command again")
        rate = round(made / seconds, 2) if made else None
        write_json(directory / CORPUS_SUMMARY_FILE, counts | {"parts": corpus.parts, "rows_per_second": rate})
    say(directory, args, corpus, counts, made, seconds)


def precision_of(args: Args, directory: Path, share: Share) -> Precision:
    """The number format that earlier parts were made in, or that is to be taken from now on."""
    begun = read_json(directory / CORPUS_FILE, missing_ok=True, fields={"flags": dict}).get("flags", {})
    asked = begun.get("precision", "auto") if args.precision == "auto" else args.precision
    return settled_precision(asked, args.model_path, share)


def of_process(args: Args) -> dict[str, Any]:
    return predictor_settings(args) | {"coverage": args.coverage, "max_set_size": args.max_set_size}


def label(args: Args, labelling: Labelling, done: dict[int, dict[str, Any]], share: Share) -> int:
    """Make the parts that are not there; returns how many rows they have."""
    corpus, made = labelling.corpus, 0
    before = sum(beside["counts"]["rows"] for beside in done.values())
    if done:
        print(f"{len(done):,} of {corpus.parts:,} parts are there already, with {before:,} rows", file=sys.stderr)
    todo = [part for part in range(1, corpus.parts + 1) if part not in done]
    with tqdm(total=corpus.rows, initial=before, desc="label", unit="row") as bar:
        for rows in label_parts(labelling, todo, share):
            made += rows
            bar.update(rows)
    return made


def say(directory: Path, args: Args, corpus: Corpus, counts: dict[str, Any], made: int, seconds: float) -> None:
    """What has come of it, and what can be done with it."""
    print(f"{corpus.rows:,} rows of {len(corpus.files):,} files in {corpus.parts:,} parts")
    if made:
        print(f"labelled now: {made:,} rows in {seconds:.1f} s, {made / seconds:,.1f} rows/s by {args.workers} workers")
    print(in_words(counts))
    print(f"written to {directory}; one file: python -m scripts.gather --output_dir {args.output_dir} --model_path "
          f"{args.model_path}")  # fmt: skip


if __name__ == "__main__":
    run(main, Args, {})

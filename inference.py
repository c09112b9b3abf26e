"""Load a model, predict, evaluate.

A model directory is a run of main_SFT.py or main_grpo.py (an adapter or a whole model, with its task.json), what
merge_lora.py made of one, or an untuned model, for which --task names the labels to ask for. A trained directory is
asked exactly what it was trained on: prompt, labels and length come from its task.json, and a flag that contradicts it
is an error. A model that writes its answers may write valid ones only (--constrained off lets it write anything).

    # score a labelled file: predictions.jsonl, test_results.json, test_summary.txt; goes on where it was killed
    python inference.py --model_path outputs/sft --test_data_path data/sample/test.tsv --output_dir outputs/sft/test

    # one text; texts from a pipe, one a line; a conversation; a few examples
    python inference.py --model_path outputs/sft --text "Thank you so much, you made my day!"
    cat comments.txt | python inference.py --model_path outputs/sft --text - > labels.jsonl
    python inference.py --model_path outputs/sft --interactive
    python inference.py --model_path outputs/sft --demo

    # the vLLM engine; eight processes, a GPU each; the third of eight machines' shares of a large file
    python inference.py --model_path outputs/merged --backend vllm --test_data_path comments.tsv
    python inference.py --model_path outputs/merged --test_data_path comments.tsv --workers 8
    python inference.py --model_path outputs/merged --test_data_path comments.tsv --shard 3/8

    # an untuned model
    python inference.py --model_path models/smollm2-135m-instruct --task goemotions-original \\
        --test_data_path data/sample/test.tsv --output_dir outputs/base

From Python:

    from inference import Predictor
    with Predictor("outputs/sft") as predictor:
        predictor.predict("Thank you so much!").labels     # ("gratitude",)
        predictor.predict_batch(["...", "..."])
"""

import json
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

from data.arguments import UserError, check_at_least, check_output_dir, flag, run
from data.contract import Contract, contract_for
from data.encoding import Encoder, Objective
from data.engine.backends import Engine, TransformersEngine, VllmEngine
from data.engine.models import (
    base_model_path,
    check_model_path,
    is_encoder,
    load_tokenizer,
    worker_devices,
)
from data.engine.workers import Workers
from data.files import write_json, write_json_lines
from data.labels import Prediction
from data.loading import Example, ExampleFile
from data.prediction_files import (
    FILE_NAME,
    PART_NAME,
    PredictionFile,
    measure,
    remove_results,
    rows_of,
    write_results,
)

CALIBRATION_FILE = "calibration.json"
Backend = Literal["hf", "vllm", "bert"]
T = TypeVar("T")
ROWS_AT_ONCE = 512  # read, sorted by length, predicted and written together; more is lost by a kill
DEMO_TEXTS = (
    "You made my day, thank you so much!",
    "I can't believe they cancelled it again. This is infuriating.",
    "Does anyone know when the shop opens tomorrow?",
    "I miss my grandmother more every winter.",
    "这家酒店的服务太好了，下次还来。",
    "房间又小又吵，一晚上没睡好。",
)


@dataclass
class Args:
    # what to predict with
    model_path: str | None = flag(None, "hub id, or a directory: an untuned model, a run, or a merged model")
    task: str | None = flag(None, "task to ask an untuned model for: a built-in task, single_label or multi_label")
    label_path: str | None = flag(None, "labels.txt of your own task: one label a line, line number = id")
    backend: Backend | None = flag(
        None,
        "engine: hf = a language model in Transformers, vllm = one that writes its answers in vLLM, bert = an encoder "
        "(default: hf or bert, as the model is)",
    )
    objective: Objective | None = flag(
        None, "how an untuned model answers: generate = it writes, score = labels are compared (default: generate)"
    )
    cot: bool | None = flag(None, "ask for reasoning before the answer (default: as trained)")
    constrained: Literal["on", "off"] = flag("on", "a model that writes its answers may write valid ones only")
    probabilities: bool = flag(
        False, "also of a model that writes its answers: how probable each label is, compared as answers (--text, "
        "--interactive and --demo always say)",
    )  # fmt: skip
    # what to predict on
    test_data_path: str | None = flag(None, "file to predict on; with labels in it, it is scored too")
    text: str | None = flag(None, "one text to predict on, printed as JSON; - reads texts from standard input")
    interactive: bool = flag(False, "ask for texts until quit, exit or Ctrl-D")
    demo: bool = flag(False, "show what it says about a few texts of ours")
    output_dir: str | None = flag(None, "where predictions and scores go (default: <model_path>/test for a run)")
    limit: int | None = flag(None, "use the first N rows only")
    shard: str = flag("1/1", "i/n: predict the i-th of n parts of the file, each into a file of its own")
    skip_bad_rows: bool = flag(False, "list bad rows in rejected.jsonl instead of stopping at the first")
    # how
    batch_size: int = flag(64, "texts a batch")
    workers: int = flag(
        1, "processes that predict side by side, each with the model: one for each GPU, or for each core or two of a "
        "CPU (hf, bert)",
    )  # fmt: skip
    compile: bool = flag(
        False, "compile the model's layers: a minute at the start, then faster; for long files (hf, bert; written "
        "answers on a CPU only)",
    )  # fmt: skip
    max_length: int | None = flag(None, "tokens of prompt and answer together (default: task.json's, else 512)")
    precision: Literal["bf16", "fp16", "fp32"] = flag("bf16", "number format of the weights")
    load_in_4bit: bool = flag(False, "keep the weights in 4 bits: less memory, slower (hf; needs bitsandbytes)")
    tensor_parallel_size: int = flag(1, "GPUs a model is spread over (vllm)")
    device: str | None = flag(None, "cpu, cuda, cuda:1, mps ... (default: the first GPU, else the CPU; not for vllm)")
    seed: int = flag(42, "seed, noted in the results; decoding is greedy and draws nothing")

    def __post_init__(self):
        if self.model_path is None:
            raise UserError("--model_path is needed: a hub id or a directory")
        ways = [self.test_data_path is not None, self.text is not None, self.interactive, self.demo]
        if sum(ways) != 1:
            raise UserError("give one of --test_data_path (a file), --text (one text), --interactive and --demo")
        if self.text is not None and not self.text.strip():
            raise UserError("--text is empty")
        if self.text is not None and not self.text.isprintable() and any("\ud800" <= c <= "\udfff" for c in self.text):
            raise UserError("--text is not UTF-8")
        if self.output_dir is not None:
            check_output_dir(self.output_dir)
        check_at_least(self, batch_size=1, limit=1, max_length=1, tensor_parallel_size=1, workers=1)
        i, n = self.part
        if not 1 <= i <= n:
            raise UserError(f"--shard {self.shard}: expected i/n with i from 1 to n, such as 3/8")
        if self.workers > 1 and self.test_data_path is None:
            raise UserError(f"--workers {self.workers}: is for a file (--test_data_path)")
        if self.backend == "vllm" and self.load_in_4bit:
            raise UserError("--load_in_4bit: is for hf, not for vllm")
        if self.backend == "vllm" and self.probabilities:
            raise UserError("--probabilities: hf gives them, vllm does not")
        if self.backend == "vllm" and self.compile:
            raise UserError("--compile: is for hf and bert; vllm does so by itself")
        if self.backend == "vllm" and self.workers > 1:
            raise UserError(f"--workers {self.workers}: is for hf and bert; vllm has --tensor_parallel_size")
        if self.backend == "vllm" and self.device is not None:
            raise UserError("--device: vllm takes the GPUs it sees (CUDA_VISIBLE_DEVICES)")
        if self.backend != "vllm" and self.tensor_parallel_size > 1:
            raise UserError(f"--tensor_parallel_size {self.tensor_parallel_size}: needs --backend vllm")

    @property
    def part(self) -> tuple[int, int]:
        """`--shard` as numbers; (0, 0) where it is none."""
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", self.shard)
        return (int(match[1]), int(match[2])) if match else (0, 0)


# --- prediction -----------------------------------------------------------------------------------------------------


def pick_backend(model_path: str, backend: Backend | None = None) -> Backend:
    """The engine for this model: "bert" for an encoder, "hf" or, if asked for, "vllm" for a language model.

    Raises:
        UserError: one was asked for that does not run it.
    """
    encoder = is_encoder(model_path)
    if backend is None:
        return "bert" if encoder else "hf"
    if encoder != (backend == "bert"):
        kind, needed = ("an encoder", "bert runs") if encoder else ("no encoder", "hf and vllm run")
        raise UserError(f"--backend {backend}: {model_path} is {kind}, which {needed}")
    return backend


def in_parts(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items; the last may be shorter."""
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part


class Predictor:
    """A model that reads labels in texts. Threads may share one; they are answered one after the other.

    Args:
        model_path: hub id or directory (see `data.engine.models.load_model`).
        task, label_path, cot, max_length, objective: only for an untuned model; a trained one knows (`contract_for`).
        batch_size: texts a batch.
        precision, device, load_in_4bit: see `data.engine.models.load_model`.
        backend: see `pick_backend`.
        constrained: let a model that writes its answers write valid ones only.
        probabilities: give those of every label also where the answers are written.
        tensor_parallel_size: GPUs that vLLM spreads a model over.
        workers: processes that predict side by side, not in vLLM; with several, a script that makes a predictor has to
            do so under `if __name__ == "__main__":`.
        compile: compile the model's layers, not in vLLM.

    Raises:
        UserError: no model there, a flag that contradicts its task.json, or an engine that does not run it.
    """

    def __init__(
        self,
        model_path: str,
        task: str | None = None,
        label_path: str | None = None,
        cot: bool | None = None,
        max_length: int | None = None,
        batch_size: int = 64,
        precision: str = "bf16",
        device: str | None = None,
        objective: Objective | None = None,
        backend: Backend | None = None,
        constrained: bool = True,
        probabilities: bool = False,
        load_in_4bit: bool = False,
        tensor_parallel_size: int = 1,
        workers: int = 1,
        compile: bool = False,
    ):
        check_model_path(model_path)
        contract = contract_for(model_path, task, label_path, cot, max_length, objective)
        backend = pick_backend(model_path, backend)
        if contract.objective != "classify" and backend == "bert":
            raise UserError(f"--objective {contract.objective}: {model_path} is an encoder, which has to use classify")
        encoder = Encoder(
            contract.task, load_tokenizer(model_path), contract.cot, contract.max_length, contract.objective
        )
        if backend == "vllm":
            engine: Engine = VllmEngine(
                model_path, base_model_path(model_path), encoder, contract, precision, constrained,
                tensor_parallel_size,
            )  # fmt: skip
        else:
            load = partial(
                TransformersEngine.load, model_path=model_path, encoder=encoder, contract=contract,
                batch_size=batch_size, name=backend, constrained=constrained, probabilities=probabilities,
                precision=precision, quantized=load_in_4bit, compiled=compile,
            )  # fmt: skip
            several = workers > 1
            engine = Workers(load, worker_devices(workers, device), batch_size, backend) if several else load(device)
        self._set(engine, encoder, contract, probabilities)

    @classmethod
    def from_model(
        cls, model, encoder: Encoder, contract: Contract, batch_size: int = 64, packed: bool = False,
        constrained: bool = False,
    ) -> "Predictor":  # fmt: skip
        """A predictor around a model that is loaded already, such as one in training.

        `packed` says whether it is set up for packed rows.
        """
        predictor = cls.__new__(cls)
        engine = TransformersEngine(model, encoder, contract, batch_size, packed, constrained)
        predictor._set(engine, encoder, contract, probabilities=False)
        return predictor

    def _set(self, engine: Engine, encoder: Encoder, contract: Contract, probabilities: bool) -> None:
        self.engine, self.encoder, self.contract = engine, encoder, contract
        self.task, self.backend = contract.task, engine.name
        self._probabilities = probabilities and not contract.cot  # behind no reasoning, a label is no answer
        self._lock = threading.Lock()

    def __enter__(self) -> "Predictor":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Give the model's memory back; nothing can be predicted after it."""
        self.engine.close()

    def predict(self, text: str) -> Prediction:
        """The labels of one text."""
        return self.predict_batch([text])[0]

    def predict_batch(self, texts: Sequence[str], progress: bool = False) -> list[Prediction]:
        """The labels of each text, in the order of the texts.

        Args:
            texts: the texts; batches are made of texts of like length.
            progress: show a progress bar.

        Raises:
            ValueError: an empty text.
        """
        return list(self.predictions(texts, len(texts) if progress else None))

    def predictions(self, texts: Iterable[str], total: int | None = None, done: int = 0) -> Iterator[Prediction]:
        """The labels of each text, one by one, in the order of the texts: there may be more than memory holds.

        Args:
            texts: the texts.
            total: their number, for a progress bar; None = no bar.
            done: how many of them were predicted earlier, and do not come again.

        Raises:
            ValueError: an empty text.
        """
        from tqdm import tqdm

        with tqdm(total=total, initial=done, desc="predict", unit="text", disable=total is None) as bar:
            for part in in_parts(texts, max(ROWS_AT_ONCE, self.engine.window)):
                yield from self._predict(part, bar)

    def _predict(self, texts: Sequence[str], bar) -> list[Prediction]:
        if self.contract.objective != "generate":
            return self.read(self._scored(texts, bar))
        predictions = self._by_length(self.engine.answers, texts, bar)
        if self._probabilities:
            from data.calibration import probabilities

            shares = probabilities(self._scored(texts, None), "softmax", self.contract.temperature)
            predictions = [
                replace(prediction, probabilities=dict(zip(self.task.labels, row.tolist(), strict=True)))
                for prediction, row in zip(predictions, shares, strict=True)
            ]
        return predictions

    def label_scores(self, texts: Sequence[str], progress: bool = False):
        """Scores (texts, labels) as a numpy array: a head's logits, or the labels' log-probabilities as answers.

        Raises:
            ValueError: an empty text.
        """
        from tqdm import tqdm

        with tqdm(total=len(texts), desc="predict", unit="text", disable=not progress) as bar:
            return self._scored(texts, bar)

    def read(self, scores) -> list[Prediction]:
        """Scores (texts, labels) -> predictions, by the contract's temperature and thresholds."""
        from data.calibration import decide, probabilities, set_probability

        shares = probabilities(scores, self.contract.activation, self.contract.temperature)
        return [
            Prediction(
                labels,
                valid=True,
                confidence=set_probability(row, labels, self.task, self.contract.activation),
                probabilities=dict(zip(self.task.labels, row.tolist(), strict=True)),
            )
            for row, labels in zip(shares, decide(shares, self.task, self.contract.thresholds), strict=True)
        ]

    def _scored(self, texts: Sequence[str], bar):
        import numpy

        return numpy.array(self._by_length(self.engine.scores, texts, bar)).reshape(len(texts), len(self.task.labels))

    def _by_length(self, compute, texts: Sequence[str], bar) -> list:
        """`compute` (prompts -> one value each) over batches of prompts of like length, in the order of the texts."""
        if any(not text.strip() for text in texts):
            raise ValueError("a text is empty")
        with self._lock:
            prompts = self.encoder.prompt_ids(texts) if texts else []
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)  # the largest batch first
        values: list[Any] = [None] * len(prompts)
        for rows in in_parts(order, self.engine.window):
            with self._lock:
                computed = compute([prompts[i] for i in rows])
            for row, value in zip(rows, computed, strict=True):
                values[row] = value
            if bar is not None:
                bar.update(len(rows))
        return values


# --- evaluation -----------------------------------------------------------------------------------------------------


def evaluate(
    predictor: Predictor, examples: Sequence[Example] | ExampleFile, output_dir: str | Path | None = None,
    seed: int = 42, settings: dict[str, Any] | None = None, name: str = FILE_NAME,
) -> dict[str, Any]:  # fmt: skip
    """Predict, score where there is gold, and write the predictions and their scores.

    Args:
        predictor: the model.
        examples: texts with their gold labels, or all without.
        output_dir: where `predictions.jsonl`, and with gold `test_results.json` and `test_summary.txt` go; None =
            nowhere.
        seed: noted in the results.
        settings: what decides the predictions; a file of predictions begun with the same is continued. None = begin
            anew.
        name: name of the file of predictions.

    Returns:
        The content of `test_results.json`; `n` and `examples_per_second` only where there is no gold.
    """
    file = None
    if output_dir is not None:
        file = PredictionFile(output_dir, settings or {"begun": datetime.now().isoformat()}, name, settings is not None)
    done = file.done if file else 0
    begin = time.perf_counter()
    left = islice(examples, done, None)
    kept: list[dict[str, Any]] = []
    try:
        for part in in_parts(_predicted_rows(predictor, left, len(examples), done), ROWS_AT_ONCE):
            if file:
                file.append(part)
            else:
                kept.extend(part)
    finally:
        if file:
            file.close()
    rate = (len(examples) - done) / (time.perf_counter() - begin)
    if file:
        if name == FILE_NAME:
            remove_results(output_dir)
        file.finish()
    results = measure(rows_of(file.path) if file else kept, predictor.contract)
    labelled = "accuracy" in results and name == FILE_NAME  # parts are scored when all are there
    results |= {"examples_per_second": round(rate, 2), "backend": predictor.backend, "seed": seed}
    if output_dir is not None and labelled:
        write_results(output_dir, results, f"task {predictor.task.name}")
    return results


def _predicted_rows(
    predictor: Predictor, examples: Iterable[Example], total: int, done: int
) -> Iterator[dict[str, Any]]:
    """Rows of predictions.jsonl, in the order of the examples."""
    waiting: deque[Example] = deque()

    def texts() -> Iterator[str]:
        for example in examples:
            waiting.append(example)
            yield example.text

    for prediction in predictor.predictions(texts(), total, done):
        example, fields = waiting.popleft(), asdict(prediction)
        yield {
            "id": example.id,
            "text": example.text,
            "gold": list(example.labels) or None,
            **{name: fields[name] for name in ("labels", "probabilities", "confidence", "valid", "completion")},
        }


def calibrate_run(
    directory: str, examples: Sequence[Example], batch_size: int, precision: str
) -> dict[str, dict[str, float]]:
    """Fit temperature and thresholds of a finished run on labelled texts, and write them into its `task.json`.

    Returns:
        The metrics `before` and `after`, on these same texts; also in the run's `calibration.json`.
    """
    from data.calibration import calibrate

    predictor = Predictor(directory, batch_size=batch_size, precision=precision)
    contract = predictor.contract
    scores = predictor.label_scores([example.text for example in examples], progress=True)
    fitted, metrics = calibrate(scores, [example.labels for example in examples], contract.task, contract.activation)
    replace(contract, temperature=fitted.temperature, thresholds=fitted.thresholds).save(directory)
    write_json(Path(directory) / CALIBRATION_FILE, {"n": len(examples), **asdict(fitted), **metrics})
    return metrics


def score_run(directory: str, examples: Sequence[Example], batch_size: int, precision: str, seed: int) -> None:
    """Score a finished run on labelled texts, as it was written: what this script would load is what is measured."""
    evaluate(Predictor(directory, batch_size=batch_size, precision=precision), examples, directory, seed)
    print((Path(directory) / "test_summary.txt").read_text(encoding="utf-8"))


# --- the command ----------------------------------------------------------------------------------------------------


def main(args: Args) -> None:
    check_model_path(args.model_path)
    contract = contract_for(args.model_path, args.task, args.label_path, args.cot, args.max_length, args.objective)
    if args.probabilities and contract.cot:
        raise UserError("--probabilities: not of answers with reasoning (--cot)")
    if args.test_data_path is not None:
        predict_file(args, contract)
        return
    with open_predictor(args, probabilities=args.backend != "vllm") as predictor:
        if args.demo:
            for text in DEMO_TEXTS:
                print(f"{text}\n{shown(predictor.predict(text))}\n")
        elif args.interactive:
            interact(predictor)
        else:
            texts = [args.text] if args.text != "-" else filter(str.strip, map(str.strip, sys.stdin))
            for text in texts:
                print(json.dumps(asdict(predictor.predict(text)), ensure_ascii=False), flush=True)


def open_predictor(args: Args, probabilities: bool) -> Predictor:
    """The model the flags name."""
    return Predictor(
        args.model_path, args.task, args.label_path, args.cot, args.max_length, args.batch_size, args.precision,
        args.device, args.objective, args.backend, args.constrained == "on", probabilities, args.load_in_4bit,
        args.tensor_parallel_size, args.workers, args.compile,
    )  # fmt: skip


def predict_file(args: Args, contract: Contract) -> None:
    """Predict `--test_data_path` into `--output_dir`, going on where an earlier start was stopped."""
    output_dir = output_directory(args)
    rejected: list[dict[str, Any]] | None = [] if args.skip_bad_rows else None
    examples = ExampleFile(args.test_data_path, contract.task, "--test_data_path", rejected, args.limit, args.part)
    name = FILE_NAME if args.part == (1, 1) else PART_NAME.format(i=f"{args.part[0]:05}", n=f"{args.part[1]:05}")
    settings = prediction_settings(args)
    with open_predictor(args, args.probabilities) as predictor:
        if rejected:
            write_json_lines(output_dir / "rejected.jsonl", rejected)
        evaluate(predictor, examples, output_dir, args.seed, settings, name)
    if examples.labelled and name == FILE_NAME:
        print((output_dir / "test_summary.txt").read_text(encoding="utf-8"))
    print(f"written to {output_dir / name}")


def output_directory(args: Args) -> Path:
    """`--output_dir`, or a folder of the run's own."""
    if args.output_dir is None and not (Path(args.model_path) / "task.json").is_file():
        raise UserError("--output_dir is needed for an untuned model: where predictions and scores are to go")
    return Path(args.output_dir or Path(args.model_path) / "test")


def prediction_settings(args: Args) -> dict[str, Any]:
    """What decides a file's predictions: flags, and the state of the files they name."""
    settings = asdict(args)
    for name in (
        "text", "interactive", "demo", "output_dir", "batch_size", "workers", "compile", "tensor_parallel_size",
        "device", "seed",
    ):  # fmt: skip
        del settings[name]
    weights = sorted(Path(args.model_path).glob("*.safetensors"))
    for name, files in (("model_path", weights), ("test_data_path", [Path(args.test_data_path)])):
        states = [f"{path.name}: {path.stat().st_size} bytes of {_modified(path)}" for path in files]
        settings[name] = f"{settings[name]} ({'; '.join(states)})" if states else settings[name]
    return settings


def _modified(path: Path) -> str:
    return datetime.fromtimestamp(path.stat().st_mtime).isoformat()


def interact(predictor: Predictor) -> None:
    """Ask for texts until quit, exit or Ctrl-D."""
    import readline  # noqa: F401  (arrow keys and history in input())

    print(f"task {predictor.task.name}: {', '.join(predictor.task.labels)}\nA text, or quit:")
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            print()
            return
        if text.casefold() in ("quit", "exit"):
            return
        if text:
            print(shown(predictor.predict(text)))


def shown(prediction: Prediction, most: int = 5) -> str:
    """A prediction as a person reads it: labels, and the `most` probable ones with their probabilities."""
    confidence = f"  ({prediction.confidence:.0%})" if prediction.confidence is not None else ""
    lines = [f"  {', '.join(prediction.labels) or f'no label in {prediction.completion!r}'}{confidence}"]
    ranked = sorted((prediction.probabilities or {}).items(), key=lambda item: -item[1])
    lines += [f"    {share:>6.1%}  {'█' * round(share * 30):<30}  {label}" for label, share in ranked[:most]]
    return "\n".join(lines)


if __name__ == "__main__":
    # Edit here, or pass the same names as flags: a flag wins.
    settings = dict()
    run(main, Args, settings)

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

    # beside each answer, the labels that hold 90 % of the right ones; more than three of them are no answer
    python inference.py --model_path outputs/sft --test_data_path comments.tsv --coverage 0.9 --max_set_size 3

    # the vLLM engine; eight processes, a GPU each; the third of eight machines' shares of a large file
    python inference.py --model_path outputs/merged --backend vllm --test_data_path comments.tsv
    python inference.py --model_path outputs/merged --test_data_path comments.tsv --workers 8
    python inference.py --model_path outputs/merged --test_data_path comments.tsv --shard 3/8

    # an untuned model
    python inference.py --model_path models/smollm2-135m-instruct --task goemotions-original \\
        --test_data_path data/sample/test.tsv --output_dir outputs/base

    # summaries of counselling cases (data/README.md); one case from the command line
    python inference.py --model_path outputs/summary --test_data_path cases.jsonl --max_new_tokens 800
    python inference.py --model_path outputs/summary --text '{"case_description": ["…"], "consultation_process": ["…"]}'

From Python:

    from inference import Predictor
    with Predictor("outputs/sft") as predictor:
        predictor.predict("Thank you so much!").labels     # ("gratitude",)
        predictor.predict_batch(["...", "..."])
    with Predictor("outputs/summary") as predictor:
        predictor.generate_summary(case_description=["…"], consultation_process=["…", "…"])
"""

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from data.arguments import UserError, check_at_least, check_output_dir, flag, json_line, run, visible
from data.calibration import Decision
from data.contract import Contract, Precision, contract_for, decided_by
from data.encoding import Objective
from data.engine.evaluation import evaluate
from data.engine.models import adapter_stack, check_model_path, pick_device
from data.engine.precision import pick_precision
from data.engine.predictor import Predictor, check_promise
from data.engine.settings import BackendName, PredictionSettings, weighs_answers
from data.files import (
    INFERENCE_FILE,
    PREDICTIONS_FILE,
    REJECTED_FILE,
    SUMMARY_FILE,
    TASK_FILE,
    exclusive,
    file_hash,
    sample_hash,
    write_json,
    write_json_lines,
)
from data.loading import ExampleFile
from data.predicted_runs import output_directory
from data.prediction_files import PART_NAME, Settings, begun_with
from data.predictions import Prediction
from data.sampling import Sampling

# files of a model's directory that decide what it says
MODEL_FILES = (
    TASK_FILE, "*config.json", "tokenizer*", "*tokens*.json", "vocab.*", "merges.txt", "chat_template.*", "*.model",
    "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin",
)  # fmt: skip
# flags that decide nothing about a prediction; files are known by what is in them, wherever they lie
UNDECIDING = (
    "text", "interactive", "demo", "output_dir", "batch_size", "workers", "compile", "tensor_parallel_size", "device",
    "seed", "shard", "test_data_path", "label_path",
)  # fmt: skip
OF_DRAWING = tuple(each.name for each in fields(Sampling))  # nor do these where answers are labels


@dataclass
class Args:
    # what to predict with
    model_path: str | None = flag(None, "hub id, or a directory: an untuned model, a run, or a merged model")
    task: str | None = flag(
        None, "task to ask an untuned model for: a built-in task, single_label or multi_label; emotion-summary asks in "
        "the language of the cases, emotion-summary-en and -zh in theirs",
    )  # fmt: skip
    label_path: str | None = flag(None, "labels.txt of your own task: one label a line, line number = id")
    backend: BackendName | None = flag(
        None,
        "engine: hf = a language model in Transformers, vllm = one that writes its answers in vLLM, bert = an encoder "
        "(default: hf or bert, as the model is)",
    )
    objective: Objective | None = flag(
        None, "how an untuned model answers: generate = it writes, score = labels are compared (default: generate)"
    )
    cot: bool | None = flag(None, "ask for reasoning before the answer (default: as trained)")
    allow_none: bool | None = flag(
        None, "an untuned model may also answer that none of the labels applies (multi_label; default: as trained)"
    )
    constrained: bool = flag(True, "a model that writes its answers may write valid ones only")
    probabilities: bool | None = flag(
        None, "also of a model that writes its answers: how probable each label is, in all valid answers together "
        "(default: on, but for vllm, where it takes several times as long; never with --cot or --constrained off)",
    )  # fmt: skip
    pruned_mass: float | None = flag(
        None, "probability of the answers that need not be looked at for that, however long it takes; each text's own "
        "is in predictions.jsonl (default: 0.01, or more where that would take over 24 tokens of answers a text)",
    )  # fmt: skip
    decide: Decision | None = flag(
        None, "of a model that writes its answers: answer = the labels it writes; thresholds = those whose probability "
        "reaches the label's threshold, 0.5 where none was fitted, in a single-label task the most probable one "
        "(default: what was better on the validation rows in training, else answer)",
    )  # fmt: skip
    coverage: float | None = flag(
        None, "also give the set of labels that holds this share of the right ones, such as 0.9, which the model was "
        "calibrated for (--coverage in training, or scripts.calibrate)",
    )  # fmt: skip
    max_set_size: int | None = flag(None, "with --coverage: abstain where the set has more labels (default: never)")
    # how free text is drawn (emotion-summary)
    max_new_tokens: int | None = flag(None, "tokens at which a summary is cut off (default: as trained, else 1024)")
    temperature: float | None = flag(
        None, "divides the logits before a token is drawn; 0 = the most probable one (default: as trained, else 0.7)"
    )
    top_p: float | None = flag(
        None, "draw from the fewest tokens with this probability together (default: as trained, else 0.8)"
    )
    top_k: int | None = flag(
        None, "draw from so many of the most probable tokens; 0 = all (default: as trained, else 20)"
    )
    repetition_penalty: float | None = flag(
        None, "above 1: tokens that stand in case or summary already are less probable (default: as trained, else 1.05)"
    )
    # what to predict on
    test_data_path: str | None = flag(None, "file to predict on; with labels in it, it is scored too")
    text: str | None = flag(
        None, "one text to predict on, printed as JSON; - reads texts from standard input; a case is one line of JSON"
    )
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
    max_length: int | None = flag(
        None, "tokens of prompt and answer together (default: task.json's, else 512, for summaries 8192)"
    )
    precision: Precision = flag(
        "auto", "number format of the weights; auto = bf16 or fp32, whichever is faster by measure; on a GPU "
        "bf16, or fp16 where it has no bf16",
    )  # fmt: skip
    load_in_4bit: bool = flag(False, "keep the weights in 4 bits: less memory, slower (hf; needs bitsandbytes)")
    tensor_parallel_size: int = flag(1, "GPUs a model is spread over (vllm)")
    device: str | None = flag(None, "cpu, cuda, cuda:1, mps ... (default: the first GPU, else the CPU; not for vllm)")
    seed: int = flag(42, "seed of what is drawn in free text, noted in the results; labels are decoded greedily")

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
        if self.pruned_mass is not None and not 0 <= self.pruned_mass < 1:
            raise UserError(f"--pruned_mass {self.pruned_mass}: must be from 0 to below 1")
        i, n = self.part
        if not 1 <= i <= n:
            raise UserError(f"--shard {self.shard}: expected i/n with i from 1 to n, such as 3/8")
        if self.workers > 1 and self.test_data_path is None:
            raise UserError(f"--workers {self.workers}: is for a file (--test_data_path)")
        if self.backend == "vllm" and self.load_in_4bit:
            raise UserError("--load_in_4bit: is for hf, not for vllm")
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


# --- the command ----------------------------------------------------------------------------------------------------


def main(args: Args) -> None:
    check_model_path(args.model_path)
    drawn = {each.name: getattr(args, each.name) for each in fields(Sampling)}
    contract = contract_for(
        args.model_path, args.task, args.label_path, args.cot, args.max_length, args.objective, drawn, args.allow_none
    )
    weighs_answers(args, decided_by(contract, args.decide))
    if args.compile and contract.sampling is not None:
        raise UserError(f"--compile: not for free text (task {contract.task.name}), which keeps a cache that grows")
    check_promise(contract, args.coverage, args.max_set_size, args.model_path, args)
    if args.test_data_path is not None:
        predict_file(args, contract)
        return
    if args.text not in (None, "-"):
        asked = contract.task.asked_in(args.text, "--text")
        args = in_its_language(args, contract, [asked])
    with open_predictor(args) as predictor:
        task = predictor.task
        if args.demo:
            for text in task.demo:
                print(f"{task.spelt(text)}\n{shown(predictor.predict(text), task.sampling is not None)}\n")
        elif args.interactive:
            interact(predictor)
        else:
            for where, text in [("--text", args.text)] if args.text != "-" else texts_from_stdin():
                asked = task.asked_in(text, where)
                print(json_line(predictor.predict(asked).as_dict()), flush=True)


def in_its_language(args: Args, contract: Contract, asked: Iterable[Any]) -> Args:
    """`args` with the task in the language of what is asked about, where it has several and none was set."""
    task = contract.task.in_language_of(asked)
    if task == contract.task:
        return args
    print(f"asked as task {task.name}, for the language of the cases", file=sys.stderr)
    return replace(args, task=task.name)


def open_predictor(args: Args) -> Predictor:
    """The model the flags name."""
    settings = {field.name: getattr(args, field.name) for field in fields(PredictionSettings)}
    return Predictor(**settings, coverage=args.coverage, max_set_size=args.max_set_size)


def predict_file(args: Args, contract: Contract) -> None:
    """Predict `--test_data_path` into `--output_dir`, going on where an earlier start was stopped."""
    output_dir = output_directory(args.output_dir, args.model_path, "predictions and scores are")
    name = PREDICTIONS_FILE if args.part == (1, 1) else PART_NAME.format(i=f"{args.part[0]:05}", n=f"{args.part[1]:05}")
    rejected: list[dict[str, Any]] | None = [] if args.skip_bad_rows else None
    examples = ExampleFile(args.test_data_path, contract.task, "--test_data_path", rejected, args.limit, args.part)
    args = in_its_language(args, contract, examples.whole())
    with exclusive(output_dir, name):
        begun = begun_with(output_dir / name, "precision") if args.precision == "auto" else None
        precision = pick_precision(begun or args.precision, args.model_path, pick_device(args.device))
        args = replace(args, precision=precision.format)  # which decides what is predicted
        settings = prediction_settings(args, draws=contract.sampling is not None) | examples.span
        with open_predictor(args) as predictor:
            precision.say(sys.stderr)
            if rejected:
                write_json_lines(output_dir / REJECTED_FILE, rejected)
            evaluate(predictor, examples, output_dir, args.seed, settings, name)
        if name == PREDICTIONS_FILE:  # a part has its settings beside it
            values = ((each.name, getattr(args, each.name), each.default) for each in fields(Args))
            given = {name: value for name, value, default in values if value != default}
            write_json(output_dir / INFERENCE_FILE, {"flags": given, "predictions": file_hash(output_dir / name)})
    if examples.labelled and name == PREDICTIONS_FILE:
        print((output_dir / SUMMARY_FILE).read_text(encoding="utf-8"))
    print(f"written to {output_dir / name}")


def prediction_settings(args: Args, draws: bool = False) -> Settings:
    """What decides a file's predictions: flags, and what is in the files they name.

    Args:
        args: the flags.
        draws: whether answers are drawn, so that the seed decides, too.
    """
    undeciding = {*UNDECIDING} - {"seed"} if draws else {*UNDECIDING, *OF_DRAWING}
    flags = {name: value for name, value in asdict(args).items() if name not in undeciding}
    given = {name: getattr(args, name, None) for name in ("test_data_path", "label_path")}
    files = {f"--{name}": Path(path) for name, path in given.items() if path is not None}
    for depth, model in enumerate(reversed(adapter_stack(args.model_path))):
        role = "--model_path" + " of its base" * depth
        found = sorted(path for pattern in MODEL_FILES for path in Path(model).glob(pattern) if path.is_file())
        files |= {f"{role} {path.name}": path for path in found}
    if Path(args.model_path).is_dir():
        del flags["model_path"]
    hashes = {role: _content(path) for role, path in files.items()}
    return {"flags": flags, "files": {role: {"path": str(path), "hash": hashes[role]} for role, path in files.items()}}


def _content(path: Path) -> str:
    weights = path.suffix in (".safetensors", ".bin") and not path.name.startswith("adapter_")
    return sample_hash(path) if weights else file_hash(path)


def texts_from_stdin() -> Iterator[tuple[str, str]]:
    """The texts of standard input, one a line, each as soon as it is there, behind what to call it in an error.

    Raises:
        UserError: it is closed, or a line is not UTF-8.
    """
    if sys.stdin is None:
        raise UserError("--text -: standard input is closed")
    for number, raw in enumerate(sys.stdin.buffer, start=1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"standard input:{number}: byte 0x{raw[error.start]:02x} is not UTF-8") from error
        for text in filter(None, map(str.strip, line.split("\r"))):  # which ended lines once
            yield f"standard input:{number}", text


def interact(predictor: Predictor) -> None:
    """Ask for texts until quit, exit or Ctrl-D."""
    import readline  # noqa: F401  (arrow keys and history in input())

    if sys.stdin is None:
        raise UserError("--interactive: standard input is closed")
    task = predictor.task
    print(f"task {task.name}: {', '.join(task.labels) or 'a case as one line of JSON'}\nA text, or quit:")
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            print()
            return
        except UnicodeDecodeError as error:
            print(f"  not UTF-8 ({error.reason})")
            continue
        if text.casefold() in ("quit", "exit"):
            return
        try:
            if text:
                print(shown(predictor.predict(task.asked_in(text, "that")), task.sampling is not None))
        except (ValueError, UserError) as error:
            print(f"  {error}")


def shown(prediction: Prediction, free: bool = False, most: int = 5) -> str:
    """A prediction as a person reads it: labels, and the `most` probable ones with their probabilities; or, where free
    text is written, that text."""
    confidence = f"  ({prediction.confidence:.0%})" if prediction.confidence is not None else ""
    cut = "  (the text was too long and was cut)" if prediction.truncated else ""
    if free:
        return f"{visible(prediction.completion)}{cut}"
    lines = [f"  {prediction.in_words(f'no label in {prediction.completion!r}')}{confidence}{cut}"]
    if prediction.label_set is not None:
        lines.append(f"  set: {prediction.set_in_words}")
    ranked = sorted((prediction.probabilities or {}).items(), key=lambda item: -item[1])
    lines += [f"    {share:>6.1%}  {'█' * round(share * 30):<30}  {label}" for label, share in ranked[:most]]
    return "\n".join(lines)


if __name__ == "__main__":
    # Edit here, or pass the same names as flags: a flag wins.
    settings = dict()
    run(main, Args, settings)

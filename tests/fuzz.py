"""Hostile input by the thousands: each is read right, or refused in one line, and never a traceback.

    python -m tests.fuzz                        # 10,000 inputs, spread over all kinds, and a table of what came of them
    python -m tests.fuzz --kinds labels flags --inputs 500 --first_seed 1

Hypothesis makes the inputs and shows the smallest one that breaks something. tests/test_fuzz.py runs a few of each kind.
"""

import copy
import hashlib
import io
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

import download
import inference
import main_grpo
import main_SFT
import merge_lora
from data.answers import AnswerTrie
from data.arguments import UserError, flag, one_line, parse_args, run
from data.contract import Contract, check_run_settings, contract_for
from data.corpus import Corpus, CorpusFile, added, begin_or_continue, finished_parts, part_path
from data.encoding import Encoder
from data.engine.models import adapter_stack, is_encoder
from data.learning.checkpoints import find_checkpoint
from data.loading import Example
from data.predicted_runs import read_run
from data.prediction_files import PredictionFile
from data.prediction_rows import measure, rows_of
from data.rendering import PromptIds
from data.report.analyses import read_attention
from data.report.charts import training_figure
from data.report.heat_map import heat_map_page
from data.report.model_card import write_model_card
from data.report.page import render
from data.report.run_files import read_run_file
from data.report.sections import report_data
from data.report.sources import read_sources
from data.report.words import Words
from data.sampling import Sampling
from data.tasks import BUILT_IN_TASKS, resolve_task
from scripts import compare
from tests.conftest import make_tokenizer
from tests.hostile_files import check_data_file, hostile_files
from tests.hostile_words import (
    check_answer,
    check_archive,
    check_text,
    hostile_answers,
    hostile_archives,
    hostile_texts,
)

Check = Callable[[Any, Path], None]  # an input, and an empty folder; a `UserError` refuses it

# --- JSON -----------------------------------------------------------------------------------------------------------

_ODD_VALUES = st.sampled_from(
    (None, True, -1, 0, 10**30, -(10**400), 1e308, float("nan"), float("inf"), "", "8", "nan", "\ud800", "\0", "../..",
     [], {}, [None], {"": None}, "x" * 5000, json.loads("[" * 400 + "]" * 400))
)  # fmt: skip
_VALUES = _ODD_VALUES | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


def _places(value: Any, place: tuple = ()) -> Iterator[tuple]:
    """Where in a JSON value there is something: `{"a": [1]}` -> ("a",), ("a", 0)."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*place, key)
        yield from _places(item, (*place, key))


@st.composite
def hostile_json(draw, content: Any) -> bytes:
    """A JSON file in which something is another thing, missing or too much, or that is broken."""
    changed = copy.deepcopy(content)
    for _ in range(draw(st.integers(0, 2))):
        if not (places := list(_places(changed))):
            break
        *above, key = draw(st.sampled_from(places))
        holder = changed
        for step in above:
            holder = holder[step]
        match draw(st.sampled_from(("replace", "delete", "add"))):
            case "replace":
                holder[key] = copy.deepcopy(draw(_VALUES))  # it may be changed next
            case "delete":
                del holder[key]
            case "add" if isinstance(holder, dict):
                holder[draw(st.text(max_size=6))] = copy.deepcopy(draw(_VALUES))
            case "add":
                holder.insert(key, copy.deepcopy(draw(_VALUES)))
    whole = json.dumps(changed).encode()
    match draw(st.sampled_from(("whole", "whole", "whole", "cut", "bytes", "value"))):
        case "cut":
            return whole[: draw(st.integers(0, len(whole)))]
        case "bytes":
            place = draw(st.integers(0, len(whole)))
            return whole[:place] + draw(st.binary(min_size=1, max_size=4)) + whole[place + draw(st.integers(0, 3)) :]
        case "value":
            return json.dumps(draw(_VALUES)).encode()
    return whole


# --- task.json ------------------------------------------------------------------------------------------------------


@cache
def _task_json() -> dict[str, Any]:
    task = BUILT_IN_TASKS["goemotions-group"]
    with tempfile.TemporaryDirectory() as folder:
        Contract(
            task, objective="classify", head="linear", thresholds=dict.fromkeys(task.labels, 0.4), temperature=1.5,
            base_model="models/base", base_fingerprint="0123456789abcdef",
        ).save(folder)  # fmt: skip
        return json.loads((Path(folder) / "task.json").read_text(encoding="utf-8"))


@cache
def _task_json_of_summaries() -> dict[str, Any]:
    prompt = PromptIds((1, 2), (3,), "", 4)
    with tempfile.TemporaryDirectory() as folder:
        Contract(
            BUILT_IN_TASKS["emotion-summary-zh"], max_length=4096, sampling=Sampling(top_k=0), prompt=prompt,
        ).save(folder)  # fmt: skip
        return json.loads((Path(folder) / "task.json").read_text(encoding="utf-8"))


def check_task_json(content: bytes, folder: Path) -> None:
    """What is read is the same when it is written and read again."""
    (folder / "task.json").write_bytes(content)
    contract = contract_for(str(folder))
    contract.save(folder / "again")
    assert Contract.load(folder / "again") == contract


# --- the other files of a run ---------------------------------------------------------------------------------------


@dataclass
class _RunArgs:
    """Flags of a run, as far as checkpoints look at them."""

    output_dir: str
    resume_from_checkpoint: str = "auto"
    seed: int = 42
    train_data_path: str | None = None
    dev_data_path: str | None = None
    label_path: str | None = None
    model_path: str | None = None
    tuning: str = "lora"


def _go_on(folder: Path) -> None:
    find_checkpoint(_RunArgs(str(folder)), ("output_dir",), {})


_SCORES = {"n": 2, "accuracy": 0.5, "f1_macro": 0.4, "f1_micro": 0.5, "jaccard": 0.5, "invalid_rate": 0.0, "seed": 1,
           "per_label": {"negative": {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}}}  # fmt: skip
_STATE = {
    "global_step": 4, "best_global_step": 4, "best_metric": 0.5, "best_model_checkpoint": "out/checkpoint-4",
    "log_history": [{"step": 2, "epoch": 0.5, "loss": 1.0, "learning_rate": 1e-4},
                    {"step": 4, "epoch": 1.0, "eval_loss": 0.9, "eval_f1_macro": 0.5, "eval_accuracy": 0.5}],
}  # fmt: skip
_ROW = {"id": "1", "text": "so glad", "gold": ["positive"], "labels": ["positive"], "probabilities": None,
        "confidence": 0.9, "valid": True, "completion": "positive", "truncated": False}  # fmt: skip
_SETTINGS = {"flags": {"limit": None}, "files": {"test file": {"path": "test.tsv", "hash": "0123456789abcdef"}}}

_SCORE = {"accuracy": 0.5, "f1_macro": 0.5, "accuracy_interval": [0.25, 0.75], "f1_macro_interval": [0.25, 0.75]}
_FLIP = {
    "id": "1",
    "text": "so glad",
    "perturbed": "so glda",
    "gold": ["positive"],
    "before": ["positive"],
    "after": [],
}
_ROBUSTNESS = {
    "model_path": "out", "test_data_path": "test.tsv", "task": "goemotions-group", "n": 4, "seed": 42, "language": "en",
    "confidence_level": 0.95, "texts_predicted": 8, "clean": _SCORE, "robustness_score": 0.9,
    "robustness_score_interval": [0.8, 1.0], "robustness_score_is": "what is left",
    "perturbations": {"typos": {"title": {"en": "typing errors", "zh": "键盘误触"}, "strengths": [
        {"strength": 0.1, "changed": 1.0, "flips": 0.25, "examples": [_FLIP], **_SCORE}]}},
}  # fmt: skip
_WEIGHTS = {"attention": [0.1, 0.2], "rollout": [0.1, 0.2], "gradient_x_input": [-0.5, 0.1], "deletion": [0.5, -0.1]}
_ATTENTION = {
    "model_path": "out", "task": "goemotions-group", "objective": "generate", "layers": 1, "heads": 1, "note": "",
    "methods": list(_WEIGHTS), "top_words": {"positive": {name: [["glad", 0.5, 2]] for name in _WEIGHTS}},
    "texts": [{"id": "1", "text": "so glad", "gold": ["positive"], "labels": ["positive"], "words": ["so", "glad"],
               "spans": [[0, 2], [3, 7]], "truncated": False,
               "share_on_text": {"positive": {"attention": 0.3, "rollout": 0.3, "gradient_x_input": 0.3}},
               "explanations": {"positive": _WEIGHTS | {"by_layer": [[0.1, 0.2]], "by_head": [[[0.1, 0.2]]]}}}],
}  # fmt: skip


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _card(folder: Path) -> None:
    write_model_card(folder)


def _curves(folder: Path) -> None:
    training_figure(read_run_file(folder, "trainer_state.json"))


def _report(folder: Path) -> None:
    render(report_data(read_sources([str(folder)]), worst=20), Words("en"))


def _predictions(folder: Path) -> None:
    contract = Contract.load(folder)
    measure(rows_of(folder / "predictions.jsonl", contract.task), contract)


def _partial(folder: Path) -> None:
    """Whatever the file began with, what is in it then are right rows."""
    example, task = Example("1", "so glad", ("positive",)), BUILT_IN_TASKS["goemotions-group"]
    PredictionFile(folder, [example], task, _SETTINGS).close()
    assert (folder / "predictions.partial.jsonl").read_bytes() in (b"", _line(_ROW))


_CORPUS = Corpus((CorpusFile("a.tsv", 1, "0" * 64),), rows=1, parts=1)


def _corpus(folder: Path) -> None:
    begin_or_continue(folder, _CORPUS, _SETTINGS)


def _part(folder: Path) -> None:
    """Whatever stands beside a part, it is whole or it is not."""
    part_path(folder, 1, 1).write_bytes(_line(_ROW))
    try:
        found = finished_parts(folder, _CORPUS, _SETTINGS)
    finally:
        part_path(folder, 1, 1).unlink()
    added([beside["counts"] for beside in found.values()], BUILT_IN_TASKS["goemotions-group"])


# file -> what a run has in it, and what reads it
RUN_FILES: dict[str, tuple[Any, tuple[Callable[[Path], Any], ...]]] = {
    "args.json": (
        {"output_dir": "out", "seed": 42, "learning_rate": 1e-4, "model_path": "models/base", "num_generations": 8},
        (_card, _report, lambda folder: check_run_settings(folder / "args.json", {"seed": 42, "cot": False}, ())),
    ),
    "trainer_state.json": (_STATE, (_card, _curves, _report)),
    "checkpoint-4/trainer_state.json": (_STATE, (_go_on,)),
    "checkpoint-4/task.json": (_task_json(), (_go_on,)),
    "train_results.json": (
        {"steps": 4, "epochs": 1.0, "best_metric": 0.5, "metric_for_best": "f1_macro", "best_step": 4,
         "trainable_parameters": 10, "all_parameters": 100, "seconds_since_resumed": 3.5}, (_card, _report, _go_on),
    ),
    "data_report.json": ({"rows": {"train": 3, "dev": 1, "test": 0}, "train_label_counts": {"negative": 3}, "train_cases": 3}, (_card, _report)),
    "test_results.json": (_SCORES, (_card, _report, lambda folder: compare.summary(compare.read_runs([str(folder)], False)[str(folder)]))),
    "adapter_config.json": (
        {"base_model_name_or_path": "models/base", "r": 8, "lora_alpha": 16, "peft_type": "LORA"},
        (_card, lambda folder: adapter_stack(str(folder))),
    ),
    "config.json": ({"model_type": "qwen2", "hidden_size": 8}, (lambda folder: is_encoder(str(folder)),)),
    "predictions.jsonl": (_ROW, (_predictions, read_run, _report)),
    "inference_args.json": (
        {"flags": {"model_path": "out", "test_data_path": "test.tsv", "limit": 3, "task": None},
         "predictions": hashlib.sha256(_line(_ROW)).hexdigest()}, (_report,),
    ),
    "robustness_result.json": (_ROBUSTNESS, (_report,)),
    "attention.json": (_ATTENTION, (_report, lambda folder: heat_map_page(read_attention(folder / "attention.json")))),
    "predictions.partial.json": (_SETTINGS, (_partial,)),
    "predictions.partial.jsonl": (_ROW, (_partial,)),
    "corpus.json": (_SETTINGS, (_corpus,)),
    "predictions-00001-of-00001.json": (
        _SETTINGS | {"first_row": 1, "last_row": 1, "rows": 1, "sha256": hashlib.sha256(_line(_ROW)).hexdigest(),
                     "counts": {"rows": 1, "none": 0, "invalid": 0, "truncated": 0, "abstained": 0, "labels": {"positive": 1}}},
        (_part,),
    ),
}  # fmt: skip


@st.composite
def hostile_run_files(draw) -> tuple[str, bytes]:
    """A file of a run, and what it holds."""
    name = draw(st.sampled_from(sorted(RUN_FILES)))
    return name, draw(hostile_json(RUN_FILES[name][0]))


def check_run_file(case: tuple[str, bytes], folder: Path) -> None:
    """All that read the file do."""
    name, content = case
    (folder / "task.json").write_text(json.dumps(_task_json()), encoding="utf-8")
    (folder / "predictions.partial.jsonl").write_bytes(_line(_ROW))
    (folder / "predictions.partial.json").write_text(json.dumps(_SETTINGS), encoding="utf-8")
    (folder / "predictions.jsonl").write_bytes(_line(_ROW))
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    refusals = []
    for read in RUN_FILES[name][1]:
        try:
            read(folder)
        except UserError as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]


# --- labels ---------------------------------------------------------------------------------------------------------


@cache
def _tokenizer():
    return make_tokenizer()


_WORDS = (
    "joy",
    "fear",
    "anger (mild)",
    "very sad.",
    "喜悦",
    "mixed: both",
    "1",
    "-1.0",
    "none",
    "e\u0301cart",
    "ﬁne",
    "a/b",
)
_ODD_WORDS = (
    "Joy", "...", "<|im_end|>", "</think>", "<answer>", "{text}", "{labels}", "cafe\u0301", "café", "很，好", "负面、",
    "a\tb", "\u200b", "␂", "␃", "", " ", "a" * 300, "<a>", "[SEP]", "？", "!",
)  # fmt: skip


@st.composite
def hostile_labels(draw) -> bytes:
    """The content of a labels.txt."""
    labels = draw(st.lists(st.sampled_from(_WORDS), min_size=1, max_size=6, unique=True))
    for _ in range(draw(st.integers(0, 2))):
        labels.insert(draw(st.integers(0, len(labels))), draw(st.sampled_from(_ODD_WORDS) | st.text(max_size=6)))
    content = "\n".join(labels).encode("utf-8", "surrogatepass")
    return content + draw(st.sampled_from((b"", b"", b"\n", b"\r\n", b"\xff", b"\0")))


def check_labels(content: bytes, folder: Path) -> None:
    """Every label is written as tokens that the trie allows, and read back as itself, alone and behind another."""
    (folder / "labels.txt").write_bytes(content)
    task = resolve_task(None, str(folder / "labels.txt"))
    encoder = Encoder(task, _tokenizer())
    trie = AnswerTrie(encoder)
    answers = [(label,) for label in task.labels] + [(task.labels[0], label) for label in task.labels[1:]]
    for answer in answers:
        ids, place = encoder.target_ids(answer), trie.root
        for token in ids:
            assert token in place.children, (answer, ids)
            place = place.children[token]
        assert not place.children
        prediction = task.parse(encoder.decode(ids))
        assert (prediction.labels, prediction.valid) == (answer, True), prediction


# --- flags ----------------------------------------------------------------------------------------------------------

STAGES = {"main_SFT.py": main_SFT.Args, "main_grpo.py": main_grpo.Args, "inference.py": inference.Args,
          "merge_lora.py": merge_lora.Args, "download.py": download.Args}  # fmt: skip
_NUMBERS = ("0", "-1", "1", "8", "1e-300", "1e300", "1e30", "nan", "inf", "-inf", "1e999", "0.5", "1.5", "9" * 30,
            "9" * 5000, "1_000", "１", " 1", "0x10", "")  # fmt: skip
_PATHS = ("", ".", "/", "~", "~/x", "~nobody/x", "a\nb", "\x1b[2J", "a" * 5000, "../../x", "-", "/dev/null", "/proc/1/mem",
          "喜", "a b", "$(id)", "hub/id", "a/b/c")  # fmt: skip


_ARGV = st.characters(exclude_characters="\0", exclude_categories=("Cs",))  # what a command line can hold


def _choices(wanted: Any) -> list[str]:
    """The values that a field of this type may be chosen from."""
    types = get_args(wanted) if isinstance(wanted, UnionType) else (wanted,)
    return [str(value) for kind in types if get_origin(kind) is Literal for value in get_args(kind)]


# stage -> its flags with their choices; looked up before anything is parsed, which changes the fields' types
FLAGS = {stage: [(each.name, _choices(each.type)) for each in fields(args)] for stage, args in STAGES.items()}


@st.composite
def hostile_flags(draw) -> tuple[str, list[str]]:
    """A stage and flags for it."""
    stage = draw(st.sampled_from(sorted(STAGES)))
    line = []
    for name, choices in draw(st.lists(st.sampled_from(FLAGS[stage]), min_size=1, max_size=4)):
        known = st.sampled_from((*choices, "on", "off", "1", "8", "0.5"))
        value = draw(known | st.sampled_from((*_NUMBERS, *_PATHS, "maybe")) | st.text(max_size=6, alphabet=_ARGV))
        line += draw(st.sampled_from(([f"--{name}", value], [f"--{name}={value}"], [f"--{name}"])))
    if draw(st.integers(0, 3)):  # what is needed is there
        line += ["--model_path", "hub/id", "--train_data_path", "x", "--task", "sst2"]
        line += {"inference.py": ["--demo"], "download.py": ["--model", "hub/id"]}.get(stage, [])
    elif stage == "merge_lora.py":
        line += ["--training_output_dir", "x"]
    return stage, line


def check_flags(case: tuple[str, list[str]], folder: Path) -> None:
    """They are taken or refused before anything is read or written."""
    stage, line = case
    with chdir(folder):
        parse_args(STAGES[stage], {}, "", line)
    assert not list(folder.iterdir())


def check_file(case: tuple[str, bytes], folder: Path) -> None:
    """See `check_data_file`."""
    if not check_data_file(*case, folder):
        raise UserError("refused")


# --- running --------------------------------------------------------------------------------------------------------

KINDS: dict[str, tuple[SearchStrategy, Check]] = {
    "data files": (hostile_files(), check_file),
    "task.json": (hostile_json(_task_json()), check_task_json),
    "task.json of summaries": (hostile_json(_task_json_of_summaries()), check_task_json),
    "run files": (hostile_run_files(), check_run_file),
    "labels": (hostile_labels(), check_labels),
    "flags": (hostile_flags(), check_flags),
    "answers": (hostile_answers(), check_answer),
    "texts": (hostile_texts(), check_text),
    "archives": (hostile_archives(), check_archive),
}


def trying(kind: str, outcomes: Counter) -> Callable[[Any], None]:
    """A function that has one input of a kind checked, and counts whether it was `taken` or `refused`."""
    _, check = KINDS[kind]

    def try_one(case) -> None:
        quiet = redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO())
        with tempfile.TemporaryDirectory() as folder, quiet[0], quiet[1]:
            try:
                check(case, Path(folder))
            except UserError as error:
                line = one_line(str(error), 1000)
                assert line.strip(), "a refusal that says nothing"
                assert line.isprintable()
                outcomes["refused"] += 1
            else:
                outcomes["taken"] += 1

    return try_one


def attack(kind: str, inputs: int, first_seed: int | None = None) -> Counter:
    """How many of so many inputs of a kind were `taken`, and how many `refused` with a line.

    Args:
        kind: one of `KINDS`.
        inputs: how many.
        first_seed: of the inputs; None = the same ones each time.

    Raises:
        Exception: what an input broke, with the smallest such input in Hypothesis' note.
    """
    outcomes: Counter = Counter()
    try_one = settings(
        max_examples=inputs, deadline=None, database=None, derandomize=first_seed is None,
        suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink),
    )(given(KINDS[kind][0])(trying(kind, outcomes)))  # fmt: skip
    (seed(first_seed)(try_one) if first_seed is not None else try_one)()
    return outcomes


@dataclass
class Args:
    kinds: list[str] = flag(list(KINDS), f"of {', '.join(KINDS)}")
    inputs: int = flag(10_000, "inputs of all kinds together")
    first_seed: int | None = flag(None, "another seed makes other inputs (default: the same ones each time)")

    def __post_init__(self):
        for kind in self.kinds:
            if kind not in KINDS:
                raise UserError(f"--kinds {kind}: must be one of {', '.join(KINDS)}")


def main(args: Args) -> None:
    os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"  # nobody answers
    share = -(-args.inputs // len(args.kinds))
    print(f"{'kind':<12}{'inputs':>8}{'taken':>8}{'refused':>9}{'seconds':>9}")
    for kind in args.kinds:
        begin = time.perf_counter()
        outcomes = attack(kind, share, args.first_seed)
        seconds = time.perf_counter() - begin
        print(
            f"{kind:<12}{outcomes.total():>8}{outcomes['taken']:>8}{outcomes['refused']:>9}{seconds:>9.1f}", flush=True
        )


if __name__ == "__main__":
    run(main, Args, {})

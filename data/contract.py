"""task.json: what a trained directory promises about how it was trained, and inference obeys. (no torch)"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag, TypeAdapter, ValidationError

from data.arguments import UserError, one_line, spelled
from data.calibration import Activation, Decision
from data.conformal import Promise, check_rows
from data.encoding import Encoder, Objective, PromptEncoder
from data.files import ADAPTER_FILE, TASK_FILE, read_json, write_json
from data.labels import LabelTask
from data.published import recommended_settings, recommended_tuning
from data.rendering import PromptIds
from data.sampling import Sampling
from data.summaries.encoding import SummaryEncoder
from data.summaries.task import KIND, SummaryTask
from data.tasks import Task, check_same_labels, of_built_in, resolve_task, with_none

Format = Literal["bf16", "fp16", "fp32"]  # of numbers
Precision = Literal["auto", "bf16", "fp16", "fp32"]  # as `--precision` asks for one
FORMAT_VERSION = 1
DEFAULT_MAX_LENGTH = 512
HASHES = "content_hashes"  # beside the flags in args.json: what was in the files that they name
PROCESSES = "processes"  # also there: in how many the run began
EARLIER_SETTINGS = {"optimizer": "adamw", "freeze_embeddings": False}  # what runs did before there were such flags
_LIBRARIES = ("torch", "transformers", "trl", "peft")


def _kind_of_task(content: Any) -> str:
    kind = content.get("kind") if isinstance(content, dict) else getattr(content, "kind", None)
    return KIND if kind == KIND else ""


_StoredTask = Annotated[
    Annotated[LabelTask, Tag("")] | Annotated[SummaryTask, Tag(KIND)], Discriminator(_kind_of_task)
]  # a task.json is checked as that of its kind


def library_versions() -> dict[str, str]:
    """The libraries that a run's result may depend on, as they are installed."""
    return {name: metadata.version(name) for name in _LIBRARIES}


@dataclass(frozen=True)
class Contract:
    """The content of a `task.json`.

    Attributes:
        task: labels, prompt template, kind.
        cot: whether answers carry reasoning.
        objective: "generate" (the model writes the labels), "classify" (a head on it tells them apart) or "score" (the
            labels are compared as answers).
        head: shape of the classifier head ("linear", "mlp"), None without one.
        thresholds: label -> probability from which it is predicted, None where nothing was calibrated.
        temperature: divides the scores before they become probabilities (1.0 = not calibrated).
        coverage: what sets of labels were calibrated for, None where nothing is promised.
        decide: what the labels are where they are written: those of the answer, or those whose probability in all
            answers reaches their threshold (in a single-label task the most probable one).
        max_length: tokens of prompt and answer together.
        sampling: how an answer is drawn that is free text, of at most so many tokens; None where answers are labels.
        prompt: the words around a text as token ids, as they were when the run began; None = as the tokenizer spells
            them now (an untuned model, runs of earlier versions).
        base_model: the model that was fine-tuned, as the user named it.
        base_revision: its revision on the hub, None for a folder.
        base_fingerprint: tells its weights from others (`data.engine.fingerprints`), None where no adapter needs them.
        precision: the number format it was trained in; None = not noted.
        data_hashes: flag -> SHA-256 of the file it named, of the files that were learnt from; None where not noted.
        seed: the run's seed.
        library_versions: the libraries the run was made with.

    Raises:
        ValueError: values that no run can have.
    """

    __pydantic_config__ = {"strict": True, "extra": "forbid", "allow_inf_nan": False}  # noqa: RUF012  (of `load`)

    task: _StoredTask
    cot: bool = False
    objective: Objective = "generate"
    head: Literal["linear", "mlp"] | None = None
    thresholds: dict[str, float] | None = None
    temperature: float = 1.0
    coverage: Promise | None = None
    decide: Decision = "answer"
    max_length: int = DEFAULT_MAX_LENGTH
    sampling: Sampling | None = None
    prompt: PromptIds | None = None
    base_model: str = ""
    base_revision: str | None = None
    base_fingerprint: str | None = None
    precision: Format | None = None
    data_hashes: dict[str, str] | None = None
    seed: int = 42
    library_versions: dict[str, str] = field(default_factory=library_versions)

    def __post_init__(self):
        if not 1 <= self.max_length < 2**31:
            raise ValueError(f"max_length {self.max_length}: must be at least 1 and below 2**31")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature {self.temperature}: must be above 0 and finite")
        if self.head is not None and self.objective != "classify":
            raise ValueError(f"head {self.head}: objective {self.objective} has none")
        if self.objective not in self.task.objectives:
            raise ValueError(f"objective {self.objective}: task {self.task.name} has generate alone")
        if (self.sampling is None) != (self.task.sampling is None):
            raise ValueError(f"sampling: {'missing' if self.sampling is None else 'nothing is drawn'} with this task")
        if self.cot and self.sampling is not None:
            raise ValueError("cot: a summary has no reasoning before it")
        if self.cot and self.objective != "generate":
            raise ValueError(f"cot: objective {self.objective} writes no reasoning")
        if self.task.allow_none and self.objective == "score":
            raise ValueError("allow_none: objective score asks which of the labels is right")
        if self.coverage is not None and (self.cot or self.sampling is not None):
            raise ValueError("coverage: only labels without reasoning have probabilities")
        if self.decide == "thresholds" and not self.writes_labels:
            raise ValueError("decide thresholds: is for labels that are written, without reasoning before them")
        if self.thresholds is not None:
            if set(self.thresholds) != set(self.task.labels):
                raise ValueError(f"thresholds: are of {list(self.thresholds)}, not of the labels")
            for label, threshold in self.thresholds.items():
                if not 0 <= threshold <= 1:
                    raise ValueError(f"threshold of {label} is {threshold}: must be from 0 to 1")

    @property
    def activation(self) -> Activation:
        """What turns the labels' scores into probabilities: labels compete, but where a head or an answer may have
        several; where each is compared as an answer of its own, they always do."""
        several = self.objective != "score" and self.task.kind == "multi_label"
        return "sigmoid" if several else "softmax"

    @property
    def writes_labels(self) -> bool:
        """Whether an answer is labels alone, so that all answers can be listed, and weighed."""
        return self.objective == "generate" and not self.cot and self.sampling is None

    def encoder(self, tokenizer) -> PromptEncoder:
        """Texts -> token ids under this contract; `tokenizer` is a Hugging Face tokenizer.

        Raises:
            UserError: see `PromptEncoder`.
        """
        if isinstance(self.task, SummaryTask):
            return SummaryEncoder(self.task, tokenizer, self.max_length, self.sampling.max_new_tokens, self.prompt)
        return Encoder(self.task, tokenizer, self.cot, self.max_length, self.objective, self.prompt)

    def promise(self, level: float, model_path: str) -> Promise:
        """The promise that `--coverage` asks for.

        Raises:
            UserError: it cannot be, or the directory `model_path`, whose contract this is, promises another or none.
        """
        check_rows(level, sys.maxsize)
        self.check_promises()
        if not (Path(model_path) / TASK_FILE).is_file():
            raise UserError(f"--coverage {level}: {model_path} is untuned, and only a trained model promises something")
        again = f"python -m scripts.calibrate --model_path {model_path} --dev_data_path FILE --coverage {level}"
        if self.coverage is None:
            raise UserError(f"--coverage {level}: {model_path} promises nothing yet; {again} does it")
        if self.coverage.level != level:
            raise UserError(
                f"--coverage {level} contradicts {Path(model_path) / TASK_FILE}: calibrated for {self.coverage.level}; "
                f"for another, {again}"
            )
        return self.coverage

    def check_promises(self) -> None:
        """Raise a `UserError` where there is nothing that `--coverage` could be of."""
        if self.sampling is not None:
            raise UserError(f"--coverage: task {self.task.name} has no labels")
        if self.cot:
            raise UserError("--coverage: not of answers with reasoning (--cot), which have no probabilities of labels")

    def frozen(self, encoder: PromptEncoder) -> "Contract":
        """This contract, by which a text is asked about for ever as `encoder` does now."""
        return replace(self, prompt=encoder.prompt)

    def save(self, directory: str | Path) -> None:
        """Write `task.json` into `directory`."""
        content = {"format_version": FORMAT_VERSION, **asdict(self)}
        content["task"] = {**self.task.stored(), "template_hash": self.task.template_hash}
        write_json(Path(directory) / TASK_FILE, content)

    @classmethod
    def load(cls, directory: str | Path) -> "Contract":
        """Read `task.json` from `directory`.

        Raises:
            UserError: the file is broken, of a newer format, or its prompt was edited after training.
        """
        path = Path(directory) / TASK_FILE
        content = read_json(path, fields={"format_version": int, "task": dict})
        version = content.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise UserError(f"{path}: format version {version}; this EmoTune reads version {FORMAT_VERSION}")
        template_hash = content.get("task", {}).pop("template_hash", None)
        contract = _checked(content, path)
        task = of_built_in(contract.task)
        if task.template_hash != template_hash:
            raise UserError(
                f"{path}: the prompt template has hash {task.template_hash}, the model was trained with "
                f"{one_line(template_hash, 60)}"
            )
        return replace(contract, task=task)


@cache
def _schema() -> "TypeAdapter[Contract]":
    """The fields of `Contract` and of its task, and their types, as a schema."""
    return TypeAdapter(Contract)


def _checked(content: dict[str, Any], path: Path) -> Contract:
    """The contract in a task.json, every field of it checked.

    Raises:
        UserError: names the first field that is missing, unknown or of another type, or a value that cannot be.
    """
    try:
        return _schema().validate_json(json.dumps(content))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"] if part not in ("", KIND)) or "it"
        found = "" if first["type"] in ("missing", "value_error") else f" is {one_line(repr(first['input']), 60)}"
        reason = one_line(first["msg"].removeprefix("Value error, "))
        raise UserError(f"{path}: not a task.json that EmoTune wrote ({place}{found}: {reason})") from error


def contract_for(
    model_path: str,
    task_name: str | None = None,
    label_path: str | None = None,
    cot: bool | None = None,
    max_length: int | None = None,
    objective: Objective | None = None,
    sampling: Mapping[str, Any] | None = None,
    allow_none: bool | None = None,
) -> Contract:
    """The contract to predict under: the trained directory's own, or one made from flags for an untuned model.

    `sampling` has fields of `Sampling` by name, which take the place of the contract's where they are not None.

    Raises:
        UserError: a flag contradicts the directory's `task.json`, a run has none, or an untuned model comes without
            a task.
    """
    directory = Path(model_path)
    if (directory / TASK_FILE).is_file():
        contract = Contract.load(directory)
        _check_flags(contract, directory / TASK_FILE, task_name, label_path, cot, max_length)
        _check_equal("--objective", objective, contract.objective, directory / TASK_FILE)
        _check_equal("--allow_none", allow_none, contract.task.allow_none, directory / TASK_FILE)
        contract = replace(contract, sampling=drawn_with(contract.sampling, sampling))
        if label_path is not None:  # ids in the user's files are then line numbers of that file
            contract = replace(contract, task=replace(contract.task, published_order=()))
        return contract
    if (directory / ADAPTER_FILE).is_file():
        raise UserError(
            f"--model_path {model_path}: a trained adapter without task.json: its labels and prompt are unknown"
        )
    task = resolve_task(task_name, label_path)
    if task is None:
        raise UserError(
            f"--model_path {model_path}: no task.json there, so this is an untuned model: name --task or --label_path"
        )
    if objective == "classify":
        raise UserError(f"--objective classify: {model_path} is untuned, so it has no head; use score or generate")
    if objective is not None and objective not in task.objectives:
        raise UserError(f"--objective {objective}: task {task.name} is written (generate)")
    task = with_none(task, allow_none, objective or "generate")
    if cot and task.sampling is not None:
        raise UserError(f"--cot: task {task.name} has no reasoning before its answer")
    return Contract(
        task, cot=bool(cot), max_length=max_length or default_max_length(task), base_model=model_path,
        objective=objective or "generate", sampling=drawn_with(task.sampling, sampling),
    )  # fmt: skip


def decided_by(contract: Contract, decide: Decision | None) -> Contract:
    """`contract` with the labels of written answers decided as `--decide` says; None = as they are.

    Raises:
        UserError: it is asked for where no labels are written.
    """
    if decide is None:
        return contract
    if not contract.writes_labels:
        what = "reasons before its answer" if contract.cot else f"has objective {contract.objective}"
        what = what if contract.sampling is None else f"writes free text (task {contract.task.name})"
        raise UserError(f"--decide {decide}: is for models that write labels alone; this one {what}")
    return replace(contract, decide=decide)


def default_max_length(task: Task) -> int:
    """What `--max_length` is for a task where neither a flag nor a task.json says so."""
    return recommended_settings(task.name, recommended_tuning(task.name)).get("max_length", DEFAULT_MAX_LENGTH)


def drawn_with(sampling: Sampling | None, asked: Mapping[str, Any] | None) -> Sampling | None:
    """`sampling` with the values that flags of these names ask for; None = not asked.

    Raises:
        UserError: a value that cannot be, or nothing is drawn under this contract.
    """
    given = {name: value for name, value in (asked or {}).items() if value is not None}
    if not given:
        return sampling
    if sampling is None:
        raise UserError(f"--{next(iter(given))}: is for tasks whose answer is free text (emotion-summary)")
    try:
        return replace(sampling, **given)
    except ValueError as error:
        raise UserError(f"--{error}") from error


def _check_flags(
    contract: Contract,
    path: Path,
    task_name: str | None,
    label_path: str | None,
    cot: bool | None,
    max_length: int | None,
) -> None:
    asked = resolve_task(task_name, label_path)
    if asked is not None:
        source = f"--label_path {label_path}" if label_path else f"--task {task_name}"
        check_same_labels(source, asked.labels, str(path), contract.task.labels)
        if task_name is not None and task_name not in (contract.task.name, contract.task.kind):
            raise UserError(f"--task {task_name} contradicts {path}: trained as {contract.task.name}")
    _check_equal("--cot", cot, contract.cot, path)
    _check_equal("--max_length", max_length, contract.max_length, path)


def _check_equal(flag: str, asked: Any, trained: Any, path: Path) -> None:
    if asked is not None and asked != trained:
        raise UserError(f"{flag} {spelled(asked)} contradicts {path}: trained with {spelled(trained)}")


def same_setting(before: Any, now: Any) -> bool:
    """Whether a setting is what it was in the JSON of a run; some switches were "on" or "off" there."""
    return before == now or (isinstance(now, bool) and before == spelled(now))


def check_run_settings(path: str | Path, now: dict[str, Any], may_change: Sequence[str]) -> None:
    """Raise a `UserError` naming the first setting of a run to be continued that is not what it began with.

    Args:
        path: the JSON file in which the run wrote its settings when it began.
        now: the settings it is to go on with.
        may_change: names that do not change what is learnt.
    """
    path = Path(path)
    try:
        before = read_json(path, missing_ok=True)
    except UserError as error:
        raise UserError(f"{error}, so the run there cannot be continued; choose another --output_dir") from error
    before = EARLIER_SETTINGS | before if before else before
    for name, value in now.items():
        if name not in may_change and name in before and not same_setting(before[name], value):
            raise UserError(
                f"--{name} {spelled(value)}: the run in {path.parent} began with {spelled(before[name])}; give that to "
                "continue it, or choose another --output_dir"
            )


def check_hashes(path: str | Path, settings: Mapping[str, Any], now: Mapping[str, str | None]) -> None:
    """Raise a `UserError` naming the first file that is not as it was when the run to be continued began.

    Args:
        path: the JSON file in which the run wrote its settings when it began; earlier versions noted no hashes in it.
        settings: flag -> path, as it is given now.
        now: flag, or flag/name for a file in a folder -> hash of its content; None = it is not there.
    """
    path = Path(path)
    before = read_json(path, missing_ok=True, fields={HASHES: dict}).get(HASHES, {})
    for name, content in before.items() if now else ():
        if now.get(name) != content:
            flag, _, file = name.partition("/")
            raise UserError(
                f"--{flag} {settings.get(flag)}: {file or 'its content'} has changed since the run in {path.parent} "
                "began; put it back to continue the run, or choose another --output_dir"
            )

"""What the analyses write, as pages read it: robustness_result.json and attention.json, checked whole. (no torch)"""

from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from data.arguments import UserError, one_line
from data.files import read_json

ATTENTION_FILE = "attention.json"
Number = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=10**12)]
Interval = tuple[Number, Number]
Method = Literal["attention", "rollout", "gradient_x_input", "deletion"]

# --- robustness -----------------------------------------------------------------------------------------------------


class Flip(TypedDict):
    id: str
    text: str
    perturbed: str
    gold: list[str] | None
    before: list[str]
    after: list[str]


class Strength(TypedDict):
    strength: Number
    changed: Number
    accuracy: Number
    f1_macro: Number
    accuracy_interval: Interval
    f1_macro_interval: Interval
    flips: Number
    examples: list[Flip]


class Clean(TypedDict):
    accuracy: Number
    f1_macro: Number
    accuracy_interval: Interval
    f1_macro_interval: Interval


class Title(TypedDict):
    en: str
    zh: str


class Perturbation(TypedDict):
    title: Title
    strengths: list[Strength]


class Robustness(TypedDict):
    """What the report shows of a robustness_result.json."""

    model_path: str
    test_data_path: str
    task: str
    n: Count
    clean: Clean
    perturbations: dict[str, Perturbation]
    robustness_score: Number | None
    robustness_score_interval: Interval | None
    robustness_score_is: str


# --- attention ------------------------------------------------------------------------------------------------------


class Explanation(TypedDict):
    attention: list[Number]
    rollout: list[Number]
    gradient_x_input: list[Number]
    deletion: NotRequired[list[Number]]
    by_layer: NotRequired[list[list[Number]]]
    by_head: NotRequired[list[list[list[Number]]]]


class Share(TypedDict):
    attention: Number
    rollout: Number
    gradient_x_input: Number


class ExplainedText(TypedDict):
    id: str
    text: str
    gold: list[str] | None
    labels: list[str]
    words: NotRequired[list[str]]
    spans: list[tuple[Count, Count]]
    truncated: bool
    share_on_text: dict[str, Share]
    explanations: dict[str, Explanation]


class Attention(TypedDict):
    """What is shown of an attention.json."""

    model_path: str
    task: str
    objective: str
    layers: Annotated[int, Field(ge=0, le=10_000)]
    heads: Annotated[int, Field(ge=0, le=10_000)]
    note: str
    methods: list[Method]
    texts: list[ExplainedText]
    top_words: dict[str, dict[Method, list[tuple[str, Number, Count]]]]


# --- reading --------------------------------------------------------------------------------------------------------


def read_robustness(path: str | Path) -> dict[str, Any]:
    """A robustness_result.json.

    Raises:
        UserError: it cannot be read, or a field is missing or of another type than it is written with.
    """
    return _checked(path, Robustness, "scripts/robustness.py")


def read_attention(path: str | Path) -> dict[str, Any]:
    """An attention.json.

    Raises:
        UserError: as in `read_robustness`, or weights that are not those of the words.
    """
    content = _checked(path, Attention, "scripts/attention.py")
    methods = set(content["methods"])
    for label, of_methods in content["top_words"].items():
        if not of_methods.keys() <= methods or not methods.issuperset(Share.__annotations__):
            problem = f"methods are not those of the top_words of {one_line(label, 60)}"
            raise UserError(f"{path}: {problem}; scripts/attention.py did not write it")
    for number, text in enumerate(content["texts"], start=1):
        if problem := _problem(text, content["methods"]):
            raise UserError(f"{path}: text {number}: {problem}; scripts/attention.py did not write it")
    return content


def _problem(text: dict[str, Any], methods: list[str]) -> str | None:
    """What is wrong with a text although all of its parts are of the right type."""
    end = 0
    for begin, behind in text["spans"]:
        if not end <= begin <= behind <= len(text["text"]):
            return "its words do not stand one behind the other"
        end = behind
    for label, explanation in text["explanations"].items():
        if label not in text["share_on_text"]:
            return f"share_on_text lacks the label {one_line(label, 60)}"
        for method in methods:
            if len(explanation.get(method, ())) != len(text["spans"]):
                return f"{method} of the label {one_line(label, 60)} has not a weight for each word"
    return None


def _checked(path: str | Path, shape: type, script: str) -> dict[str, Any]:
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(shape).validate_python(read_json(path))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        message = f"{path}: {one_line(place, 100)}: {one_line(first['msg'])}"
        raise UserError(f"{message}; {script} did not write it") from error

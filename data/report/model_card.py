"""What a finished run tells people: its model card, its training curves, a script that predicts with it. (no torch)

All of it is made from the files in the run's directory, and can be made again at any time. What no file says is left
out.
"""

import json
import math
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from data.contract import Contract
from data.files import (
    ADAPTER_FILE,
    ARGS_FILE,
    DATA_REPORT_FILE,
    RESULTS_FILE,
    STATE_FILE,
    TRAIN_RESULTS_FILE,
    write_text,
)
from data.report.charts import TRAINING_CURVES, draw_training_curves, logged
from data.report.run_files import is_grpo, read_run_file
from data.report.tables import SCORES, is_number, markdown_table
from data.sampling import Sampling

CHECKOUT = Path(__file__).resolve().parents[2]
CARD, EXAMPLE = "README.md", "inference_example.py"
OBJECTIVES = {
    "generate": "the model writes {}",
    "classify": "a head on the model tells the labels apart",
    "score": "the labels are compared as answers",
}

CARD_TEMPLATE = """\
---
{{ card_data }}
---

# {{ title }}
{% for heading, text in sections if text %}
## {{ heading }}

{{ text }}
{% endfor %}"""

EXAMPLE_TEMPLATE = """\
<use>
#
# Set EMOTUNE_HOME to the EmoTune checkout if it is not where it was when this file was written.
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = Path(os.environ.get("EMOTUNE_HOME") or HERE / <checkout>).resolve()

if not (CHECKOUT / "inference.py").is_file():
    sys.exit(f"error: {CHECKOUT} holds no inference.py; set EMOTUNE_HOME to the EmoTune checkout")
STARTED_IN = Path.cwd()
os.chdir(CHECKOUT)  # an adapter may name its base model by a path that counts from there
sys.path.insert(0, str(CHECKOUT))

from data.arguments import UserError  # noqa: E402
<code>"""

USE_OF_LABELS = """\
# Read the labels of texts with the model in this directory:
#
#     python inference_example.py "a text" "another text\""""
CODE_OF_LABELS = """\
from inference import Predictor  # noqa: E402

EXAMPLES = ["The parcel came on Tuesday, a day later than announced.", "We took the train home after the concert."]

texts = sys.argv[1:] or EXAMPLES
try:
    predictions = Predictor(str(HERE)).predict_batch(texts)
except UserError as error:
    sys.exit(f"error: {error}")
for text, prediction in zip(texts, predictions, strict=True):
    print(text)
    print(f"  labels: {prediction.in_words('(none could be read)')}")
    if prediction.confidence is not None:
        print(f"  confidence: {prediction.confidence:.3f}")
    for label, probability in (prediction.probabilities or {}).items():
        print(f"  probability of {label}: {probability:.3f}")
"""

USE_OF_FREE_TEXT = """\
# Write a summary of each case of a file, or of cases of ours, with the model in this directory:
#
#     python inference_example.py cases.jsonl"""
CODE_OF_FREE_TEXT = """\
from data.summaries.cases import read_cases  # noqa: E402
from inference import Predictor  # noqa: E402

try:
    files = [STARTED_IN / path for path in sys.argv[1:]]
    cases = [case for path in files for case in read_cases(path, "cases", summaries_required=False)]
    predictor = Predictor(str(HERE))
    cases = cases or predictor.task.demo
    for case, prediction in zip(cases, predictor.predictions(cases), strict=True):
        print(f"case {case.id}")
        print(prediction.completion or "(nothing was written)")
        if prediction.truncated:
            print("(turns from the middle of the consultation were left out)")
        if not prediction.valid:
            print("(it did not come to its end)")
except UserError as error:
    sys.exit(f"error: {error}")
"""


def write_run_report(output_dir: str | Path) -> None:
    """Write all three; the card last, since it shows the picture and names the script.

    Raises:
        UserError: no task.json in `output_dir`, or a broken file.
    """
    draw_training_curves(output_dir)
    write_inference_example(output_dir)
    write_model_card(output_dir)


# --- model card -----------------------------------------------------------------------------------------------------


def write_model_card(output_dir: str | Path) -> None:
    """`README.md` of a run: what it reads, how it was trained, on what, how good it is, and what nobody measured.

    Raises:
        UserError: no task.json in `output_dir`, or a broken file.
    """
    from huggingface_hub import ModelCard, ModelCardData

    directory = Path(output_dir)
    files = (ARGS_FILE, TRAIN_RESULTS_FILE, DATA_REPORT_FILE, RESULTS_FILE, STATE_FILE, ADAPTER_FILE)
    run = SimpleNamespace(**{Path(name).stem: read_run_file(directory, name, missing_ok=True) for name in files})
    run.contract = contract = Contract.load(directory)
    run.is_grpo = is_grpo(directory, run.args)
    run.draws = run.is_grpo and run.args.get("expectation") != "exact"
    header = ModelCardData(
        base_model=hub_id(contract.base_model),
        library_name="peft" if run.adapter_config else "transformers",
        pipeline_tag=contract.task.pipeline_tag,
        tags=["emotune", contract.task.name, contract.objective],
    )
    picture = f"![Training curves]({TRAINING_CURVES})"
    sections = [
        ("What it reads", _reading(contract)),
        ("How it was trained", _training(run)),
        ("Training curves", picture if (directory / TRAINING_CURVES).is_file() else ""),
        ("Data", _data(run.data_report)),
        ("Results", _results(run)),
        ("Labels", _labels(run)),
        ("How to use it", _usage(directory, contract)),
        ("Limits", "\n".join(f"- {limit}" for limit in _limits(run))),
    ]
    title = _escaped(f"{Path(contract.base_model).name} for {contract.task.name}")
    card = ModelCard.from_template(header, template_str=CARD_TEMPLATE, title=title, sections=sections)
    write_text(directory / CARD, str(card))


def hub_id(name: str) -> str | None:
    """`name` where it can be a model's name on the hub, None where it is, or is meant as, a path.

    >>> hub_id("Qwen/Qwen2.5-7B-Instruct"), hub_id("models/Qwen2.5-7B-Instruct")
    ('Qwen/Qwen2.5-7B-Instruct', None)
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    first = name.split("/")[0]
    is_path = first in ("models", "outputs") or any((folder / first).exists() for folder in (Path.cwd(), CHECKOUT))
    return None if is_path else name


def _escaped(value: Any) -> str:
    """One line that Markdown shows as it is, also in a table."""
    return re.sub(r"([\\`*|<\[\]])", r"\\\1", " ".join(str(value).split()))


def _filled(form: str, *values: Any) -> str | None:
    """`form` with `values` in it, or None where one is missing or not finite."""
    missing = any(value is None or (isinstance(value, float) and not math.isfinite(value)) for value in values)
    return None if missing else form.format(*values)


def _figure(value: Any) -> str | None:
    return _filled("{:,}" if isinstance(value, int) else "{:.4f}", value if is_number(value) else None)


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table without the rows whose second cell is None or empty; "" if none is left."""
    known = [["" if cell is None else _escaped(cell) for cell in row] for row in rows if row[1] not in (None, "")]
    return markdown_table(head, known) if known else ""


def _reading(contract: Contract) -> str:
    task = contract.task
    rows = [
        ("task", task.name),
        ("kind", task.kind_in_words),
        (f"{len(task.labels)} labels", ", ".join(task.labels)),
        (
            "length",
            f"{contract.max_length:,} tokens of prompt and answer; longer {task.unit}s lose {task.what_is_lost}",
        ),
        ("answer", _drawing(contract.sampling)),
        ("reasoning", "before the answer" if contract.cot else None),
        ("labels", "those whose probability reaches their threshold" if contract.decide == "thresholds" else None),
        ("promise", _promise(contract)),
    ]
    return _table(["", ""], rows) + "\n\nThe prompt, and all else that inference keeps to, is in `task.json`."


def _promise(contract: Contract) -> str | None:
    """What its sets of labels are calibrated for."""
    promise = contract.coverage
    return promise and (
        f"--coverage {promise.level:g}: sets that hold this share of the right labels, from a probability of "
        f"{promise.cutoff:.4f} on, calibrated on {promise.rows:,} rows"
    )


def _drawing(sampling: Sampling | None) -> str | None:
    """How free text is drawn."""
    if sampling is None:
        return None
    how = (
        f"temperature {sampling.temperature:g}, top-p {sampling.top_p:g}, top-k {sampling.top_k}"
        if sampling.temperature
        else "the most probable token, always"
    )
    penalty = f"repetition penalty {sampling.repetition_penalty:g}"
    return f"at most {sampling.max_new_tokens:,} tokens; {how}; {penalty}"


def _method(run: SimpleNamespace) -> str:
    if not run.is_grpo:
        return "supervised fine-tuning (SFT)"
    return f"reinforcement learning ({'GRPO' if run.draws else 'exact expectation'})"


def _training(run: SimpleNamespace) -> str:
    contract, args, train = run.contract, run.args.get, run.train_results.get
    versions = asdict(contract)["library_versions"]
    adapter = _filled(", rank {}, alpha {}", run.adapter_config.get("r"), run.adapter_config.get("lora_alpha")) or ""
    seconds = train("seconds_since_resumed", train("seconds"))
    trained, weights = train("trainable_parameters"), train("all_parameters")
    rows = [
        ("base model", contract.base_model),
        ("revision", contract.base_revision),
        ("started from", args("model_path") if args("model_path") != contract.base_model else None),
        ("method", _method(run)),
        ("reward for the labels", args("accuracy_reward")),
        ("objective", f"{contract.objective}: {OBJECTIVES[contract.objective].format(contract.task.written)}"),
        ("head", contract.head),
        ("tuning", _filled("{}" + adapter, args("tuning"))),
        ("learning rate", _filled("{:g}", args("learning_rate"))),
        (
            "batch on each device",
            _filled(f"{{}} {'answer' if run.draws else contract.task.unit}s", args("batch_size")),
        ),
        ("batches a step", args("gradient_accumulation_steps")),
        ("steps", _filled("{:,}", train("steps"))),
        ("epochs", _filled("{:.4g}", train("epochs"))),
        ("best validation score", _filled("{} {:.4f}", train("metric_for_best"), train("best_metric"))),
        ("found at step", _filled("{:,}", train("best_step"))),
        ("seed", contract.seed),
        ("trained parameters", _filled("{:,} of {:,}", trained, weights)),
        ("seconds since it was resumed" if train("resumed_from") else "seconds", _filled("{:,}", seconds)),
        ("number format", train("precision")),
        ("peak memory", _filled("{:,} MiB", train("peak_memory_mib"))),
        ("libraries", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]
    return _table(["", ""], rows)


def _data(report: dict[str, Any]) -> str:
    """Every count of the report, but for those of a split that has no rows, of which nothing was checked."""
    splits = report.get("rows", {})
    counts = {f"{split} rows": count for split, count in splits.items()} | report
    rows = [(name.replace("_", " "), f"{count:,}") for name, count in counts.items() if isinstance(count, int)]
    empty = tuple(f"{split} rows" for split, count in splits.items() if not count)
    return _table(["", ""], [row for row in rows if not row[0].startswith(empty)])


def _results(run: SimpleNamespace) -> str:
    """Scores on the test file; without one, on the validation rows before the first step (if any) and at the best."""
    if run.test_results:
        titles = SCORES | {"n": f"{run.contract.task.unit}s"}
        rows = [(shown, _figure(run.test_results.get(name))) for name, shown in titles.items()]
        return _table(["test file", ""], rows)
    scores = {shown: logged(run.trainer_state, f"eval_{name}") for name, shown in SCORES.items()}
    asked = dict.fromkeys((0, run.trainer_state.get("best_global_step")))
    steps = [step for step in asked if any(step in values for values in scores.values())]
    if not steps:
        best = run.train_results.get("metric_for_best"), _figure(run.train_results.get("best_metric"))
        return _table(["validation rows", "best"], [best])
    rows = [(shown, *(_figure(values.get(step)) for step in steps)) for shown, values in scores.items()]
    return _table(["validation rows", *(f"step {step}" for step in steps)], rows)


def _labels(run: SimpleNamespace) -> str:
    """For each label, its scores on the test file and how many training rows have it."""
    scores, counts = run.test_results.get("per_label", {}), run.data_report.get("train_label_counts", {})
    columns = ("precision", "recall", "f1", "support") if scores else ()
    rows = []
    for label in run.contract.task.labels:
        figures = [_figure(scores.get(label, {}).get(column)) for column in columns]
        rows.append((label, *figures, _figure(counts.get(label, 0 if counts else None))))
    return _table(["label", *columns, "training rows"], rows)


def _usage(directory: Path, contract: Contract) -> str:
    path = directory.resolve()
    path = str(path.relative_to(CHECKOUT) if path.is_relative_to(CHECKOUT) else path)
    given, from_file, call = '"a text"', '--text "a text"', 'predict("a text").labels'
    if contract.sampling is not None:
        given, from_file = "cases.jsonl", "--test_data_path cases.jsonl --output_dir summaries"
        call = 'generate_summary(case_description=["…"], consultation_process=["…", "…"])'
    example = f"\npython {EXAMPLE} {given}  # in this directory" if (directory / EXAMPLE).is_file() else ""
    return f"""```bash
python inference.py --model_path {shlex.quote(path)} {from_file}  # in the EmoTune checkout{example}
```

```python
from inference import Predictor  # in the EmoTune checkout

predictor = Predictor({json.dumps(path, ensure_ascii=False)})
predictor.{call}
```"""


def _limits(run: SimpleNamespace) -> Iterator[str]:
    tested, best = run.test_results.get("n"), run.train_results.get("best_metric")
    if not tested:
        yield "No test file was scored."
    if not tested and best is not None:
        yield "The checkpoint was chosen by its validation scores, which flatters them."
    if tested and tested != run.data_report.get("rows", {}).get("test"):
        yield "Whether rows of the test file also stand in the training file was not checked."
    if not is_number(run.test_results.get("ece")):
        yield "How far its confidence can be trusted was not measured."
    yield from run.contract.task.limits
    yield f"This is one run, with seed {run.contract.seed}: how much the seed matters was not measured."
    yield f"How it reads {run.contract.task.unit}s of another language, source or time than its data was not measured."


# --- example --------------------------------------------------------------------------------------------------------


def write_inference_example(output_dir: str | Path) -> None:
    """`inference_example.py`: predicts with the run it lies in, wherever it is started.

    It knows the way from the run to the checkout around it, so both may move together; a run elsewhere knows where the
    checkout was.

    Raises:
        UserError: no task.json in `output_dir`, or a broken one.
    """
    directory = Path(output_dir).resolve()
    free_text = Contract.load(directory).sampling is not None
    checkout = Path(os.path.relpath(CHECKOUT, directory)) if directory.is_relative_to(CHECKOUT) else CHECKOUT
    use, code = (USE_OF_FREE_TEXT, CODE_OF_FREE_TEXT) if free_text else (USE_OF_LABELS, CODE_OF_LABELS)
    script = EXAMPLE_TEMPLATE.replace("<use>", use).replace("<code>", code)
    write_text(directory / EXAMPLE, script.replace("<checkout>", json.dumps(checkout.as_posix())))

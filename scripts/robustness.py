"""Change the texts of a test file in ways that leave what they say as it is, and see which answers change.

    # a run of main_SFT.py or main_grpo.py: robustness_result.json in outputs/sft/test
    python -m scripts.robustness --model_path outputs/sft --test_data_path data/sample/test.tsv

    # look at the changed texts first: five of each kind, no model
    python -m scripts.robustness --show 5 --task goemotions-original --test_data_path data/sample/test.tsv

    # some kinds, three strengths, the first 200 rows
    python -m scripts.robustness --model_path outputs/sft --test_data_path test.tsv --limit 200 \\
        --perturbations typos emoji --strengths 0.1 0.2 0.4

    # an untuned model
    python -m scripts.robustness --model_path models/smollm2-135m-instruct --task sst2 --objective score \\
        --test_data_path data/sst2/dev.tsv --output_dir outputs/base

Strength is the share of a text's places (words, punctuation marks, ends of sentences) that are changed, at least one.

    synonyms     words for others of the same meaning                                English, Chinese
    paraphrase   "don't" for "do not", 因为 for 由于; a negation stays one           English, Chinese
    typos        a neighbouring key, a letter left out or twice                      English
    same_sound   a character for another that sounds alike                           Chinese
    look_alike   a character for another that looks alike                            Chinese
    swap         two letters or characters of a word change places                   English, Chinese
    punctuation  marks left out, doubled, or written in another way                  English, Chinese
    case         words in capitals, in small letters, or with one capital            English
    width        marks and numbers, in Chinese also letters, in full or half width   English, Chinese
    emoji        an emoji without a mood at the end of a sentence                    English, Chinese

A text that stays the same keeps its answer and is not predicted again. Killed, the same command goes on behind the last
answer; robustness_predictions.jsonl has all of them.
"""

import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from data.arguments import UserError, check_at_least, check_output_dir, flag, run
from data.contract import Precision, contract_for
from data.encoding import Objective
from data.engine.evaluation import predicted_rows
from data.engine.models import check_model_path, pick_device
from data.engine.precision import pick_precision
from data.engine.predictor import Predictor
from data.engine.settings import BackendName, PredictionSettings
from data.files import exclusive, write_json
from data.loading import Example, ExampleFile
from data.perturbing.perturbations import PERTURBATIONS, fitting, main_language
from data.predicted_runs import output_directory
from data.prediction_files import PredictionFile, begun_with
from data.prediction_rows import rows_of
from data.predictions import Prediction
from data.report.tables import markdown_table
from data.robustness import LEVEL, ROBUSTNESS_FILE, Copy, distinct_texts, measure, perturbed_copies
from data.tasks import Task, check_has_labels, resolve_task
from inference import prediction_settings

PREDICTED_FILE = "robustness_predictions.jsonl"  # each distinct text, as predictions.jsonl has them, without gold
UNDECIDING = ("show", "examples")  # flags of ours that decide no answer


@dataclass
class Args:
    model_path: str | None = flag(None, "hub id, or a directory: an untuned model, a run, or a merged model")
    test_data_path: str | None = flag(None, "labelled file whose texts are changed")
    output_dir: str | None = flag(None, "where robustness_result.json goes (default: <model_path>/test for a run)")
    task: str | None = flag(None, "task to ask an untuned model for: a built-in task, single_label or multi_label")
    label_path: str | None = flag(None, "labels.txt of your own task: one label a line, line number = id")
    objective: Objective | None = flag(
        None, "how an untuned model answers: generate = it writes, score = labels are compared (default: generate)"
    )
    backend: BackendName | None = flag(
        None,
        "engine: hf = a language model in Transformers, vllm = one that writes its answers in vLLM, bert = an encoder "
        "(default: hf or bert, as the model is)",
    )
    # how texts are changed
    perturbations: list[str] = flag([], "kinds of change, see above; none = all that the language of the file has")
    strengths: list[float] = flag([0.1, 0.3], "shares of a text's places that are changed, above 0 and up to 1")
    language: Literal["auto", "en", "zh"] = flag(
        "auto", "language of the texts; auto = of each text by its share of Chinese characters"
    )
    seed: int = flag(42, "of the changes and of the bootstrap; the same text is changed in the same way")
    show: int = flag(0, "only print the first N changed texts of each kind and strength; needs no model")
    # how they are predicted
    limit: int | None = flag(None, "use the first N rows only")
    examples: int = flag(5, "changed answers that the result shows for each kind and strength")
    batch_size: int = flag(64, "texts a batch")
    workers: int = flag(
        1, "processes that predict side by side, each with the model: one for each GPU, or for each core or two of a "
        "CPU (hf, bert)",
    )  # fmt: skip
    max_length: int | None = flag(None, "tokens of prompt and answer together (default: task.json's, else 512)")
    precision: Precision = flag(
        "auto", "number format of the weights; auto = bf16 or fp32, whichever is faster by measure; on a GPU "
        "bf16, or fp16 where it has no bf16",
    )  # fmt: skip
    device: str | None = flag(None, "cpu, cuda, cuda:1, mps ... (default: the first GPU, else the CPU; not for vllm)")

    def __post_init__(self):
        if self.test_data_path is None:
            raise UserError("--test_data_path is needed: a labelled file whose texts are changed")
        check_at_least(self, limit=1, batch_size=1, workers=1, max_length=1, show=0, examples=0)
        if self.model_path is None and not self.show:
            raise UserError("--model_path is needed: a hub id or a directory (--show N looks at the texts without one)")
        if self.output_dir is not None:
            check_output_dir(self.output_dir)
        for name in self.perturbations:
            if name not in PERTURBATIONS:
                raise UserError(f"--perturbations {name}: unknown; known are {', '.join(PERTURBATIONS)}")
        if not self.strengths:
            raise UserError("--strengths: none given; give shares above 0 and up to 1, such as 0.1 0.3")
        for strength in self.strengths:
            if not 0 < strength <= 1:
                raise UserError(f"--strengths {strength}: must be above 0 and up to 1")
        self.strengths = sorted(set(self.strengths))
        self.perturbations = list(dict.fromkeys(self.perturbations))


# --- texts ----------------------------------------------------------------------------------------------------------


def task_of(args: Args) -> Task:
    """The task that the model was trained on, or that the flags name.

    Raises:
        UserError: there is none, it has no labels, or flags contradict what the model was trained on.
    """
    if args.model_path is not None:
        check_model_path(args.model_path)
        task = contract_for(
            args.model_path, args.task, args.label_path, None, args.max_length, args.objective
        ).task  # fmt: skip
    else:
        task = resolve_task(args.task, args.label_path)
    if task is None:
        raise UserError("--task, --label_path or --model_path is needed: what the labels of the file are")
    check_has_labels(task, args.task, args.model_path, "this analysis")
    return task


def labelled_examples(args: Args, task: Task) -> list[Example]:
    """The rows of `--test_data_path`, as many as `--limit` allows.

    Raises:
        UserError: a bad row, or no labels.
    """
    file = ExampleFile(args.test_data_path, task, "--test_data_path", limit=args.limit)
    if not file.labelled:
        raise UserError(f"--test_data_path {args.test_data_path}: has no labels; nothing says which answers are right")
    return list(file)


def chosen(names: Sequence[str], language: str) -> list[str]:
    """The perturbations to make: those named, or all of the language.

    Raises:
        UserError: one of those named does nothing in this language.
    """
    known = fitting(language)
    for name in names:
        if name not in known:
            raise UserError(f"--perturbations {name}: not for texts in {language!r}; these have {', '.join(known)}")
    return list(names) or known


def print_changes(examples: Sequence[Example], copies: Sequence[Copy], most: int) -> None:
    """The first changed texts of each copy, with what they were."""
    for copy in copies:
        changed = [(e.text, text) for e, text in zip(examples, copy.texts, strict=True) if text != e.text]
        print(f"\n{copy.perturbation}, strength {copy.strength:g}: {len(changed)} of {len(examples)} texts change")
        for before, after in changed[:most]:
            print(f"  - {before}\n  + {after}")


# --- the command ----------------------------------------------------------------------------------------------------


def main(args: Args) -> None:
    task = task_of(args)
    output_dir = None if args.show else output_directory(args.output_dir, args.model_path, f"{ROBUSTNESS_FILE} is")
    examples = labelled_examples(args, task)
    texts = [example.text for example in examples]
    language = main_language(texts) if args.language == "auto" else args.language
    names = chosen(args.perturbations, language)
    copies = perturbed_copies(
        texts, names, args.strengths, args.seed, None if args.language == "auto" else args.language
    )  # fmt: skip
    if args.show:
        print_changes(examples, copies, args.show)
        return
    with exclusive(output_dir, ROBUSTNESS_FILE):
        begin = time.perf_counter()
        predicted = predict(args, task, distinct_texts(texts, copies), output_dir)
        seconds = time.perf_counter() - begin
        facts = {
            "model_path": args.model_path,
            "test_data_path": args.test_data_path,
            "task": task.name,
            "seed": args.seed,
            "language": language,
            "confidence_level": LEVEL,
            "texts_predicted": len(predicted),
        }
        result = facts | measure(examples, copies, predicted, task, args.seed, args.examples)
        write_json(output_dir / ROBUSTNESS_FILE, result)
    print(summary(result))
    print(f"{len(predicted):,} texts, predicted in {seconds:.0f} s; written to {output_dir / ROBUSTNESS_FILE}")


def predict(args: Args, task: Task, texts: Sequence[str], output_dir: Path) -> dict[str, Prediction]:
    """Text -> what the model says of it; a file of predictions that an earlier start began is continued.

    Raises:
        UserError: it was begun with other settings, or see `Predictor`.
    """
    begun = begun_with(output_dir / PREDICTED_FILE, "precision") if args.precision == "auto" else None
    precision = pick_precision(begun or args.precision, args.model_path, pick_device(args.device))
    args = replace(args, precision=precision.format)
    settings = prediction_settings(args)
    settings["flags"] = {name: value for name, value in settings["flags"].items() if name not in UNDECIDING}
    examples = [Example(str(number), text, None) for number, text in enumerate(texts, start=1)]
    file = PredictionFile(output_dir, examples, task, settings, PREDICTED_FILE)
    with closing(file), Predictor(**predictor_settings(args)) as predictor:
        precision.say(sys.stderr)
        file.append(predicted_rows(predictor, examples, file.done))
    file.finish()
    return {
        row["text"]: Prediction(tuple(row["labels"]), row["valid"], confidence=row["confidence"])
        for row in rows_of(file.path, task)
    }


def predictor_settings(args: Args) -> dict[str, Any]:
    """What the predictor is made of."""
    return {each.name: getattr(args, each.name) for each in fields(PredictionSettings) if hasattr(args, each.name)}


def summary(result: dict[str, Any]) -> str:
    """A table, a line for each perturbation and strength, and the score in words."""
    head = ["perturbation", "strength", "texts changed", "answers changed", "accuracy", "macro F1"]
    rows = [["none", "", "", "", *_cells(result["clean"])]]
    for name, entry in result["perturbations"].items():
        for numbers in entry["strengths"]:
            shares = (f"{numbers[share]:.1%}" for share in ("changed", "flips"))
            rows.append([name, f"{numbers['strength']:g}", *shares, *_cells(numbers)])
    score, interval = result["robustness_score"], result["robustness_score_interval"]
    if score is None:
        says = "No answer was right to begin with, so that there is no robustness score."
    else:
        low, high = interval
        says = (
            f"Robustness score {score:.3f} ({low:.3f} to {high:.3f}): under these changes the model keeps {score:.1%} "
            f"of its accuracy of {result['clean']['accuracy']:.4f} on {result['n']} texts."
        )
    return f"{markdown_table(head, rows, padded=True)}\n\n{says}"


def _cells(numbers: dict[str, Any]) -> list[str]:
    return [
        f"{numbers[metric]:.4f} ({numbers[f'{metric}_interval'][0]:.3f} to {numbers[f'{metric}_interval'][1]:.3f})"
        for metric in ("accuracy", "f1_macro")
    ]


if __name__ == "__main__":
    run(main, Args, {})

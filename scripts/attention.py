"""Which words a model attends to when it decides on a label, and which move the label's score.

For each predicted label: attention weights of each layer and head, their mean, attention rollout (Abnar & Zuidema,
2020), gradient × input (Captum), and deletion: how far the label's score falls when a word is left out. Attention is
not an explanation (Jain & Wallace, 2019; Wiegreffe & Pinter, 2019), and only deletion tries what it says.
`attention.json` has the numbers, `attention.html` is a page on which words are coloured by them.
`data/engine/attention.py` says where a label is decided.

    # one text
    python -m scripts.attention --model_path outputs/sft --text "Thank you so much, you made my day!"

    # the first hundred texts of a file, with the top words of each label
    python -m scripts.attention --model_path outputs/sft --test_data_path data/sample/test.tsv

    # an untuned model
    python -m scripts.attention --model_path models/smollm2-135m-instruct --task goemotions-group \\
        --text "这家酒店的服务太好了。" --output_dir outputs/attention
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from data.arguments import UserError, check_at_least, check_output_dir, flag, run, visible
from data.contract import Precision, contract_for
from data.engine.models import check_model_path
from data.engine.predictor import Predictor
from data.files import as_json, exclusive, write_text
from data.loading import Example, ExampleFile
from data.predicted_runs import TEST_FOLDER, output_directory
from data.predictions import Prediction
from data.report.analyses import ATTENTION_FILE
from data.report.heat_map import HEAT_MAP_FILE, NOTE, TITLES, heat_map_page
from data.tasks import check_has_labels

ONE_TEXT_FOLDER = "one_text"  # in the folder of a file's analysis, which one text must not replace
LIMIT = 100
SHOWN_ON_CONSOLE = 3


@dataclass
class Args:
    model_path: str | None = flag(None, "hub id, or a directory: an untuned model, a run, or a merged model")
    task: str | None = flag(None, "task to ask an untuned model for: a built-in task, single_label or multi_label")
    label_path: str | None = flag(None, "labels.txt of your own task: one label a line, line number = id")
    objective: Literal["generate", "score"] | None = flag(
        None, "how an untuned model answers: generate = it writes, score = labels are compared (default: generate)"
    )
    text: str | None = flag(None, "one text")
    test_data_path: str | None = flag(None, "file of texts, with labels or without")
    limit: int | None = flag(None, f"use the first N rows only (default: {LIMIT})")
    output_dir: str | None = flag(
        None, f"where {ATTENTION_FILE} and {HEAT_MAP_FILE} go (default: <model_path>/{TEST_FOLDER} for a run, and "
        f"<model_path>/{TEST_FOLDER}/{ONE_TEXT_FOLDER} for --text)",
    )  # fmt: skip
    texts_shown: int = flag(
        12, "texts on the page; only theirs are the weights of each layer and head kept, which are large. Each "
        "predicted label has its turn",
    )  # fmt: skip
    deletion: bool = flag(
        True, "also leave out each word in turn, which takes as many predictions as a text has words (not with --cot)"
    )
    top_words: int = flag(10, "words a label in the table of top words")
    min_count: int | None = flag(None, "occurrences from which a word is in that table (default: 2; 1 for --text)")
    max_length: int | None = flag(None, "tokens of prompt and answer together (default: task.json's, else 512)")
    precision: Precision = flag(
        "fp32", "number format of the weights; in another than fp32, gradients are mostly noise"
    )
    device: str | None = flag(None, "cpu, cuda, cuda:1, mps ... (default: the first GPU, else the CPU)")

    def __post_init__(self):
        if self.model_path is None:
            raise UserError("--model_path is needed: a hub id or a directory")
        if (self.text is None) == (self.test_data_path is None):
            raise UserError("give one of --text (one text) and --test_data_path (a file)")
        if self.text is not None and not self.text.strip():
            raise UserError("--text is empty")
        if self.text is not None and not self.text.isprintable() and any("\ud800" <= c <= "\udfff" for c in self.text):
            raise UserError("--text is not UTF-8")
        if self.text is not None and self.limit is not None:
            raise UserError(f"--limit {self.limit}: is for a file (--test_data_path)")
        if self.output_dir is not None:
            check_output_dir(self.output_dir)
        check_at_least(self, limit=1, texts_shown=1, top_words=1, min_count=1, max_length=1)


# --- what is written -------------------------------------------------------------------------------------------------


def text_entry(predictor: Predictor, example: Example, prediction: Prediction, delete: bool) -> dict[str, Any]:
    """One of `texts` in attention.json, with all its details.

    Raises:
        UserError: see `data.engine.attention.explain`.
    """
    from data.engine.attention import METHODS, explain

    read, explanations = explain(predictor, example.text, prediction, delete)
    return {
        "id": example.id,
        "text": example.text,
        "gold": None if example.labels is None else list(example.labels),
        "labels": list(prediction.labels),
        "words": [example.text[begin:end] for begin, end in read.words],
        "spans": [list(span) for span in read.words],
        "truncated": prediction.truncated,
        "share_on_text": {label: each.share_on_text for label, each in explanations.items()},
        "explanations": {
            label: {m: rounded(getattr(each, m).tolist()) for m in METHODS if getattr(each, m) is not None}
            | {"by_layer": rounded(each.by_head.mean(axis=1).tolist()), "by_head": rounded(each.by_head.tolist())}
            for label, each in explanations.items()
        },
    }


def rounded(value: Any) -> Any:
    """Numbers in lists, to four digits that count."""
    return [rounded(each) for each in value] if isinstance(value, list) else float(f"{value:.4g}")


def in_turn(predictions: Sequence[Prediction], count: int) -> set[int]:
    """Which `count` texts to show: the first of each label, then the second of each, ….

    >>> of = lambda *labels: Prediction(labels, True)
    >>> sorted(in_turn([of("joy"), of("joy"), of("joy"), of("fear")], 3))
    [0, 1, 3]
    """
    seen: Counter[tuple[str, ...]] = Counter()
    turns = []
    for prediction in predictions:
        turns.append(seen[prediction.labels[:1]])
        seen[prediction.labels[:1]] += 1
    explained = [place for place, prediction in enumerate(predictions) if prediction.labels]
    return set(sorted(explained, key=lambda place: (turns[place], place))[:count])


def top_words(texts: Iterable[dict[str, Any]], most: int, min_count: int) -> dict[str, dict[str, list]]:
    """Label -> method -> up to `most` of `[word, mean weight over its occurrences, their number]`, the heaviest first.

    Words in capitals and small letters are one. Labels stand in the order of how often they were predicted.
    """
    weights: dict[str, dict[str, dict[str, list[float]]]] = defaultdict(lambda: {m: defaultdict(list) for m in TITLES})
    predicted: Counter[str] = Counter()
    for text in texts:
        words = [word.casefold() for word in text["words"]]
        for label, explanation in text["explanations"].items():
            predicted[label] += 1
            for method in TITLES.keys() & explanation.keys():
                for word, weight in zip(words, explanation[method], strict=True):
                    weights[label][method][word].append(weight)
    return {
        label: {method: _heaviest(of_words, most, min_count) for method, of_words in weights[label].items() if of_words}
        for label, _ in predicted.most_common()
    }


def _heaviest(of_words: dict[str, list[float]], most: int, min_count: int) -> list[list]:
    means = [
        [word, rounded(sum(found) / len(found)), len(found)]
        for word, found in of_words.items()
        if len(found) >= min_count
    ]
    return sorted(means, key=lambda row: -row[1])[:most]


# --- what is printed -------------------------------------------------------------------------------------------------


def shown_text(text: dict[str, Any], most: int) -> str:
    """A text and the words that weigh most for each of its labels."""
    lines = [f"{text['text']}\n  predicted: {', '.join(text['labels']) or '–'}"]
    for label, explanation in text["explanations"].items():
        for method, title in TITLES.items():
            if method not in explanation:
                continue
            strongest = sorted(zip(text["words"], explanation[method], strict=True), key=lambda row: -abs(row[1]))
            words = ", ".join(f"{word} {weight:.2g}" for word, weight in strongest[:most])
            lines.append(f"  {label} · {title}{_on_text(text['share_on_text'][label].get(method))}: {words}")
    return "\n".join(lines)


def _on_text(share: float | None) -> str:
    if share is None:
        return ""
    return f" ({share:.1%} on the text)" if share >= 0.001 else " (under 0.1% on the text)"


def shown_top_words(of_labels: dict[str, dict[str, list]]) -> str:
    """The table of top words."""
    lines = []
    for label, methods in of_labels.items():
        lines.append(label)
        for method, rows in methods.items():
            words = ", ".join(f"{word} {mean:.2g} (×{count})" for word, mean, count in rows)
            lines.append(f"  {TITLES[method]}: {words or 'no word occurs often enough'}")
    return "\n".join(lines)


# --- the command -----------------------------------------------------------------------------------------------------


def output_folder(args: Args) -> Path:
    """`--output_dir`, or a folder of the run's own, another one for a single text."""
    folder = output_directory(args.output_dir, args.model_path, f"{ATTENTION_FILE} and {HEAT_MAP_FILE} are")
    return folder / ONE_TEXT_FOLDER if args.output_dir is None and args.text is not None else folder


def texts_of(args: Args) -> list[Example]:
    """The texts that the flags name.

    Raises:
        UserError: the file or one of its rows is not right.
    """
    if args.text is not None:
        return [Example("text", args.text, None)]
    task = contract_for(args.model_path, args.task, args.label_path, None, args.max_length, args.objective).task
    return list(islice(ExampleFile(args.test_data_path, task, "--test_data_path"), args.limit or LIMIT))


def analysis(args: Args, examples: Sequence[Example]) -> dict[str, Any]:
    """The content of attention.json."""
    from tqdm import tqdm

    with Predictor(
        args.model_path, args.task, label_path=args.label_path, objective=args.objective, max_length=args.max_length,
        precision=args.precision, device=args.device,
    ) as predictor:  # fmt: skip
        predictions = predictor.predict_batch([example.text for example in examples])
        detailed = in_turn(predictions, args.texts_shown)
        texts = []
        rows = zip(examples, predictions, strict=True)
        for place, row in enumerate(tqdm(rows, "explain", len(examples), unit="text", file=sys.stderr)):
            entry = text_entry(predictor, *row, args.deletion)
            if place not in detailed:
                for explanation in entry["explanations"].values():
                    del explanation["by_layer"], explanation["by_head"]
            texts.append(entry)
        config = predictor.backend.model.config.get_text_config()
        return {
            "model_path": args.model_path,
            "task": predictor.task.name,
            "objective": predictor.contract.objective,
            "layers": config.num_hidden_layers,
            "heads": config.num_attention_heads,
            "note": NOTE,
            "methods": [m for m in TITLES if m != "deletion" or (args.deletion and not predictor.contract.cot)],
            "texts": texts,
            "top_words": top_words(texts, args.top_words, args.min_count or (1 if args.text is not None else 2)),
        }


def main(args: Args) -> None:
    check_model_path(args.model_path)
    task = contract_for(args.model_path, args.task, args.label_path, None, args.max_length, args.objective).task
    check_has_labels(task, args.task, args.model_path, "this analysis")
    output_dir = output_folder(args)
    examples = texts_of(args)
    with exclusive(output_dir, ATTENTION_FILE):
        content = analysis(args, examples)
        write_text(output_dir / ATTENTION_FILE, as_json(content, output_dir / ATTENTION_FILE) + "\n")
        write_text(output_dir / HEAT_MAP_FILE, heat_map_page(content))
    for text in content["texts"][:SHOWN_ON_CONSOLE]:
        print(f"{visible(shown_text(text, args.top_words))}\n")
    if args.text is None:
        print(f"top words (mean weight over their occurrences)\n{visible(shown_top_words(content['top_words']))}\n")
    print(f"{NOTE}\n\nwritten to {output_dir / ATTENTION_FILE} and {output_dir / HEAT_MAP_FILE}")


if __name__ == "__main__":
    run(main, Args, {})

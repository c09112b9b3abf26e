"""A run in plain words: sentences made from its numbers. (no torch)"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.report.words import Words

BELIEVABLE = 0.05  # calibration error, and distance of confidence and accuracy, up to which confidence can be believed
HANDED_OVER = 0.8  # share of the texts that the model keeps in the sentence about them
FEW_ROWS = 200
UNEVEN = 10  # times as many training rows of one label as of another
CHANCE = 0.05  # p from which a difference may well be chance
NAMED = 3  # mistakes of a kind


def paragraphs(run: dict[str, Any], say: Words) -> list[str]:
    """What is most worth knowing of a run, see `data.report.sections.run_data`."""
    topics = ((_about, _how_right), (_labels, _mistakes), (_confidence,), (_promise,), (_robust,))
    gap = "" if say.language == "zh" else " "
    found = (gap.join(sentence for topic in topics_of for sentence in topic(run, say)) for topics_of in topics)
    return [paragraph for paragraph in found if paragraph]


def _about(run: dict[str, Any], say: Words) -> Iterator[str]:
    base = run["base_model"]
    how = "reinforced" if run["reinforced"] else "trained" if run["trained"] else "model"
    yield say(
        f"about_{how if base else 'unknown'}",
        base=Path(base).name if base else None,
        task=run["task"],
        labels=len(run["labels"]),
        kind=say(run["kind"]),
        n=say.count(run["n"]),
    )


def _how_right(run: dict[str, Any], say: Words) -> Iterator[str]:
    scores = run["scores"]
    if scores is None:
        return
    low, high = run["intervals"]["accuracy"]
    found = {"accuracy": say.percent(scores["accuracy"]), "low": say.percent(low), "high": say.percent(high)}
    found |= {"micro": say.number(scores["f1_micro"]), "macro": say.number(scores["f1_macro"])}
    yield say("right_single" if run["kind"] == "single_label" else "right_multi", **found)
    constant = run["most_frequent"]
    better = scores["accuracy"] > constant["share"]
    yield say(
        "majority" if better else "not_better",
        labels=say.labels(constant["labels"]),
        share=say.percent(constant["share"]),
    )


def _labels(run: dict[str, Any], say: Words) -> Iterator[str]:
    if run["scores"] is None:
        return
    seen = [row for row in run["per_label"] if row["support"]]
    if seen and seen[0]["f1"] > seen[-1]["f1"]:
        best, worst = seen[0], seen[-1]
        yield say(
            "best_worst",
            best=best["label"], best_f1=say.number(best["f1"]), best_n=say.count(best["support"]),
            worst=worst["label"], worst_f1=say.number(worst["f1"]), worst_n=say.count(worst["support"]),
        )  # fmt: skip


def _mistakes(run: dict[str, Any], say: Words) -> Iterator[str]:
    for kind, one in (("swapped", "swap"), ("missed", "miss"), ("added", "add")):
        found = run["mistakes"].get(kind, [])[:NAMED]
        if found:
            parts = (say(one, **row | {"count": say.count(row["count"]), "of": say.count(row["of"])}) for row in found)
            yield say(kind, list=say.list(parts))


def _confidence(run: dict[str, Any], say: Words) -> Iterator[str]:
    found = run["confidence"]
    if found is None:
        return
    mean, accuracy, error = found["mean_confidence"], found["accuracy"], found["ece"]
    if accuracy is None:
        yield say("only_sure", confidence=say.percent(mean))
        yield say("above_sure", share=say.percent(found["share_above_0.9"]))
        return
    start = say("sure", confidence=say.percent(mean), accuracy=say.percent(accuracy))
    yield say(verdict(mean, accuracy, error), start=start, ece=say.number(error))
    yield say("above_sure", share=say.percent(found["share_above_0.9"]))
    kept = next(row for row in found["at_coverage"] if row["at_most"] == HANDED_OVER)
    if kept["accuracy"] is not None:
        yield say("handed_over", rest=say.percent(1 - kept["coverage"]), accuracy=say.percent(kept["accuracy"]))


def _promise(run: dict[str, Any], say: Words) -> Iterator[str]:
    scores = run["scores"] or {}
    if "coverage" not in scores:
        return
    found = {"coverage": say.percent(scores["coverage"]), "size": say.number(scores["mean_set_size"], 2)}
    level = run["promised"]
    yield say("sets" if level is None else "promise", level=None if level is None else say.percent(level), **found)
    if scores["abstained_rate"]:
        accuracy = say.percent(scores["accuracy_answered"]) if "accuracy_answered" in scores else "–"
        yield say("abstains", share=say.percent(scores["abstained_rate"]), accuracy=accuracy)


def verdict(confidence: float, accuracy: float, error: float) -> str:
    """Whether confidence can be believed: the name of the sentence that says so.

    >>> verdict(0.8, 0.79, 0.03), verdict(0.9, 0.7, 0.2), verdict(0.6, 0.8, 0.2), verdict(0.8, 0.8, 0.1)
    ('believable', 'too_sure', 'too_modest', 'uneven')
    """
    if error <= BELIEVABLE:
        return "believable"
    if abs(confidence - accuracy) <= BELIEVABLE:
        return "uneven"
    return "too_sure" if confidence > accuracy else "too_modest"


def _robust(run: dict[str, Any], say: Words) -> Iterator[str]:
    found = run["robustness"]
    if found is None:
        return
    worst = weakest(found)
    clean, score = say.percent(found["clean"]["accuracy"]), say.number(found["robustness_score"])
    if worst is None or worst["accuracy"] >= found["clean"]["accuracy"]:
        yield say("robust_steady", clean=clean, score=score)
        return
    yield say(
        "robust",
        clean=clean,
        least=say.percent(worst["accuracy"]),
        title=in_language(worst["title"], say),
        strength=f"{worst['strength']:g}",
        score=score,
    )


def weakest(robustness: dict[str, Any]) -> dict[str, Any] | None:
    """The perturbation and strength with the lowest accuracy: `title`, `strength`, `accuracy`; None without any."""
    every = [
        {"title": kind["title"], "strength": at["strength"], "accuracy": at["accuracy"]}
        for kind in robustness["perturbations"].values()
        for at in kind["strengths"]
    ]
    return min(every, key=lambda at: at["accuracy"], default=None)


def in_language(title: dict[str, str], say: Words) -> str:
    """A title in the report's language, else in the first that there is."""
    return title.get(say.language) or next(iter(title.values()), "")


# --- warnings -------------------------------------------------------------------------------------------------------


def training_warnings(run: dict[str, Any], say: Words) -> list[str]:
    """What its data_report.json says against a run; nothing where there is none."""
    data, uneven = run["data"] or {}, run["imbalance"]
    rows = data.get("rows", {})
    counts = {
        "leakage_test": (data.get("test_rows_also_in_train", 0), rows.get("test")),
        "leakage_dev": (data.get("dev_rows_also_in_train", 0), rows.get("dev")),
        "conflicts": (data.get("train_texts_with_different_labels", 0), None),
        "repeated_rows" if "train_cases" in data else "repeats": (data.get("train_repeated_rows", 0), None),
    }
    found = [say(name, count=say.count(count), of=say.count(of)) for name, (count, of) in counts.items() if count]
    if uneven and (uneven["ratio"] is None or uneven["ratio"] >= UNEVEN):
        values = uneven | {name: say.count(uneven[name]) for name in ("most_rows", "least_rows", "ratio")}
        found.append(say("imbalanced" if uneven["ratio"] else "unseen", **values))
    return found


def row_warnings(run: dict[str, Any], say: Words) -> list[str]:
    """What the predicted rows themselves show."""
    kinds = (("repeated", "test_repeated"), ("conflicting", "test_conflicting"), ("cut", "cut"), ("invalid", "invalid"),
             ("without_gold", "without_gold"), ("cut_cases", "cut_cases"), ("unfinished", "unfinished"),
             ("without_reference", "without_reference"))  # fmt: skip
    counts = run["test_rows"]
    found = [say(name, count=say.count(counts[kind])) for kind, name in kinds if counts.get(kind)]
    if 0 < run["n_scored"] < FEW_ROWS:
        found.append(say("few_rows", n=say.count(run["n_scored"])))
    return found


def warnings(runs: list[dict[str, Any]], say: Words) -> list[str]:
    """All warnings, each once; one that is not of all runs names those that it is of."""
    names: dict[str, list[str]] = {}
    for run in runs:
        for warning in row_warnings(run, say) + training_warnings(run, say):
            names.setdefault(warning, []).append(run["name"])
    return [
        warning if len(of) == len(runs) else say("warning_of", names=say.list(of), warning=warning)
        for warning, of in names.items()
    ]


def comparisons(report: dict[str, Any], say: Words) -> list[str]:
    """Each run against the first, where both answered the same rows."""
    found = []
    for run, difference in zip(report["runs"], report["comparison"]["differences"], strict=True):
        if difference is None:
            continue
        accuracy = difference["accuracy"]
        low, high = accuracy["interval"]
        p = difference["mcnemar"]["p"]
        verdict = say("real_difference" if p < CHANCE else "no_difference", p=say.probability(p))
        values = {"accuracy": say.points(accuracy["difference"]), "low": say.points(low), "high": say.points(high)}
        found.append(say("compared", name=run["name"], first=report["runs"][0]["name"], verdict=verdict, **values))
    return found

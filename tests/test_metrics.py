import dataclasses

import pytest

from data.metrics import format_summary, jaccard, label_metrics
from data.predictions import Prediction
from data.significance import bootstrap_intervals, mcnemar
from data.tasks import BUILT_IN_TASKS

GROUP = BUILT_IN_TASKS["goemotions-group"]
SST2 = BUILT_IN_TASKS["sst2"]
OR_NONE = dataclasses.replace(GROUP, allow_none=True)


def predictions(*label_sets, invalid=()):
    return [Prediction(tuple(labels.split()), valid=i not in invalid) for i, labels in enumerate(label_sets)]


def test_multi_label_scores_by_hand():
    gold = [("positive",), ("negative", "neutral"), ("neutral",), ("ambiguous",)]
    scores = label_metrics(gold, predictions("positive", "negative", "positive", "", invalid={3}), GROUP)
    assert scores["n"] == 4
    assert scores["accuracy"] == 1 / 4
    assert scores["jaccard"] == pytest.approx((1 + 1 / 2 + 0 + 0) / 4)
    assert scores["invalid_rate"] == 1 / 4
    # two of three predicted labels are right, two of five gold labels are found
    assert scores["precision_micro"] == pytest.approx(2 / 3)
    assert scores["recall_micro"] == pytest.approx(2 / 5)
    assert scores["per_label"]["positive"] == {
        "precision": 0.5,
        "recall": 1.0,
        "f1": pytest.approx(2 / 3),
        "support": 1,
    }
    assert scores["f1_macro"] == pytest.approx((0 + 1 + 0 + 2 / 3) / 4)
    assert scores["f1_weighted"] == pytest.approx((0 * 1 + 1 * 1 + 0 * 2 + 2 / 3 * 1) / 5)
    assert "confusion_matrix" not in scores


def test_single_label_scores_by_hand():
    gold = [("Positive",), ("Positive",), ("Negative",), ("Negative",)]
    scores = label_metrics(gold, predictions("Positive", "Negative", "Negative", "", invalid={3}), SST2)
    assert scores["confusion_matrix"] == [[1, 0], [1, 1]]
    assert scores["unread"] == {"Negative": 1, "Positive": 0}
    assert scores["accuracy"] == 0.5
    summary = format_summary(scores, "sst2")
    assert "invalid rate   0.2500" in summary
    assert "confusion matrix" in summary


def test_jaccard():
    assert jaccard([], []) == 1.0
    assert jaccard(["joy"], []) == 0.0
    assert jaccard(["joy", "love"], ["love", "joy"]) == 1.0


def test_lengths_that_differ_are_an_error():
    with pytest.raises(ValueError, match="cannot score"):
        label_metrics([("positive",)], [], GROUP)
    with pytest.raises(ValueError, match="cannot score"):
        label_metrics([], [], GROUP)


def test_texts_to_which_no_label_applies():
    gold = [(), (), (), ("positive",)]
    scores = label_metrics(gold, predictions("", "", "negative", "", invalid={1}), OR_NONE)
    assert scores["accuracy"] == scores["jaccard"] == 1 / 4  # what could not be read is not the answer "none"
    assert (scores["f1_macro"], scores["invalid_rate"]) == (0, 1 / 4)
    assert scores["per_label"]["negative"]["support"] == 0
    only = label_metrics([()], predictions(""), OR_NONE)
    assert (only["accuracy"], only["jaccard"], only["f1_macro"]) == (1, 1, 0)
    drawn = bootstrap_intervals(gold, predictions("", "", "negative", "", invalid={1}), OR_NONE, rounds=50)
    assert 0 <= drawn["accuracy"][0] <= 1 / 4 <= drawn["accuracy"][1]
    assert mcnemar(gold, predictions("", "", "", ""), predictions("", "", "", "", invalid={1}))["better"] == 1

"""Losses and rows of the objectives, against formulas and libraries."""

import dataclasses

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from data.encoding import Encoder
from data.learning.objectives import (
    MAX_POSITIVE_WEIGHT,
    LossSettings,
    answer_losses,
    answer_rows,
    balanced_weights,
    choice_losses,
    row_weight,
    text_rows,
    yes_or_no_losses,
)
from data.loading import Example
from data.tasks import BUILT_IN_TASKS

GROUP, EMOTION = BUILT_IN_TASKS["goemotions-group"], BUILT_IN_TASKS["emotion"]


def rows_of(labels) -> list[Example]:
    return [Example(str(i), "text", (label,) if isinstance(label, str) else label) for i, label in enumerate(labels)]


def test_balanced_weights_are_those_of_scikit_learn():
    labels = ["joy"] * 7 + ["fear"] * 2 + ["anger"]
    weights = balanced_weights(rows_of(labels), ("joy", "fear", "anger"), yes_or_no=False)
    expected = compute_class_weight("balanced", classes=numpy.array(["joy", "fear", "anger"]), y=labels)
    assert weights == pytest.approx(expected.tolist())
    mean = sum(row_weight((label,), ("joy", "fear", "anger"), weights) for label in labels) / len(labels)
    assert mean == pytest.approx(1.0)  # the loss keeps its size


def test_yes_or_no_weights_are_bounded():
    weights = balanced_weights(
        rows_of(["joy"] * 90 + ["fear"] * 10 + ["anger"]), ("joy", "fear", "anger", "love"), True
    )
    assert weights == pytest.approx((11 / 90, 91 / 10, MAX_POSITIVE_WEIGHT, 1.0))


def test_a_row_of_several_labels_counts_their_mean():
    assert row_weight(("a", "c"), ("a", "b", "c"), (1.0, 5.0, 3.0)) == 2.0
    assert row_weight(("a",), ("a",), None) == 1.0


logits_strategy = st.lists(st.lists(st.floats(-8, 8), min_size=3, max_size=3), min_size=1, max_size=4)


@given(logits_strategy, st.floats(0, 0.5))
def test_choice_losses_are_cross_entropy(logits, smoothing):
    logits = torch.tensor(logits)
    gold = torch.arange(len(logits)) % 3
    losses = choice_losses(
        logits, functional.one_hot(gold, 3).float(), torch.ones(len(logits)), LossSettings(label_smoothing=smoothing)
    )
    expected = functional.cross_entropy(logits, gold, reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=1e-5)


def test_several_gold_labels_share_the_target():
    logits, gold = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[1.0, 1.0, 0.0]])
    expected = -(logits.log_softmax(1)[0, :2]).mean()
    torch.testing.assert_close(choice_losses(logits, gold, torch.ones(1), LossSettings())[0], expected)


def test_focal_loss_lets_known_texts_count_little():
    logits, gold = torch.tensor([[3.0, 0.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    plain = choice_losses(logits, gold, torch.ones(2), LossSettings())
    focal = choice_losses(logits, gold, torch.ones(2), LossSettings(focal_gamma=2.0))
    torch.testing.assert_close(focal, plain * (1 - logits.softmax(1)[:, 0]) ** 2)
    log_probs = torch.tensor([-0.1, -2.0])
    torch.testing.assert_close(
        answer_losses(log_probs, torch.tensor([1.0, 3.0]), LossSettings(focal_gamma=1.0)),
        -log_probs * torch.tensor([1.0, 3.0]) * (1 - log_probs.exp()),
    )


def test_yes_or_no_losses_are_binary_cross_entropy():
    logits, gold = torch.randn(3, 4), torch.tensor([[1.0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 1]])
    weights = (2.0, 1.0, 3.0, 0.5)
    losses = yes_or_no_losses(logits, gold, LossSettings(label_weights=weights))
    p = logits.sigmoid()
    expected = -(torch.tensor(weights) * gold * p.log() + (1 - gold) * (1 - p).log()).mean(dim=1)
    torch.testing.assert_close(losses, expected)
    focal = yes_or_no_losses(logits, gold, LossSettings(focal_gamma=2.0))
    known = torch.where(gold > 0, p, 1 - p)
    torch.testing.assert_close(focal, (-known.log() * (1 - known) ** 2).mean(dim=1))
    smooth = yes_or_no_losses(logits, gold, LossSettings(label_smoothing=0.2))
    target = gold * 0.8 + 0.1
    torch.testing.assert_close(smooth, -(target * p.log() + (1 - target) * (1 - p).log()).mean(dim=1))


def test_score_learns_each_gold_label(tokenizer):
    encoder = Encoder(GROUP, tokenizer, objective="score")
    rows = list(answer_rows([Example("1", "thank you", ("negative", "positive"))], encoder, (1.0, 2.0, 3.0, 4.0)))
    answers = [[i for i, label in zip(r["input_ids"], r["labels"], strict=True) if label != -100] for r in rows]
    assert answers == [encoder.target_ids(("negative",)), encoder.target_ids(("positive",))]
    assert [row["weight"] for row in rows] == [2.0, 4.0]


def test_text_rows(tokenizer):
    encoder = Encoder(EMOTION, tokenizer, objective="classify")
    (row,) = text_rows([Example("1", "thank you", ("joy",))], encoder)
    assert row["input_ids"] == encoder.prompt_ids(["thank you"])[0]
    assert row["labels"] == EMOTION.labels.index("joy")
    assert row["gold"] == [0, 0, 1, 0, 0, 0]
    assert row["weight"] == 1.0


def test_to_have_no_label_counts_as_one_more():
    rows = rows_of(["joy"] * 6 + ["fear"] * 2 + [()] * 4)
    weights = balanced_weights(rows, ("joy", "fear"), yes_or_no=False)
    expected = compute_class_weight(
        "balanced", classes=numpy.array(["joy", "fear", "-"]), y=["joy"] * 6 + ["fear"] * 2 + ["-"] * 4
    )
    assert weights == pytest.approx(expected.tolist())
    assert row_weight((), ("joy", "fear"), weights) == weights[2]
    assert row_weight(("fear",), ("joy", "fear"), weights) == weights[1]
    of_a_head = balanced_weights(rows, ("joy", "fear"), yes_or_no=True)
    assert of_a_head == pytest.approx((1.0, 5.0))
    assert row_weight((), ("joy", "fear"), of_a_head) == row_weight((), ("joy", "fear"), None) == 1.0


def test_rows_without_a_label(tokenizer):
    task = dataclasses.replace(GROUP, allow_none=True)
    rows = rows_of(["positive", ()])
    (first, second) = text_rows(rows, Encoder(task, tokenizer, objective="classify"))
    assert (second["gold"], second["labels"], first["labels"]) == ([0, 0, 0, 0], 0, 3)
    encoder = Encoder(task, tokenizer)
    _, second = answer_rows(rows, encoder)
    assert encoder.decode([token for token in second["labels"] if token != -100]) == "none"

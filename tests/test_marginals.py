"""Probabilities of answers -> those of labels."""

import pytest

from data.answers import AnswerTrie
from data.encoding import Encoder
from data.labels import CUSTOM_TEMPLATE, LabelTask
from data.marginals import FEW_TOKENS, PRUNED_MASS, Marginals, bounds

FEELINGS = LabelTask("feelings", "multi_label", ("joy", "joyful", "sad"), CUSTOM_TEMPLATE, allow_none=True)


@pytest.fixture
def encoder(tokenizer) -> Encoder:
    return Encoder(FEELINGS, tokenizer)


@pytest.fixture
def marginals(encoder) -> Marginals:
    return Marginals(encoder, AnswerTrie(encoder))


def beginning(encoder, text: str) -> tuple[int, ...]:
    """How all answers begin that begin with `text`."""
    return next(
        tuple(ids[:n])
        for labels in [("joy",), ("joyful",), ("joy", "sad"), ("joy", "joyful", "sad"), ()]
        for ids in [encoder.answer_ids(labels)]
        for n in range(len(ids))
        if encoder.decode(ids[:n]) == text
    )


def test_labels_of_whole_answers_by_hand(encoder, marginals):
    whole = {("joy",): 0.4, ("joyful",): 0.1, ("joy", "sad"): 0.2, ("joy", "joyful", "sad"): 0.05, (): 0.25}
    found = marginals.of([(encoder.answer_ids(labels), p) for labels, p in whole.items()], [])
    assert found == pytest.approx({"joy": 0.65, "joyful": 0.15, "sad": 0.25})
    assert list(found) == ["joy", "joyful", "sad"]
    assert marginals.of([(encoder.answer_ids(()), 1.0)], []) == {"joy": 0, "joyful": 0, "sad": 0}
    assert marginals.of([], []) == {"joy": 0, "joyful": 0, "sad": 0}


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("", set()),
        ("jo", set()),
        ("joy", set()),  # joyful may come of it
        ("joyful", {"joyful"}),
        ("joy,", {"joy"}),
        ("joy, joyful", {"joy", "joyful"}),
        ("none", set()),
    ],
)
def test_labels_that_a_beginning_surely_holds(encoder, marginals, text, held):
    whole = [(encoder.answer_ids(("sad",)), 0.5)]
    found = marginals.of(whole, [(beginning(encoder, text), 0.25)])
    assert found == pytest.approx({label: 0.5 * (label == "sad") + 0.25 * (label in held) for label in FEELINGS.labels})


def test_a_probability_is_at_most_one(encoder, marginals):
    assert marginals.of([(encoder.answer_ids(("sad",)), 1 + 1e-7)], [])["sad"] == 1.0


def test_within_what_answers_are_looked_at():
    assert bounds(None) == (PRUNED_MASS, FEW_TOKENS)
    mass, tokens = bounds(0.001)
    assert mass == 0.001
    assert tokens > 100 * FEW_TOKENS

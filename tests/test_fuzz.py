"""A little of every kind of hostile input; thousands: python -m tests.fuzz."""

import pytest

from tests.fuzz import KINDS, attack

INPUTS = 60  # of a kind


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_input_is_read_right_or_refused(kind):
    outcomes = attack(kind, INPUTS)
    assert outcomes["taken"], "only refusals: the inputs do not get far"
    assert outcomes["refused"], "no refusals: the inputs are not hostile"

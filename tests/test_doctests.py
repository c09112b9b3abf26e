"""The examples in docstrings say what the functions do."""

import doctest
import importlib
import re

import pytest

from tests.test_rooms import CODE, module_of

EXAMPLE = re.compile(r"^\s*>>> ", re.MULTILINE)
WITH_EXAMPLES = [path for path in CODE if EXAMPLE.search(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=module_of)
def test_examples_of(path):
    module = importlib.import_module(module_of(path))
    result = doctest.testmod(module)
    assert result.attempted == len(EXAMPLE.findall(path.read_text(encoding="utf-8"))), "one is not in a docstring"
    assert result.failed == 0


def test_some_are_found():
    assert len(WITH_EXAMPLES) > 5

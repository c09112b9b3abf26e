"""Command lines as they are parsed; through the real scripts: tests/test_cli.py."""

import pytest

from data.arguments import UserError, parse_args
from scripts.compare import Args


def parse(line: str) -> Args:
    return parse_args(Args, {}, "", line.split(), positional="runs")


@pytest.mark.parametrize(
    "line",
    [
        "a b --group_seeds",
        "--group_seeds a b",
        "--group-seeds a b",
        "--runs a b --group_seeds",
        "--group_seeds true --runs a b",
    ],
)
def test_a_flag_that_may_be_left_out(line):
    args = parse(f"{line} --output_dir o")
    assert (args.runs, args.group_seeds, args.output_dir) == (["a", "b"], True, "o")
    if not line.startswith("a"):
        assert parse(f"--output_dir o {line}") == args


@pytest.mark.parametrize("line", ["", "--group_seeds", "--group_seeds false", "--output_dir o"])
def test_nothing_is_taken_for_it(line):
    with pytest.raises(UserError, match="--runs is needed"):
        parse(line)


def test_it_is_given_once():
    with pytest.raises(UserError, match="unknown flag a"):
        parse("a b --runs c")
    assert parse("true --columns n").runs == ["true"]

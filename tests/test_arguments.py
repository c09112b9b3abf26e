"""Command lines as they are parsed; through the real scripts: tests/test_cli.py."""

import re
from dataclasses import dataclass

import pytest

from data.arguments import UserError, flag, parse_args


@dataclass
class Args:
    runs: list[str] = flag([], "folders")
    fast: bool = flag(False, "be quick")
    all_rows: bool = flag(True, "leave nothing out")
    cot: bool | None = flag(None, "reason (default: as trained)")
    size: int = flag(0, "how much")

    def __post_init__(self):
        if not self.runs:
            raise UserError("--runs is needed")


def parse(line: str, **settings) -> Args:
    return parse_args(Args, settings, "", line.split(), positional="runs")


# --- switches -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("", False),
        *((f" {word}", True) for word in ("", "on", "On", "true", "True", "TRUE", "yes", "y", "t", "1")),
        *((f" {word}", False) for word in ("off", "OFF", "false", "False", "no", "n", "f", "0")),
    ],
)
def test_a_switch(line, value):
    line = line and f"--fast{line}"
    assert parse(f"--runs a {line}").fast is value
    assert parse(f"{line} --runs a").fast is value


def test_switches_that_are_on_or_open():
    assert (parse("a").all_rows, parse("a").cot) == (True, None)
    for line in ("--all_rows off --cot off", "--all-rows false --cot False"):
        assert (parse(f"a {line}").all_rows, parse(f"a {line}").cot) == (False, False)
    assert (parse("a --all_rows --cot").all_rows, parse("a --all_rows --cot").cot) == (True, True)


def test_switches_in_main():
    for off, on in ((False, True), ("off", "on")):
        args = parse("a", all_rows=off, fast=on)
        assert (args.all_rows, args.fast) == (False, True)
        assert parse("a --all_rows", all_rows=off).all_rows is True, "a flag wins"
    assert parse("a", all_rows=None).all_rows is True


@pytest.mark.parametrize("settings", [{"all_rows": "maybe"}, {"all_rows": 2}])
def test_what_is_no_value_of_a_switch(settings):
    with pytest.raises(UserError, match=r"^--all_rows: expected on or off, found '(maybe|2)'$"):
        parse("a", **settings)
    with pytest.raises(UserError, match=r"^--fast: expected on or off, found 'maybe'$"):
        parse("a --fast maybe")
    with pytest.raises(UserError, match=r"^unknown flag --no_all_rows; did you mean --all_rows\?$"):
        parse("a --no_all_rows")


def test_help_has_one_spelling_of_a_switch(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "[runs ...] [--flag value ...]" in shown
    assert "--fast [on|off] be quick (default: off) --all_rows [on|off] leave nothing out (default: on)" in shown
    assert "--cot [on|off] reason (default: as trained) --size SIZE how much (default: 0)" in shown
    assert not re.search("--no|--all-rows|True|False|None", shown)


# --- a flag that may be left out ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line", ["a b --fast", "--fast a b", "--fast --runs a b", "--runs a b --fast", "--fast true --runs a b"]
)
def test_a_flag_that_may_be_left_out(line):
    args = parse(f"{line} --size 3")
    assert (args.runs, args.fast, args.size) == (["a", "b"], True, 3)
    if not line.startswith("a"):
        assert parse(f"--size 3 {line}") == args


def test_behind_a_switch_with_dashes():
    assert parse("--all-rows a b").runs == ["a", "b"]


@pytest.mark.parametrize("line", ["", "--fast", "--fast off", "--size 1"])
def test_nothing_is_taken_for_it(line):
    with pytest.raises(UserError, match="--runs is needed"):
        parse(line)


def test_it_is_given_once():
    with pytest.raises(UserError, match="unknown flag a"):
        parse("a b --runs c")
    assert parse("true --size 1").runs == ["true"]

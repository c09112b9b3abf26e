"""Command lines as they are parsed; through the real scripts: tests/test_cli.py."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass

import pytest

from data.arguments import UserError, flag, is_first_process, one_line, parse_args, process_count, process_index
from tests.conftest import ROOT


@dataclass
class Args:
    runs: list[str] = flag([], "folders")
    fast: bool = flag(False, "be quick")
    all_rows: bool = flag(True, "leave nothing out")
    cot: bool | None = flag(None, "reason (default: as trained)")
    size: int = flag(0, "how much")
    rate: float | None = flag(None, "how fast")
    weights: list[float] = flag([], "how heavy")
    text: str | None = flag(None, "what to read")

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


# --- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
def test_numbers_are_finite(value):
    for line in (f"a --rate={value}", f"a --weights 1 {value}" if value[0] != "-" else f"a --weights={value}"):
        with pytest.raises(UserError, match=rf"^--(rate|weights): must be finite, found '{value}'$"):
            parse(line)


def test_numbers_have_bounds():
    assert parse("a --rate 1e-3 --size -7").rate == 1e-3
    for value in ("1" + "0" * 30, "-" + "9" * 19):
        with pytest.raises(UserError, match=r"^--size: -?\d+ is out of range$"):
            parse(f"a --size={value}")
    with pytest.raises(UserError, match=r"^--size: expected a whole number, found '99.* … 9+'$"):
        parse("a --size " + "9" * 5000)  # more digits than Python reads


def test_a_home_that_no_shell_has_put_in(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    args = parse("~/run base=~/old ./~/kept --text ~/x")
    assert args.runs == ["/home/me/run", "base=/home/me/old", "./~/kept"]
    assert args.text == "~/x"
    assert parse("--runs=~/run --text=~/x").runs == ["/home/me/run"]
    assert parse("", runs=["~/run", "~"]).runs == ["/home/me/run", "/home/me"]
    assert parse("~nobody-of-that-name/x").runs == ["~nobody-of-that-name/x"]


# --- one line -------------------------------------------------------------------------------------------------------


def test_one_line():
    assert one_line("喜 a\nb\x1b[2J\u2028\ud800") == r"喜 a\nb\x1b[2J\u2028\ud800"
    assert one_line(ValueError("a\n  b")) == "a b"
    assert one_line(ValueError()) == "ValueError"
    for text in ("a" * 10**6, "\n" * 10**6):
        assert len(one_line(text)) <= 300
    assert one_line("a" * 400 + "z")[-1] == "z"


SCRIPT = r"""
from dataclasses import dataclass
from data.arguments import UserError, flag, run
@dataclass
class Args:
    how: str = flag("", "how it ends")
def main(args):
    if args.how == "user": raise UserError("a\nb" + "c" * 10**6)
    if args.how == "full": raise OSError(28, "No space left on device", "/full/a.bin")
    if args.how == "long": open("a" * 5000)
    if args.how == "rust":
        from safetensors.numpy import save_file
        import numpy, resource, tempfile
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        with tempfile.TemporaryDirectory() as folder: save_file({"a": numpy.zeros(1000)}, folder + "/a")
    if args.how == "secret": raise UserError("no answer from http://me:hunter2@x: hf_aSecretToken is not valid, EMPTY")
    if args.how == "bug": raise ValueError("ours")
    for _ in range(100_000): print("喜\ud800")
run(main, Args, {})
"""


def ended(how: str, closed: bool = False, **environment: str) -> tuple[int, bytes]:
    """Exit code of a script that ends so, and what it complained of."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "--how", how], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip
    if closed:
        process.stdout.readline()
        process.stdout.close()
        return process.wait(timeout=60), process.stderr.read()
    complained = process.communicate(timeout=60)[1]
    return process.returncode, complained


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("user", rb"a\\nbc+ \xe2\x80\xa6 c+"),
        ("full", rb"/full/a\.bin: No space left on device \(ENOSPC\)"),
        ("long", rb"a+ \xe2\x80\xa6 a+: File name too long \(ENAMETOOLONG\)"),
        ("rust", rb"a file could not be read or written: File too large \(Error while serializing: .*os error 27\)\)"),
    ],
)
@pytest.mark.parametrize("environment", [{}, {"RANK": "1"}, {"RANK": "0", "WORLD_SIZE": "2"}])
def test_an_error_is_one_short_line(how, message, environment):
    code, complained = ended(how, **environment)
    assert code == 2
    assert re.fullmatch(rb"-c: error: " + message + rb"\n", complained), complained
    assert len(complained) < 1100


def test_an_error_holds_no_secret():
    code, complained = ended("secret", HF_TOKEN="hf_aSecretToken", OPENAI_API_KEY="EMPTY")
    assert (code, complained.decode()) == (2, "-c: error: no answer from http://…@x: … is not valid, EMPTY\n")


def test_a_fault_of_ours_keeps_its_traceback():
    code, complained = ended("bug")
    assert code == 1
    assert b"ValueError: ours" in complained


MISTAKEN = """
import sys
import data.arguments
data.arguments._SILENCE = float(sys.argv.pop())
def main(args):
    print("begun", flush=True)
    raise data.arguments.UserError("all wrong")
from tests.test_arguments import Args
data.arguments.run(main, Args, {"runs": ["a"]})
"""


def mistaken(process: int, silence: float) -> subprocess.Popen:
    """A process of two that makes a mistake."""
    launched = {
        "RANK": str(process), "LOCAL_RANK": str(process), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500",
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-c", MISTAKEN, str(silence)], cwd=ROOT, env=os.environ | launched, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_the_first_of_several_processes_has_time_to_say_a_mistake():
    """A launcher ends all where one has ended, so that the others wait for it, and say it themselves at last."""
    second = mistaken(1, silence=300)
    assert second.stdout.readline() == "begun\n"
    _, said = mistaken(0, silence=300).communicate(timeout=60)
    assert said == "-c: error: all wrong\n"
    assert second.poll() is None
    second.terminate()
    assert second.communicate(timeout=60)[1] == ""
    alone = mistaken(1, silence=0.1)
    assert alone.communicate(timeout=60)[1] == "-c: error: all wrong\n"
    assert alone.returncode == 2


def test_a_reader_that_hangs_up():
    code, complained = ended("", closed=True)
    assert (code, complained) == (141, b"")


def test_a_terminal_without_these_letters():
    assert ended("", PYTHONUTF8="0", PYTHONIOENCODING="ascii")[0] == 0


# --- processes ------------------------------------------------------------------------------------------------------


def test_processes(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (process_count(), process_index(), is_first_process()) == (1, 0, True)
    monkeypatch.setenv("RANK", "3")  # a stray one
    assert is_first_process()
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (process_count(), process_index(), is_first_process()) == (4, 3, False)
    monkeypatch.setenv("RANK", "4")
    with pytest.raises(UserError, match=r"^RANK=4: must be below WORLD_SIZE=4"):
        process_index()
    for value in ("", "two", "-1", "0", "1e3", "９"):
        monkeypatch.setenv("WORLD_SIZE", value)
        with pytest.raises(UserError, match=r"^WORLD_SIZE=.*: must be a whole number from 1"):
            process_count()

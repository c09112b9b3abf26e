"""The command line every script shares: flags from a dataclass, settings from `__main__`, mistakes in one line."""

import dataclasses
import difflib
import errno
import io
import json
import math
import os
import re
import signal
import sys
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from transformers.hf_argparser import HfArgumentParser

T = TypeVar("T")
# how a switch, a field of type bool, may be spelled; shown are the first two
SWITCH = {
    "on": True, "off": False, "true": True, "false": False, "yes": True, "no": False, "t": True, "f": False,
    "y": True, "n": False, "1": True, "0": False,
}  # fmt: skip


LINE_LIMIT = 1000  # characters of an error line
_USER_INFO = re.compile(r"://[^/\s@]*@")
_SECRET_NAME = re.compile(r"(TOKEN|KEY|PASSWORD|SECRET)$")  # HF_TOKEN, OPENAI_API_KEY ...
_SHORTEST_SECRET = 8  # servers without keys are given "EMPTY" or "none"
# control characters but tab and line feed, half characters, and those that turn the direction of what follows them
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
_SILENCE = 30.0  # seconds in which the first process of a distributed run has seen what another has
LARGEST_NUMBER = 2**63 - 1  # what libraries take for a whole number


class UserError(Exception):
    """A mistake in a flag, a file or a row. `str(error)` is one line that names it, what was found, what is wanted."""


def one_line(value: object, limit: int = 300) -> str:
    r"""`value` as one line of at most `limit` characters: what cannot be printed is escaped, the middle is left out.

    Passwords and keys are left out, too (`without_secrets`): others, such as a hub, may say them again. The text of an
    exception, which may be laid out in lines by a library, has its lines joined.

    >>> one_line("a\nb")
    'a\\nb'
    """
    text = " ".join(str(value).split()) or type(value).__name__ if isinstance(value, BaseException) else str(value)
    if len(text) > 4 * limit:  # before anything goes through all of it
        text = f"{text[: 2 * limit]}{text[-2 * limit :]}"
    text = without_secrets(text)
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= limit else f"{text[: limit * 2 // 3]} … {text[-(limit // 3 - 3) :]}"


def visible(value: Any) -> Any:
    r"""Text in which each character can be seen: control characters, half characters, and those that turn the direction
    of the text after them stand as their code. A terminal would obey them. What is no text is given back.

    >>> visible("a\x00b\u202ec")
    'a⟨U+0000⟩b⟨U+202E⟩c'
    """
    if type(value) is not str:
        return value
    return _UNSEEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", value.replace("\r\n", "\n"))


def json_line(value: Any) -> str:
    r"""`value` as a line of JSON that a terminal may show: what it would obey is escaped.

    >>> json_line("né\x9b2J")
    '"né\\u009b2J"'
    """
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))


def without_secrets(text: str) -> str:
    """`text` without the password of an address, and without what the environment keeps as a token or key.

    >>> without_secrets("no answer from https://me:my-word@mirror.example/x")
    'no answer from https://…@mirror.example/x'
    """
    text = _USER_INFO.sub("://…@", text)
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, "…")
    return text


class DivergedError(UserError):
    """Training came to numbers that are not finite: a mistake in how fast it learns, of one run and not of all."""


class TerminatedError(Exception):
    """The run was told to end, and has saved what the same command goes on from."""


def flag(default: Any, help: str) -> Any:
    """A dataclass field that is a flag: its default and the line `--help` shows."""
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata={"help": help})
    return dataclasses.field(default=default, metadata={"help": help})


def spelled(value: Any) -> str:
    """A setting as the command line spells it.

    >>> spelled(True), spelled(["typos", "case"])
    ('on', 'typos case')
    """
    if isinstance(value, list):
        return " ".join(map(spelled, value))
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


def _switch(text: str) -> bool:
    if text.lower() not in SWITCH:
        raise ArgumentTypeError(f"expected on or off, found {text!r}")
    return SWITCH[text.lower()]


def _finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ArgumentTypeError(f"expected a number, found {one_line(text, 60)!r}") from None
    if not math.isfinite(value):
        raise ArgumentTypeError(f"must be finite, found {one_line(text, 60)!r}")
    return value


def _whole(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise ArgumentTypeError(f"expected a whole number, found {one_line(text, 60)!r}") from None
    if abs(value) > LARGEST_NUMBER:
        raise ArgumentTypeError(f"{one_line(text, 60)} is out of range")
    return value


_NUMBERS = {float: _finite, int: _whole}


class _HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """One spelling a flag, no "(default: None)", and the script's docstring as it was written."""

    def _format_action_invocation(self, action) -> str:
        if not action.option_strings or len(action.option_strings) == 1 or "-h" in action.option_strings:
            return super()._format_action_invocation(action)
        shown = action.option_strings[0]
        return shown if action.nargs == 0 else f"{shown} {self._format_args(action, action.dest.upper())}"

    def _get_help_string(self, action) -> str | None:
        if action.default is None or action.default == []:
            return action.help
        if action.type is _switch or isinstance(action.default, list):
            return f"{action.help} (default: {spelled(action.default)})"
        return super()._get_help_string(action)


class _Parser(HfArgumentParser):
    @staticmethod
    def _parse_dataclass_field(parser, field):
        """Add a field's flag. A switch is `--name`, `--name on` or `--name off`, with no twin `--no_name`."""
        if field.type not in (bool, bool | None):
            HfArgumentParser._parse_dataclass_field(parser, field)
            action = parser._actions[-1]
            action.type = _NUMBERS.get(action.type, action.type)
            return
        names = dict.fromkeys((f"--{field.name}", f"--{field.name.replace('_', '-')}"))
        parser.add_argument(
            *names, type=_switch, nargs="?", const=True, default=field.default, metavar="on|off", **field.metadata
        )

    def error(self, message: str) -> NoReturn:
        # argparse names every spelling of a flag (`--batch_size/--batch-size`): one is enough
        raise UserError(re.sub(r"^argument (--\w+)(?:/--[\w-]+)*:", r"\1:", message))


def _nearest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _as_flags(settings: dict[str, Any], names: Sequence[str]) -> list[str]:
    """`{"batch_size": 8, "cot": True}` -> `["--batch_size", "8", "--cot", "True"]`; None means "not set"."""
    flags = []
    for name, value in settings.items():
        if name not in names:
            raise UserError(f"__main__: there is no setting {name!r}{_nearest(name, names)}")
        if value is not None:
            values = value if isinstance(value, (list, tuple)) else [value]
            flags += [f"--{name}", *map(str, values)]
    return flags


def _at_home(tokens: Sequence[str]) -> list[str]:
    """Command line with `~/…` as the user's home, where no shell has seen to it: `--flag=~/…`, `name=~/…`, settings."""
    return [
        token if before == "--text" or token.startswith("--text=")
        else re.sub(r"^(?:[^/=]*=)?~[^/]*(?=/|$)", _home, token)
        for before, token in pairwise(["", *tokens])
    ]  # fmt: skip


def _home(match: re.Match) -> str:
    name, tilde, user = match[0].rpartition("~")
    return name + os.path.expanduser(tilde + user)


def _with_flag(argv: Sequence[str], name: str, switches: Sequence[str]) -> list[str]:
    """`["a", "b", "--x", "1"]` -> `["--name", "a", "b", "--x", "1"]`; the values may also stand behind a switch."""
    if f"--{name}" in argv:
        return list(argv)
    for place, token in enumerate(argv):
        begins = place == 0 or (argv[place - 1] in switches and token.lower() not in SWITCH)
        if begins and not token.startswith("-"):
            return [*argv[:place], f"--{name}", *argv[place:]]
    return list(argv)


def parse_args(
    args_class: type[T],
    settings: dict[str, Any],
    description: str,
    argv: Sequence[str],
    positional: str | None = None,
) -> T:
    """Build `args_class` from its defaults, then `settings` (the `__main__` block), then `argv`; the later wins.

    Args:
        args_class: the dataclass of flags.
        settings: name -> value.
        description: what `--help` says before the flags.
        argv: the command line behind the script's name.
        positional: a flag with a list of values that may be left out: `a b` is short for `--runs a b`.

    Raises:
        UserError: a name neither the class nor the command line knows, or a value of the wrong type.
    """
    names = [field.name for field in dataclasses.fields(args_class)]
    parser = _Parser(
        args_class,
        description=description,
        usage=f"%(prog)s {f'[{positional} ...] ' if positional else ''}[--flag value ...]",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    if positional is not None:
        switches = [action for action in parser._actions if action.type is _switch]
        argv = _with_flag(argv, positional, [name for action in switches for name in action.option_strings])
    tokens = _at_home(_as_flags(settings, names) + list(argv))
    _, unknown = parser.parse_known_args(tokens)  # before the class finds fault with what is missing because of a typo
    if unknown:
        name = unknown[0].split("=")[0]
        raise UserError(f"unknown flag {name}{_nearest(name, [f'--{n}' for n in names])}")
    (args,) = parser.parse_args_into_dataclasses(args=tokens, look_for_args_file=False)
    return args


def process_count() -> int:
    """How many processes a launcher (torchrun, accelerate) started; 1 without one.

    Raises:
        UserError: WORLD_SIZE is set to something else than a number of processes.
    """
    return _from_launcher("WORLD_SIZE", least=1) or 1


def process_index() -> int:
    """Which of them this one is, from 0. A RANK that some cluster set for a process without a launcher means nothing.

    Raises:
        UserError: RANK or WORLD_SIZE is not a number, or they contradict each other.
    """
    count, index = process_count(), _from_launcher("RANK") or 0
    if count == 1:
        return 0
    if index >= count:
        raise UserError(f"RANK={index}: must be below WORLD_SIZE={count}; a launcher such as torchrun sets both")
    return index


def _from_launcher(name: str, least: int = 0) -> int | None:
    """A number in the environment; None where it is not set."""
    text = os.environ.get(name)
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < least:
        raise UserError(
            f"{name}={one_line(text, 60)}: must be a whole number from {least}, as launchers such as torchrun set it"
        )
    return int(text)


def is_first_process() -> bool:
    """Whether this is the one process that speaks for all of a distributed run."""
    return process_index() == 0


def check_at_least(args: Any, **minimums: float) -> None:
    """`check_at_least(args, batch_size=1)`: a number below its minimum is a `UserError` naming flag and value."""
    for name, minimum in minimums.items():
        value = getattr(args, name)
        if value is not None and not value >= minimum:  # "not >=" also catches nan
            raise UserError(f"--{name} {value}: must be at least {minimum}")


def check_output_dir(path: str, flag: str = "--output_dir") -> None:
    """Raise a `UserError` when `path` is no folder and cannot become one."""
    if not path:
        raise UserError(f"{flag}: is empty")
    existing = next(p for p in (Path(path).absolute(), *Path(path).absolute().parents) if p.exists())
    if not existing.is_dir():
        raise UserError(f"{flag} {path}: {'is' if existing == Path(path).absolute() else f'{existing} is'} a file")
    if not os.access(existing, os.W_OK):
        raise UserError(f"{flag} {path}: no permission to write in {existing}")


def run(
    main: Callable[[T], None], args_class: type[T], settings: dict[str, Any], positional: str | None = None
) -> None:
    """Parse the command line, call `main(args)`, and end with exit code 2 and one line on a user's mistake.

    Operating-system errors (a full disk, no permission, a path that is too long) end like mistakes. A reader that
    hangs up (`… | head -1`) ends the script quietly, with the exit code a shell gives such processes. Training that was
    told to end (`TerminatedError`) ends with 143.

    See `parse_args`; the script's docstring is its description.
    """
    path = Path(sys.argv[0])
    script = path.parent.name if path.name == "__main__.py" else path.name
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a path or text the terminal's encoding has no letters for
    try:
        speaks = is_first_process()
        _from_launcher("LOCAL_RANK")
        main(parse_args(args_class, settings, sys.modules["__main__"].__doc__ or "", sys.argv[1:], positional))
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a reader that has hung up is expected
    except UserError as error:
        _end(script, str(error), "speaks" not in locals() or speaks)
    except TerminatedError as error:
        if "speaks" not in locals() or speaks:
            print(f"{_line_begin()}{script}: {one_line(error, LINE_LIMIT)}", file=sys.stderr)
        sys.exit(143)  # what a shell gives a process that a SIGTERM has ended
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
        sys.exit(141)
    except Exception as error:
        if (message := _system_fault(error)) is None:
            raise
        _end(script, message)
    except KeyboardInterrupt:
        print(f"\n{script}: stopped", file=sys.stderr)  # behind a progress bar, or the ^C of the terminal
        sys.exit(130)


def _system_fault(error: Exception) -> str | None:
    """What the operating system refused, where that is what `error` says; None where it is another fault."""
    if isinstance(error, OSError) and error.errno is not None:  # without a number it is a library's own
        place = f"{error.filename}: " if error.filename is not None else ""
        return f"{place}{os.strerror(error.errno)} ({errno.errorcode.get(error.errno, error.errno)})"
    if number := re.search(r"\(os error (\d+)\)", str(error)):  # from Rust: safetensors, tokenizers
        return f"a file could not be read or written: {os.strerror(int(number[1]))} ({one_line(error)})"
    if re.search(r"inline_container\.cc|PytorchStreamWriter", str(error)):  # torch.save, which does not say why
        return f"a file could not be written; the disk may be full ({one_line(error)})"
    return None


def _end(script: str, message: str, speaks: bool = True) -> NoReturn:
    """Say a mistake, and end. A process that does not speak for all gives the one that does the time to: as soon as one
    has ended, their launcher ends the others. Where that does not come, the mistake is its own."""
    if not speaks:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(_SILENCE)
    print(f"{_line_begin()}{script}: error: {one_line(message, LINE_LIMIT)}", file=sys.stderr)
    sys.exit(2)


def _line_begin() -> str:
    """What has to be written for the next word to begin a line: a progress bar may stand on this one."""
    bars = sys.modules.get("tqdm")
    return "\n" if bars is not None and bars.tqdm._instances else ""

"""The command line every script shares: flags from a dataclass, settings from `__main__`, mistakes in one line."""

import dataclasses
import difflib
import os
import re
import sys
from argparse import ArgumentDefaultsHelpFormatter, ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from transformers.hf_argparser import HfArgumentParser

T = TypeVar("T")
# how a switch, a field of type bool, may be spelled; shown are the first two
SWITCH = {
    "on": True, "off": False, "true": True, "false": False, "yes": True, "no": False, "t": True, "f": False,
    "y": True, "n": False, "1": True, "0": False,
}  # fmt: skip


class UserError(Exception):
    """A mistake in a flag, a file or a row. `str(error)` is one line that names it, what was found, what is wanted."""


def flag(default: Any, help: str) -> Any:
    """A dataclass field that is a flag: its default and the line `--help` shows."""
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata={"help": help})
    return dataclasses.field(default=default, metadata={"help": help})


def spelled(value: Any) -> str:
    """A setting as the command line spells it: `True` is "on"."""
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


def _switch(text: str) -> bool:
    if text.lower() not in SWITCH:
        raise ArgumentTypeError(f"expected on or off, found {text!r}")
    return SWITCH[text.lower()]


class _HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """One spelling a flag, no "(default: None)", and the script's docstring as it was written."""

    def _format_action_invocation(self, action) -> str:
        if not action.option_strings or len(action.option_strings) == 1 or "-h" in action.option_strings:
            return super()._format_action_invocation(action)
        shown = action.option_strings[0]
        return shown if action.nargs == 0 else f"{shown} {self._format_args(action, action.dest.upper())}"

    def _get_help_string(self, action) -> str | None:
        if action.default is None:
            return action.help
        if action.type is _switch:
            return f"{action.help} (default: {spelled(action.default)})"
        return super()._get_help_string(action)


class _Parser(HfArgumentParser):
    @staticmethod
    def _parse_dataclass_field(parser, field):
        """Add a field's flag. A switch is `--name`, `--name on` or `--name off`, with no twin `--no_name`."""
        if field.type not in (bool, bool | None):
            HfArgumentParser._parse_dataclass_field(parser, field)
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
    tokens = _as_flags(settings, names) + list(argv)
    _, unknown = parser.parse_known_args(tokens)  # before the class finds fault with what is missing because of a typo
    if unknown:
        name = unknown[0].split("=")[0]
        raise UserError(f"unknown flag {name}{_nearest(name, [f'--{n}' for n in names])}")
    (args,) = parser.parse_args_into_dataclasses(args=tokens, look_for_args_file=False)
    return args


def is_first_process() -> bool:
    """Whether this is the one process that speaks for all of a distributed run (torchrun and accelerate set RANK)."""
    return os.environ.get("RANK", "0") == "0"


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

    See `parse_args`; the script's docstring is its description.
    """
    path = Path(sys.argv[0])
    script = path.parent.name if path.name == "__main__.py" else path.name
    try:
        main(parse_args(args_class, settings, sys.modules["__main__"].__doc__ or "", sys.argv[1:], positional))
    except UserError as error:
        if is_first_process():
            print(f"{script}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"\n{script}: stopped", file=sys.stderr)
        sys.exit(130)

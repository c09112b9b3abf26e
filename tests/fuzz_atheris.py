"""The inputs of tests/fuzz.py, guided by what code they reach: for an hour, where that one takes a minute.

    pip install atheris
    python -m tests.fuzz_atheris --seconds 600                       # all kinds in turn, and a table of what came of them
    python -m tests.fuzz_atheris --seconds 60 --kinds texts --corpus outputs/corpus

Atheris (libFuzzer for Python) changes bytes so that they reach new lines of `data/`, and Hypothesis makes inputs of them.
What breaks something is written to `--corpus`, and does not stop the others. Exit code 1: something was.
"""

import hashlib
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from data.arguments import UserError, check_at_least, flag, run

KINDS = ("data files", "task.json", "task.json of summaries", "run files", "labels", "flags", "answers", "texts",
         "archives")  # fmt: skip  # of tests/fuzz.py, which is not imported before its lines are watched
OUTCOMES = ("taken", "refused", "broken")
SEEDS = 60


@dataclass
class Args:
    kinds: list[str] = flag(list(KINDS), f"of {', '.join(KINDS)}")
    seconds: int = flag(600, "how long, for all kinds together")
    corpus: str | None = flag(None, "folder of inputs that reached something new, to go on with (default: a new one)")
    first_seed: int = flag(1, "seed of the changes")

    def __post_init__(self):
        check_at_least(self, seconds=1, first_seed=1)
        for kind in self.kinds:
            if kind not in KINDS:
                raise UserError(f"--kinds {kind}: must be one of {', '.join(KINDS)}")
        if find_spec("atheris") is None:
            raise UserError("Atheris is not installed (pip install atheris); python -m tests.fuzz does without it")


@dataclass
class Session:
    """What came of the inputs of a kind so far."""

    kind: str
    corpus: Path
    until: float
    outcomes: Counter = field(default_factory=Counter)
    broken: dict[str, str] = field(default_factory=dict)  # where -> what was raised there

    def note(self, content: bytes, error: Exception) -> None:
        """Keep the first input that breaks something at a place."""
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}:{last.lineno}"
        self.outcomes["broken"] += 1
        if place not in self.broken:
            file = self.corpus / f"broken-{hashlib.sha256(content).hexdigest()[:12]}"
            file.write_bytes(content)
            self.broken[place] = f"{type(error).__name__}: {error} ({file})"
            traceback.print_exception(error)

    def end(self) -> None:
        """Print a row of the table, and end the process, as libFuzzer would."""
        print(row(self.kind, *(f"{self.outcomes[name]:,}" for name in OUTCOMES)))
        for place, what in self.broken.items():
            print(f"{place}: {what}")
        sys.stdout.flush()
        os._exit(bool(self.broken))


def row(kind: str, *cells: str) -> str:
    """A line of the table."""
    return f"{kind:<24}" + "".join(f"{cell:>9}" for cell in cells)


def fuzz_kind(kind: str, seconds: float, corpus: Path, first_seed: int) -> None:
    """Attack one kind in this process, which ends with it."""
    import atheris

    with atheris.instrument_imports(include=["data"]):
        from tests import fuzz
    from hypothesis import HealthCheck, given, settings

    corpus.mkdir(parents=True, exist_ok=True)
    for i in range(SEEDS):  # from nothing, it takes long to inputs of which Hypothesis makes anything
        (corpus / f"seed-{i}").write_bytes(random.Random(first_seed + i).randbytes(64 << i % 6))
    session = Session(kind, corpus, time.monotonic() + seconds)
    lenient = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))
    test = lenient(given(fuzz.KINDS[kind][0])(fuzz.trying(kind, session.outcomes)))

    def try_one(content: bytes) -> None:
        if time.monotonic() > session.until:
            session.end()
        try:
            test.hypothesis.fuzz_one_input(content)
        except Exception as error:  # whatever an input breaks is what is looked for
            session.note(content, error)

    options = [f"-seed={first_seed}", "-max_len=8192", "-len_control=0", "-rss_limit_mb=8192", "-timeout=60"]
    atheris.Setup(
        [sys.argv[0], *options, "-verbosity=0", "-print_final_stats=0", f"-artifact_prefix={corpus}/", str(corpus)],
        try_one,
    )
    atheris.Fuzz()


def main(args: Args) -> None:
    os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"  # nobody answers
    corpus = Path(args.corpus or tempfile.mkdtemp(prefix="emotune-corpus-"))
    if len(args.kinds) == 1:
        fuzz_kind(args.kinds[0], args.seconds, corpus, args.first_seed)
    print(row("kind", *OUTCOMES), flush=True)
    codes = []
    for kind in args.kinds:  # a process each, which libFuzzer ends
        words = [
            sys.executable,
            "-m",
            "tests.fuzz_atheris",
            "--kinds",
            kind,
            "--corpus",
            str(corpus / kind.replace(" ", "-")),
        ]
        words += ["--seconds", str(max(1, args.seconds // len(args.kinds))), "--first_seed", str(args.first_seed)]
        codes.append(subprocess.run(words).returncode)
    sys.exit(int(any(codes)))


if __name__ == "__main__":
    run(main, Args, {})

"""What the soak test says of commands that survive a kill, and of those that do not."""

import random

import pytest

from data.arguments import UserError
from tests.soak import STAGES, Args, digest, killed_run, to_the_end

SLOW = "import sys, time, pathlib, os; out = pathlib.Path(sys.argv[1]); out.mkdir(exist_ok=True); "
WHOLE = SLOW + "time.sleep(0.4); (out / 'new').write_text('done'); os.replace(out / 'new', out / 'result')"
TWICE = SLOW + "(out / 'result').open('a').write('begun '); time.sleep(0.4); (out / 'end').write_text('')"


@pytest.mark.parametrize(("code", "survives"), [(WHOLE, True), (TWICE, False)])
def test_a_kill_is_survived_or_noticed(tmp_path, code, survives):
    seconds = to_the_end(("-c", code, tmp_path / "peace"), tmp_path / "log")
    assert seconds > 0.4
    kills = killed_run(("-c", code, tmp_path / "killed"), tmp_path / "log", 0.3, 3, random.Random(1))
    assert kills == 3
    wanted, found = (digest(tmp_path / name, ("result",)) for name in ("peace", "killed"))
    assert (wanted == found) == survives


def test_a_command_that_fails_or_writes_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="exit code 3 after 0 kills"):
        killed_run(("-c", "import sys; sys.exit(3)"), tmp_path / "log", 60, 3, random.Random(0))
    with pytest.raises(RuntimeError, match="exit code 4"):
        to_the_end(("-c", "import sys; sys.exit(4)"), tmp_path / "log")
    with pytest.raises(AssertionError, match="was not written"):
        digest(tmp_path, ("*.safetensors",))


def test_wrong_flags():
    with pytest.raises(UserError, match=r"--stages sleep: must be of sft, full, sampled, exact, merge, inference"):
        Args(stages=["sft", "sleep"])
    with pytest.raises(UserError, match="--kills 0: must be at least 1"):
        Args(kills=0)
    assert set(Args().stages) == set(STAGES)

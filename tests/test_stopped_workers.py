"""`inference.py --workers 2`, of which one is killed, or which is stopped: one line, no process left, and it goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from inference import Predictor
from tests.conftest import ROOT, SAMPLE

pytestmark = pytest.mark.real  # not for its weights, but since a dozen processes have to start: minutes

ROWS = 1600
SECONDS = 300


def children(pid: int) -> list[int]:
    """The processes that predict for a process; Python starts one more, that looks after its files."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def words(tiny_model_dir, tmp_path) -> list[str]:
    """The command; its file takes some seconds."""
    texts = [line.split("\t")[0] for line in (SAMPLE / "train.tsv").read_text(encoding="utf-8").splitlines()]
    rows = (f"{texts[n % len(texts)]} {n}\t{n % 4}\n" for n in range(ROWS))
    (tmp_path / "rows.tsv").write_text("".join(rows), encoding="utf-8")
    return [
        sys.executable, "inference.py", "--model_path", str(tiny_model_dir), "--task", "goemotions-group", "--precision", "fp32",
        "--test_data_path", str(tmp_path / "rows.tsv"), "--output_dir", str(tmp_path / "out"), "--batch_size", "8",
    ]  # fmt: skip


def disturbed(
    words: list[str], when: Callable[[int], bool], disturb: Callable[[int, list[int]], None]
) -> tuple[int, list[str]]:
    """Exit code of a command, and the lines in which it says its name, that is disturbed at a moment; none of its processes outlives it."""
    with subprocess.Popen(
        [*words, "--workers", "2"], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        deadline = time.monotonic() + SECONDS
        while len(workers := children(process.pid)) < 2 or not when(process.pid):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        disturb(process.pid, workers)
        complained = process.communicate(timeout=60)[1]
    until = time.monotonic() + 20
    while any(map(is_alive, workers)):
        assert time.monotonic() < until, "a worker is left"
        time.sleep(0.05)
    assert "Traceback" not in complained
    return process.returncode, [line for line in complained.splitlines() if line.startswith("inference.py: ")]


def test_a_run_whose_workers_are_killed_and_stopped_comes_to_its_end(words, tmp_path):
    partial, out = tmp_path / "out" / "predictions.partial.jsonl", tmp_path / "out"
    said = "inference.py: error: --workers 2: worker {} ended with exit code -9 (-9: killed, as systems do when memory runs out); "
    said += "what is written is kept, and the same command goes on"

    def predicts(_: int) -> bool:
        return partial.is_file() and partial.stat().st_size > written

    written = 0
    # while it starts
    assert disturbed(words, lambda _: True, lambda _, workers: os.kill(workers[1], signal.SIGKILL)) == (
        2,
        [said.format(2)],
    )
    # while it predicts
    assert disturbed(words, predicts, lambda _, workers: os.kill(workers[0], signal.SIGKILL)) == (2, [said.format(1)])
    kept = partial.read_bytes()
    assert 0 < kept.count(b"\n") < ROWS
    # Ctrl-C, which a terminal sends to all of them, while the rest is predicted
    written = len(kept)
    assert disturbed(words, predicts, lambda pid, _: os.killpg(pid, signal.SIGINT)) == (130, ["inference.py: stopped"])
    assert partial.read_bytes().startswith(kept)
    subprocess.run([*words, "--workers", "2"], cwd=ROOT, check=True, capture_output=True, timeout=SECONDS)
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == len({row["text"] for row in rows}) == ROWS
    assert (out / "predictions.jsonl").read_bytes().startswith(kept)
    with Predictor(
        words[words.index("--model_path") + 1], "goemotions-group", precision="fp32", device="cpu"
    ) as predictor:
        alone = predictor.predict_batch([row["text"] for row in rows[::16]])
    assert [row["labels"] for row in rows[::16]] == [list(one.labels) for one in alone]

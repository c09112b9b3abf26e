"""scripts/label_corpus.py on a real Ray: pip install -r scripts/requirements-ray.txt; bash scripts/test.sh -m ray"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from data.arguments import UserError
from data.corpus import look_at
from data.tasks import BUILT_IN_TASKS
from tests.conftest import ROOT, SAMPLE

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs scripts/requirements-ray.txt"),
]
ROWS = 2_000
ACTOR = "ray::MapWorker(MapBatches(Labeller))"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A folder with the sample's comments, over and over, in three files."""
    folder = tmp_path_factory.mktemp("corpus") / "in"
    folder.mkdir()
    texts = [line.split("\t")[0] for line in (SAMPLE / "train.tsv").read_text(encoding="utf-8").splitlines()]
    rows = [{"id": f"r{i}", "text": texts[i % len(texts)]} for i in range(ROWS)]
    for name, begin, end in (("a", 0, 301), ("b", 301, 1_500), ("c", 1_500, ROWS)):
        lines = (json.dumps(row) + "\n" for row in rows[begin:end])
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def start(model: Path, corpus: Path, output: Path, *flags: str) -> subprocess.Popen:
    command = [
        sys.executable, "-m", "scripts.label_corpus", "--model_path", model, "--task", "goemotions-original",
        "--input_path", corpus, "--output_dir", output, "--workers", "2", "--rows_per_part", "40", "--precision", "fp32",
        *flags,
    ]  # fmt: skip
    return subprocess.Popen(
        list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def finish(process: subprocess.Popen, code: int = 0) -> tuple[str, str]:
    stdout, stderr = process.communicate(timeout=600)
    assert process.returncode == code, stderr[-4000:]
    return stdout, stderr


def parts(output: Path) -> dict[str, bytes]:
    """What the parts are, by name, with what stands beside them."""
    return {path.name: path.read_bytes() for path in sorted(output.glob("predictions-*"))}


def wait_for(what, seconds: float = 300):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def processes(process: subprocess.Popen, name: str) -> list[psutil.Process]:
    """Those of a local Ray that are called so."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if " ".join(child.cmdline()).startswith(name):
                found.append(child)
        except psutil.Error:  # it has ended meanwhile
            continue
    return found


@pytest.fixture(scope="module")
def undisturbed(tiny_model_dir, corpus, tmp_path_factory) -> tuple[Path, str]:
    """The parts of a run that nobody disturbed, and what it said."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    stdout, stderr = finish(start(tiny_model_dir, corpus, output))
    assert "Traceback" not in stderr
    assert "Warning" not in stderr
    return output, stdout


def test_every_row_is_there_once_and_in_order(undisturbed):
    output, stdout = undisturbed
    rows = [
        json.loads(line)
        for path in sorted(output.glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    assert [row["id"] for row in rows] == [f"r{i}" for i in range(ROWS)]
    summary = json.loads((output / "corpus_summary.json").read_text())
    assert summary["rows"] == ROWS
    assert sum(summary["labels"].values()) == sum(len(row["labels"]) for row in rows)
    assert "2,000 rows of 3 files in 50 parts" in stdout
    assert "rows/s by 2 workers" in stdout


def test_killed_processes_lose_and_double_nothing(undisturbed, tiny_model_dir, corpus, tmp_path):
    """kill -9 of a process with a model: once before it has answered anything, and twice in the middle."""
    process = start(tiny_model_dir, corpus, tmp_path / "out")
    killed = set()
    for at_least in (0, 5, 20):
        wait_for(lambda least=at_least: len(list((tmp_path / "out").glob("*.jsonl"))) >= least)
        victims = wait_for(lambda: [each for each in processes(process, ACTOR) if each.pid not in killed])
        victims[0].kill()
        killed.add(victims[0].pid)
    finish(process)
    assert len(killed) == 3
    assert parts(tmp_path / "out") == parts(undisturbed[0])


def test_the_same_command_goes_on_where_it_was_killed(undisturbed, tiny_model_dir, corpus, tmp_path):
    output = tmp_path / "out"
    process = start(tiny_model_dir, corpus, output)
    wait_for(lambda: len(list(output.glob("*.jsonl"))) >= 10)
    workers = processes(process, ACTOR)
    process.kill()
    process.wait()
    assert workers
    assert not psutil.wait_procs(workers, timeout=60)[1]  # Ray's own two agents take a minute more
    made = {path.name: path.stat().st_mtime_ns for path in output.glob("*.jsonl")}
    assert 10 <= len(made) < 50

    _, stderr = finish(start(tiny_model_dir, corpus, output, "--max_length", "300"), code=2)
    assert "--max_length 300: " in stderr.splitlines()[-1]
    assert "began with None" in stderr.splitlines()[-1]
    _, stderr = finish(start(tiny_model_dir, corpus, output))
    assert f"{len(made)} of 50 parts are there already" in stderr
    assert parts(output) == parts(undisturbed[0])
    assert {name: (output / name).stat().st_mtime_ns for name in made} == made


def test_nothing_listens_beyond_this_machine(tiny_model_dir, corpus, tmp_path):
    process = start(tiny_model_dir, corpus, tmp_path / "out")
    wait_for(lambda: processes(process, ACTOR))
    everyone = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    addresses = {
        connection.laddr.ip
        for each in everyone
        for connection in each.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert addresses
    assert addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_a_bad_row_is_one_line(tiny_model_dir, corpus, tmp_path):
    bad = tmp_path / "bad.csv"
    bad.write_text("id,text\n1,fine\n2,\n")
    with pytest.raises(UserError) as error:
        look_at(str(bad), BUILT_IN_TASKS["goemotions-original"], False)
    _, stderr = finish(start(tiny_model_dir, bad, tmp_path / "out"), code=2)
    assert stderr.splitlines()[-1] == f"label_corpus.py: error: {error.value}"
    assert "Traceback" not in stderr
    assert not (tmp_path / "out").exists()

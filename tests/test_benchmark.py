import json
import subprocess
import sys

import pytest

from data.arguments import UserError
from scripts.benchmark import SFT_CASES, Args, Contestant, table, train_file
from tests.conftest import ROOT, SAMPLE


def echo(turns, word: str) -> None:
    for number in range(2):
        turns.wait()
        turns.done(said=f"{word} {number}")
    turns.wait()
    raise ValueError("no more words")


@pytest.mark.real  # ten seconds of importing torch
def test_contestants_take_turns():
    racers = [Contestant(echo, word="first"), Contestant(echo, word="second")]
    said = [racer.turn() for _ in range(2) for racer in racers]
    assert [entry["said"] for entry in said] == ["first 0", "second 0", "first 1", "second 1"]
    assert all(entry["seconds"] > 0 and entry["peak_bytes"] > 2**20 for entry in said)
    with pytest.raises(RuntimeError, match="ValueError: no more words"):
        racers[0].turn()
    racers[1]._process.kill()  # as the system does when memory runs out
    racers[1]._process.join()
    with pytest.raises(UserError, match="a contestant died"):
        racers[1].turn()
    for racer in racers:
        racer.stop()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"model_path": None}, "--model_path is needed"),
        ({"cases": ["28-labels", "27"]}, "--cases 27: must be of 28-labels, 4-labels"),
        ({"contestants": ["me"]}, "--contestants me: must be of trl, plain"),
        ({"rounds": 0}, "--rounds 0: must be at least 1"),
    ],
)
def test_wrong_flags(flags, message):
    with pytest.raises(UserError, match=message):
        Args(**{"model_path": "somewhere"} | flags)


def test_data_that_is_not_there(tmp_path):
    args = Args(model_path="somewhere", data_dir=str(tmp_path))
    with pytest.raises(UserError, match="no train file there; get it with: python download"):
        train_file(args, SFT_CASES["4-labels"])


def test_the_table():
    figures = {"examples_per_second": 12.0, "tokens_a_step": 900, "peak_gib": 2.5, "times_the_limit": 3.25}
    assert table({"a": {"contestants": {"ours": figures | {"speedup": 12.04}, "alone": figures}}}).splitlines()[2:] == [
        "| a | ours | 12.0 | 12.0× | 900 | 2.5 GiB | 3.2 |",
        "| a | alone | 12.0 | – | 900 | 2.5 GiB | 3.2 |",
    ]


@pytest.mark.real
def test_the_command_on_a_tiny_model(tiny_model_dir, tmp_path):
    (tmp_path / "goemotions" / "original").mkdir(parents=True)
    (tmp_path / "goemotions" / "original" / "train.tsv").write_bytes((SAMPLE / "train.tsv").read_bytes())
    subprocess.run(
        [sys.executable, "-m", "scripts.benchmark", "sft", "--model_path", str(tiny_model_dir), "--data_dir",
         str(tmp_path), "--output_dir", str(tmp_path / "out"), "--cases", "28-labels", "--contestants", "trl", "ours",
         "--rounds", "2", "--warmup", "1"],
        cwd=ROOT, check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    (case,) = json.loads((tmp_path / "out" / "benchmark_sft.json").read_text()).values()
    trl, ours = case["contestants"]["trl"], case["contestants"]["ours"]
    assert trl["tokens_a_step"] > 3 * ours["tokens_a_step"]
    assert ours["tokens_a_step"] == pytest.approx(case["unique_tokens"], rel=0.3)
    assert trl["speedup"] == 1.0
    assert len(ours["all_seconds"]) == 2

"""The page of scripts/web.py, asked as a browser asks it."""

import csv
import os
import socket
import subprocess
import sys
import time

import pytest
from gradio_client import Client, handle_file

from data.arguments import UserError
from scripts.web import free_port
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def page(tiny_model_dir, tmp_path_factory):
    """Address of a page over a tiny model with random weights."""
    log = tmp_path_factory.mktemp("web") / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "scripts.web", "--model_path", str(tiny_model_dir), "--task", "emotion", "--port", "0"],
            cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while "http://" not in log.read_text() or not _listens(_address(log)):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield _address(log)
    finally:
        process.terminate()
        process.wait(30)


def _address(log) -> str:
    return log.read_text().split(" (Ctrl-C")[0].split()[-1]


def _listens(address: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(address.rpartition(":")[2]))) == 0


def test_one_text_several_and_a_file(page, tmp_path):
    client = Client(page, verbose=False)
    labels, bars = client.predict("so happy today", api_name="/read")
    probabilities = {entry["label"]: entry["confidence"] for entry in bars["confidences"]}
    assert labels == f"### {bars['label']}"
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-3)

    found, saved = client.predict("so happy today\n\nhow dare they", api_name="/read_all")
    assert [row[0] for row in found["data"]] == ["so happy today", "how dare they"]
    assert found["data"][0][1] == bars["label"]
    with open(saved["value"] if isinstance(saved, dict) else saved, encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["labels"] == bars["label"]
    assert float(rows[0]["anger"]) == pytest.approx(probabilities["anger"], abs=1e-2)

    (tmp_path / "mine.tsv").write_text("what a day\tjoy\nno way\tanger\n", encoding="utf-8")
    found, _ = client.predict(handle_file(tmp_path / "mine.tsv"), api_name="/read_file")
    assert [row[0] for row in found["data"]] == ["what a day", "no way"]
    (tmp_path / "broken.tsv").write_text("what a day\tjoy\nno way\thunger\n", encoding="utf-8")
    with pytest.raises(Exception, match=r"broken.tsv:2: label 'hunger' is not in the label set"):
        client.predict(handle_file(tmp_path / "broken.tsv"), api_name="/read_file")


def test_a_port_in_use():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(UserError, match=f"--port {other.getsockname()[1]}: Address already in use; choose another"):
            free_port(other.getsockname()[1])

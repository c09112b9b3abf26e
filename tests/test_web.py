"""The page of scripts/web.py, asked as a browser asks it."""

import csv
import dataclasses
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from gradio_client import Client, handle_file

from data.arguments import UserError
from data.conformal import Promise
from data.files import exclusive
from data.predictions import Prediction
from scripts import web
from scripts.web import free_port, plain_cell, private_folder
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def temporary(tmp_path_factory):
    """The page's folder for temporary files; one of a page that was killed lies in it."""
    folder = tmp_path_factory.mktemp("tmp")
    (folder / "emotune-web-killed").mkdir()
    (folder / "emotune-web-killed" / "predictions.csv").write_text("a text of somebody")
    return folder


@pytest.fixture(scope="module")
def page(tiny_model_dir, tmp_path_factory, temporary):
    """Address of a page over a tiny model with random weights."""
    log = tmp_path_factory.mktemp("web") / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "scripts.web", "--model_path", str(tiny_model_dir), "--task", "emotion", "--port", "0"],
            cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=os.environ | {"PYTHONUNBUFFERED": "1", "TMPDIR": str(temporary)},
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
    assert list(temporary.iterdir()) == [], "texts stay behind"


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


def test_twenty_clients_at_once(page):
    """All have the answers that they have alone, and none waits for ever."""
    texts = [f"so happy {n} times, and afraid" for n in range(20)]
    one = Client(page, verbose=False)
    alone = [
        (one.predict(text, api_name="/read"), one.predict(text, api_name="/read_all")[0]["data"]) for text in texts
    ]
    clients, begin = [one, *(Client(page, verbose=False) for _ in texts[1:])], threading.Barrier(20)

    def ask(client: Client, text: str):
        begin.wait(60)
        jobs = client.submit(text, api_name="/read"), client.submit(text, api_name="/read_all")
        read, several = (job.result(timeout=120) for job in jobs)
        return read, several[0]["data"]

    with ThreadPoolExecutor(20) as pool:
        together = list(pool.map(ask, clients, texts, timeout=200))
    assert together == alone
    assert len({json.dumps(bars) for (_, bars), _ in alone}) > 10, "whose answer is whose would not show"


def files_in(folder) -> list[tuple[str, str]]:
    return [(path.name, path.read_text(errors="replace")) for path in folder.rglob("*") if path.is_file()]


def test_what_was_uploaded_does_not_stay(page, temporary, tmp_path):
    (tmp_path / "secret.txt").write_text("my secret\nanother\n")
    found, saved = Client(page, verbose=False).predict(handle_file(tmp_path / "secret.txt"), api_name="/read_file")
    assert [row[0] for row in found["data"]] == ["my secret", "another"]
    files = files_in(temporary)
    assert "secret.txt" not in dict(files)
    assert not any("emotune-web-killed" in path.name for path in temporary.iterdir())
    ours = [name for name, content in files if "my secret" in content]
    assert ours == ["predictions.csv"]  # for an hour, to be saved
    assert "my secret" in Path(saved["value"] if isinstance(saved, dict) else saved).read_text(encoding="utf-8-sig")


def ask(page: str, method: str = "GET", path: str = "/", **headers: str) -> int:
    """The status of a request that a browser would not be let make."""
    connection = http.client.HTTPConnection(page.removeprefix("http://"), timeout=30)
    body = json.dumps({"data": ["so happy"]}) if method == "POST" else None
    connection.request(method, path, body, {"Content-Type": "application/json"} | headers)
    return connection.getresponse().status


def test_only_this_machine_is_listened_to(page):
    """By whatever address another one may know it."""
    port = int(page.rpartition(":")[2])
    heard = {
        each.laddr.ip for each in psutil.net_connections("tcp") if each.status == "LISTEN" and each.laddr.port == port
    }
    assert heard == {"127.0.0.1"}


def test_other_sites_are_refused(page):
    port = page.rpartition(":")[2]
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}", "localhost"):
        assert ask(page, Host=host) == 200
    for host in (f"evil.example:{port}", "evil.example", f"127.0.0.1.evil.example:{port}", f"192.168.0.2:{port}", ""):
        assert ask(page, Host=host) == 400
        assert ask(page, "POST", "/gradio_api/call/read", Host=host) == 400
    for origin in (f"http://127.0.0.1:{port}", f"http://localhost:{port}"):
        assert ask(page, "POST", "/gradio_api/call/read", Origin=origin) == 200
    for origin in (
        "https://evil.example",
        "null",
        "http://localhost.evil.example",
        "http://localhost:80@evil.example",
        "[",
    ):
        assert ask(page, "POST", "/gradio_api/call/read", Origin=origin) == 403
        assert ask(page, "POST", "/gradio_api/upload", Origin=origin) == 403


def test_too_much_is_refused_at_once(page, tmp_path):
    client = Client(page, verbose=False)
    started = time.monotonic()
    with pytest.raises(Exception, match=r"a text of 10,000,000 characters: at most 100,000 are read"):
        client.predict("very sad " * 1_111_111 + "!", api_name="/read")
    message = r"more than 10,000 rows or 5,000,000 characters: use inference\.py --test_data_path"
    with pytest.raises(Exception, match=message):
        client.predict("so sad\n" * 10_001, api_name="/read_all")
    with pytest.raises(Exception, match=message):
        client.predict(("so sad " * 10_000 + "\n") * 100, api_name="/read_all")
    (tmp_path / "long.txt").write_text("so sad\n" * 10_001)
    with pytest.raises(Exception, match=message):
        client.predict(handle_file(tmp_path / "long.txt"), api_name="/read_file")
    (tmp_path / "large.txt").write_bytes(b"so sad\n" * 3_000_000)
    with pytest.raises(Exception, match="exceeds the maximum file size of 20000000 bytes"):
        client.predict(handle_file(tmp_path / "large.txt"), api_name="/read_file")
    with (tmp_path / "large.txt").open("rb") as file:  # by a client that does not look at its size
        assert httpx.post(f"{page}/gradio_api/upload", files={"files": file}, timeout=30).status_code == 413
    assert time.monotonic() - started < 20
    assert client.predict("so happy today", api_name="/read")[0].startswith("### ")


def test_mistakes_are_messages_and_no_markup(page, tmp_path):
    client = Client(page, verbose=False)
    (tmp_path / "evil.tsv").write_text("what a day\tjoy\nno way\t<img src=x onerror=alert(1)>\n")
    with pytest.raises(Exception, match=r"evil\.tsv:2: label '&lt;img src=x onerror=alert\(1\)&gt;' is not in"):
        client.predict(handle_file(tmp_path / "evil.tsv"), api_name="/read_file")
    with pytest.raises(UserError, match="half a character"):
        web.check_texts(["a \ud800 text"])
    assert client.predict(" \n ", api_name="/read")[0] == ""


def test_a_file_is_read_no_further_than_the_limit(monkeypatch):
    def endless(*_, **__):
        for i in range(10**9):
            assert i <= web.MOST_ROWS
            yield types.SimpleNamespace(text="so sad")

    monkeypatch.setattr(web, "read_examples", endless)
    with pytest.raises(UserError, match="more than 10,000 rows"):
        web.check_texts(web.texts_of("x.tsv", None))


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("http://x")', "＝1+1", "\n=1"]
)
def test_no_cell_is_a_formula(text, tmp_path):
    assert plain_cell(text) == f"'{text}"
    predictor = types.SimpleNamespace(
        task=types.SimpleNamespace(labels=("=label", "joy")),
        promised=None,
        predict_batch=lambda texts: (
            [Prediction(("=label",), True, confidence=0.5, probabilities={"=label": 0.75, "joy": 0.25})] * len(texts)
        ),
    )
    rows, path = web.table(predictor, [text])
    assert rows[0][0] == text  # on the page, as it is
    with open(path, encoding="utf-8-sig", newline="") as file:
        header, cells = csv.reader(file)
    assert header == ["text", "labels", "confidence", "'=label", "joy"]
    assert (cells[:2], cells[3:]) == ([f"'{text}", "'=label"], ["0.750000", "0.250000"])
    assert plain_cell("so sad = -1") == "so sad = -1"


def test_sets_of_labels_are_shown(tmp_path):
    few = Prediction(("joy",), True, confidence=0.8, probabilities={"joy": 0.8, "=fear": 0.2}, label_set=("joy",))
    many = dataclasses.replace(few, label_set=("joy", "=fear"), abstained=True)
    predictor = types.SimpleNamespace(
        task=types.SimpleNamespace(labels=("joy", "=fear")),
        promised=Promise(0.9, 0.2, 50),
        predict=lambda text: many if "?" in text else few,
        predict_batch=lambda texts: [few, many],
    )
    assert web.answer(predictor, "fine")[0] == "### joy\n\nSet: joy"
    assert web.answer(predictor, "fine?")[0] == "### joy\n\nSet: abstains, 2 labels may be right: joy, =fear"
    rows, path = web.table(predictor, ["fine", "fine?"])
    assert [row[3] for row in rows] == ["joy", "abstains, 2 labels may be right: joy, =fear"]
    with open(path, encoding="utf-8-sig", newline="") as file:
        header, *cells = csv.reader(file)
    assert header == ["text", "labels", "confidence", "0.9 set", "joy", "'=fear"]
    assert cells[0] == ["fine", "joy", "0.800000", "joy", "0.800000", "0.200000"]


def test_folders_of_pages(tmp_path, monkeypatch):
    """One in use is left, one left behind is removed; nothing that only has its name is followed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("used", "left", "elsewhere"):
        (tmp_path / f"emotune-web-{name}" if name != "elsewhere" else tmp_path / name).mkdir()
    (tmp_path / "emotune-web-link").symlink_to(tmp_path / "elsewhere")
    monkeypatch.setenv("GRADIO_TEMP_DIR", "x")
    with exclusive(tmp_path / "emotune-web-used", "page"), private_folder():
        assert tempfile.gettempdir() == os.environ["GRADIO_TEMP_DIR"]
        own = Path(tempfile.gettempdir())
        assert own.stat().st_mode & 0o77 == 0
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {"emotune-web-used", "emotune-web-link", "elsewhere", own.name}
        Path(tempfile.mkdtemp(), "text").write_text("x")
    assert not own.exists()
    assert tempfile.gettempdir() == str(tmp_path)


def test_a_port_in_use():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(UserError, match=f"--port {other.getsockname()[1]}: Address already in use; choose another"):
            free_port(other.getsockname()[1])

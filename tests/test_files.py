import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from data.arguments import UserError
from data.files import atomic_writer, exclusive, file_hash, read_json, sample_hash, write_json, write_json_lines
from tests.conftest import ROOT


def test_a_json_object_comes_back(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json(path, {"label": "喜悦", "f1": [0.5, None]})
    assert read_json(path) == {"label": "喜悦", "f1": [0.5, None]}
    assert "喜悦" in path.read_text(encoding="utf-8")
    assert read_json(tmp_path / "nowhere.json", missing_ok=True) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"a.json: cannot be read \(No such file or directory\)$"),
        (b"{", r"a.json: not a JSON object \(Expecting property name"),
        (b"[]", r"a.json: not a JSON object \(but a list\)$"),
        (b"null", r"a.json: not a JSON object \(but null\)$"),
        (b'{"a":' * 100_000, r"a.json: not a JSON object \(maximum recursion depth exceeded"),
        (b'{"a": ' + b"9" * 5000 + b"}", r"a.json: not a JSON object \(Exceeds the limit \(4300 digits\)"),
        (b'{"r": "8"}', r"a.json: r is '8', expected a whole number$"),
        (b'{"r": true}', r"a.json: r is True, expected a whole number$"),
        (b'{"a": "\xff"}', r"a.json: not a JSON object \('utf-8' codec can't decode byte 0xff"),
    ],
)
def test_what_is_no_json_object(tmp_path, content, message):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_json(path, missing_ok=True, fields={"r": int})  # only a missing file may be missing
    with pytest.raises(UserError, match=message):
        read_json(path, fields={"r": int})


def test_a_pipe_or_an_endless_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    for path in (tmp_path / "a.json", "/dev/zero", tmp_path):
        with pytest.raises(UserError, match=r"cannot be read \(not a file\)$"):
            read_json(path)


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    def write_half():
        with atomic_writer(path) as file:
            file.write("after")
            raise KeyboardInterrupt

    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_json_holds_finite_numbers_only(tmp_path, number):
    path = tmp_path / "a.json"
    write_json(path, {"loss": 1.0})
    with pytest.raises(UserError, match=r"a.json: loss \((nan|inf|-inf)\) is not a finite number; nothing is written$"):
        write_json(path, {"best": [{"loss": 1.0}, {"loss": number}]})
    with pytest.raises(UserError, match="is not a finite number"):
        write_json_lines(path, [{"f1": 1.0}, {"f1": number}])
    assert read_json(path) == {"loss": 1.0}
    assert list(tmp_path.iterdir()) == [path]


def test_half_a_character_is_written_as_its_escape(tmp_path):
    write_json_lines(tmp_path / "rejected.jsonl", [{"text": "a\ud800喜"}])
    assert json.loads((tmp_path / "rejected.jsonl").read_text(encoding="utf-8")) == {"text": "a\ud800喜"}


def test_hashes(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"abc")
    assert file_hash(path) == hashlib.sha256(b"abc").hexdigest()
    assert file_hash(path, "sha1", b"x") == hashlib.sha1(b"xabc").hexdigest()
    before = sample_hash(path)
    path.write_bytes(b"abd")
    assert sample_hash(path) != before
    large = bytearray(os.urandom(3_000_000))
    path.write_bytes(large)
    before = sample_hash(path)
    assert sample_hash(path) == before
    for place in (0, -1):  # the first and the last byte are among the samples
        changed = large.copy()
        changed[place] ^= 1
        path.write_bytes(changed)
        assert sample_hash(path) != before
    path.write_bytes(b"")
    sample_hash(path)


def test_one_process_writes_at_a_time(tmp_path):
    hold = f"import time; from data.files import exclusive\nwith exclusive({str(tmp_path / 'out')!r}): time.sleep(60)"
    owner = subprocess.Popen([sys.executable, "-c", hold], cwd=ROOT)
    try:
        end = time.time() + 30
        while not (tmp_path / "out" / ".run.lock").exists() and time.time() < end:
            time.sleep(0.05)
        time.sleep(0.2)
        with pytest.raises(UserError, match="out: another process is writing here"), exclusive(tmp_path / "out"):
            pass
        with exclusive(tmp_path / "out", "another"):  # a lock of its own
            pass
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    with exclusive(tmp_path / "out"):  # it has gone with its owner
        pass


def test_a_lock_leaves_no_empty_folders(tmp_path):
    with exclusive(tmp_path / "new" / "run"):
        assert (tmp_path / "new" / "run" / ".run.lock").is_file()
    assert list(tmp_path.iterdir()) == []
    with exclusive(tmp_path / "new" / "run"):
        write_json(tmp_path / "new" / "run" / "a.json", {})
    (tmp_path / "mine").mkdir()
    with exclusive(tmp_path / "mine"):
        pass
    assert (tmp_path / "new" / "run" / "a.json").is_file()
    assert (tmp_path / "mine").is_dir()

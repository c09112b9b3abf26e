"""data/replacing.py: killed at any call that changes the disk, a target is whole, old or new, at the latest at the next start."""

import json
import os
import shutil
from pathlib import Path

import pytest

from data.arguments import UserError
from data.files import exclusive
from data.replacing import alone_beside, check_place, file_sizes, is_whole, settle, staging_folder, take_place

MARK = "report.json"
CALLS = ("mkdir", "rename", "replace", "rmdir", "unlink")  # that change a folder


def write(folder: Path, content: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights").write_text(content)
    (folder / "config").write_text(content)
    (folder / MARK).write_text(json.dumps({"of": content, "files": file_sizes(folder)}))
    return folder


def make(target: Path, content: str) -> None:
    """What a merge does."""
    with alone_beside(target) as staging:
        settle(target, MARK)
        if is_whole(target, MARK) and json.loads((target / MARK).read_text())["of"] == content:
            return
        write(staging / "model", content)
        take_place(staging, target, MARK)


def killed_at(call: int, target: Path, content: str) -> bool:
    """Make `target` in a process that ends before its `call`-th change of a folder; whether it came that far."""
    child = os.fork()
    if child == 0:
        left = [call]

        def counted(function):
            def wrapper(*args, **kwargs):
                left[0] -= 1
                if left[0] < 0:
                    os._exit(9)
                return function(*args, **kwargs)

            return wrapper

        for name in CALLS:
            setattr(os, name, counted(getattr(os, name)))
        make(target, content)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def content_of(folder: Path) -> str | None:
    """The content of a folder that is whole."""
    if not (folder / MARK).exists():
        return None
    (content,) = {(folder / name).read_text() for name in ("weights", "config")}
    return content


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("before", ["nothing", "an empty folder", "a model"])
def test_killed_anywhere(tmp_path, before, capfd):
    call, reached, outcomes = 0, True, set()
    while reached:
        target = tmp_path / str(call) / "merged"
        target.parent.mkdir()
        if before == "an empty folder":
            target.mkdir()
        elif before == "a model":
            write(target, "old")
        reached = killed_at(call, target, "new")
        assert len(hidden(target.parent)) <= 1
        kept = {content_of(target), content_of(staging_folder(target) / "replaced")}
        assert before != "a model" or kept & {"old", "new"}
        outcomes.add(content_of(target))
        killed_at(call, target, "new")  # and once more, in what the first has left
        assert len(hidden(target.parent)) <= 1
        shutil.copytree(target.parent, tmp_path / f"{call} with another")
        make(target, "new")
        make(tmp_path / f"{call} with another" / "merged", "other")
        assert content_of(target) == "new"
        assert content_of(tmp_path / f"{call} with another" / "merged") == "other"
        assert hidden(target.parent) == hidden(tmp_path / f"{call} with another") == []
        call += 1
    assert call > 8
    assert outcomes >= {None, "new"}


def test_a_model_that_was_made_whole_takes_its_place(tmp_path, capsys):
    staging = staging_folder(tmp_path / "merged")
    write(staging / "replaced", "old")
    write(staging / "model", "new")
    make(tmp_path / "merged", "new")
    assert "had made it, whole; it is in its place now" in capsys.readouterr().out
    assert (content_of(tmp_path / "merged"), hidden(tmp_path)) == ("new", [])


def test_a_model_that_was_moved_away_comes_back(tmp_path, capsys):
    staging = staging_folder(tmp_path / "merged")
    write(staging / "replaced", "old")
    write(staging / "model", "new")
    (staging / "model" / "weights").write_text("cut sho")  # as a computer that loses power leaves it
    (staging / "model" / "config").write_text("")
    with alone_beside(tmp_path / "merged"):
        settle(tmp_path / "merged", MARK)
    assert "had moved it away; it is back in its place" in capsys.readouterr().out
    assert (content_of(tmp_path / "merged"), hidden(tmp_path)) == ("old", [])


def test_what_earlier_versions_left_behind(tmp_path, capsys):
    write(tmp_path / "merged", "here")
    write(tmp_path / ".merged.abcdefgh" / "model", "half")
    write(tmp_path / ".merged.0123_567" / "replaced", "old")
    (tmp_path / ".merged.12345678" / "replaced").mkdir(parents=True)
    (tmp_path / ".merged.12345678" / "replaced" / "thesis.txt").write_text("mine")
    (tmp_path / ".merged.notoursx").mkdir()
    (tmp_path / ".merged.notoursx" / "file").write_text("mine")
    with alone_beside(tmp_path / "merged"):
        settle(tmp_path / "merged", MARK)
    assert sorted(hidden(tmp_path)) == [".merged.12345678", ".merged.notoursx"]
    assert (tmp_path / ".merged.12345678" / "replaced" / "thesis.txt").read_text() == "mine"
    assert "was moved away by a merge that was stopped; it is left there" in capsys.readouterr().out
    assert content_of(tmp_path / "merged") == "here"


def test_a_disk_that_fails_puts_the_old_model_back(tmp_path, monkeypatch):
    target = write(tmp_path / "merged", "old")
    replace, calls = os.replace, []

    def failing(source, destination):
        calls.append(source)
        if len(calls) == 2:
            raise OSError(5, "Input/output error", str(destination))
        replace(source, destination)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="Input/output error"):
        make(target, "new")
    assert content_of(target) in ("old", "new")
    assert hidden(tmp_path) == []


def test_two_at_once(tmp_path):
    with (
        exclusive(staging_folder(tmp_path / "merged"), "lock"),
        pytest.raises(UserError, match=r"\.merged\.merging: another process is writing here; wait for it"),
    ):
        make(tmp_path / "merged", "new")
    make(tmp_path / "merged", "new")
    assert hidden(tmp_path) == []


def test_places_that_cannot_be_replaced(tmp_path, monkeypatch):
    (tmp_path / "here" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "deep")
    for place in (".", ".."):
        with pytest.raises(UserError, match="is the folder this was started in, or one above it"):
            check_place(Path(place).resolve())
    with pytest.raises(UserError, match="is a disk of its own"):
        check_place(Path("/proc"))
    with pytest.raises(UserError, match=r"\.x\.merging is where a merged model is made"):
        check_place(tmp_path / ".x.merging" / "model")
    check_place(tmp_path / "here" / "other")

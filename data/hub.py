"""The Hugging Face hub: what a repository there has, and its files, within limits of time and size. (no torch)

Addresses, tokens, proxies and redirections are its client's. The rest is here, for the client reads answers of any size
and takes them for what they should be, waits as long as a host has addresses, writes down whatever comes for a file,
and forgets what it has of one when it is interrupted: gigabytes, of a shard.
"""

import json
import re
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from threading import Thread
from typing import Any, Literal, TypeVar
from urllib.parse import quote

from tqdm import tqdm

from data.arguments import LARGEST_NUMBER, UserError, one_line
from data.files import is_of_type

ANSWER_SECONDS = 10  # how long a hub may take to say what it has
STALL_SECONDS = 30  # how long it may send nothing of a file
MOST_ANSWER = 1 << 26  # bytes of its answer; a file takes some 300
MOST_FILES = 100_000

Kind = Literal["model", "dataset"]
T = TypeVar("T")


class UnavailableError(Exception):
    """This source does not have the item, or does not answer. `str(error)` says which, in one line."""


@dataclass(frozen=True)
class RemoteFile:
    """A file a source offers: path, size in bytes and, where the source states one, a checksum."""

    path: str
    size: int
    sha256: str | None = None
    git_sha1: str | None = None  # the id of a git blob: what the hub states of small files


def remote_file(path: Any, size: Any, sha256: Any = None, git_sha1: Any = None) -> RemoteFile:
    """A file as a source, or a `download.json`, states it.

    Raises:
        UnavailableError: no file can be like this.
    """
    named = isinstance(path, str) and not re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", path)
    if not named or not PurePosixPath(path).name:
        raise UnavailableError(f"its answer is broken: a file is named {one_line(repr(path), 80)}")
    if not is_of_type(size, int) or not 0 <= size <= LARGEST_NUMBER:
        raise UnavailableError(f"its answer is broken: {one_line(path, 80)} has size {one_line(repr(size), 80)}")
    for value, digits in ((sha256, 64), (git_sha1, 40)):
        if value is not None and not (isinstance(value, str) and re.fullmatch(f"[0-9a-f]{{{digits}}}", value)):
            raise UnavailableError(
                f"its answer is broken: {one_line(path, 80)} has checksum {one_line(repr(value), 80)}"
            )
    return RemoteFile(path, size, sha256, git_sha1)


def within(seconds: float, ask: Callable[[], T]) -> T:
    """What `ask` returns or raises, if it does so in time.

    Its own limits count each address of a host, each redirection and each piece of an answer anew.

    Raises:
        UnavailableError: it does not.
    """
    future = Future()

    def work() -> None:
        try:
            future.set_result(ask())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=work, daemon=True).start()  # what comes too late is not waited for at the end either
    try:
        return future.result(seconds)
    except TimeoutError as error:
        raise UnavailableError(f"no answer within {seconds} s") from error


def ask_hub(kind: Kind, repository: str, revision: str | None) -> tuple[str, list[RemoteFile]]:
    """The commit of a repository, and its files.

    Raises:
        UnavailableError: the hub has no such repository or revision, does not answer, or says nothing of use.
    """
    import huggingface_hub  # noqa: F401  (its import is not the hub's time)

    answer = within(ANSWER_SECONDS, partial(_description, kind, repository, revision))
    commit, siblings = answer.get("sha"), answer.get("siblings")
    if not isinstance(commit, str) or not re.fullmatch(r"[\w.-]{1,100}", commit):
        raise UnavailableError(f"its answer is broken: its commit is {one_line(repr(commit), 80)}")
    if not isinstance(siblings, list):
        raise UnavailableError("its answer is broken: it lists no files")
    if len(siblings) > MOST_FILES:
        raise UnavailableError(f"its repository has {len(siblings):,} files, more than {MOST_FILES:,}")
    return commit, [_file(entry) for entry in siblings]


def _description(kind: Kind, repository: str, revision: str | None) -> dict[str, Any]:
    import httpx
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session

    url = f"{constants.ENDPOINT}/api/{kind}s/{repository}"
    url += f"/revision/{quote(revision, safe='')}" if revision else ""
    settings = {"params": {"blobs": True}, "headers": build_hf_headers(), "timeout": ANSWER_SECONDS}
    body = bytearray()
    try:
        with get_session().stream("GET", url, **settings) as response:
            problem = response.headers.get("X-Error-Code")
            if problem == "RevisionNotFound":
                raise UnavailableError(f"{repository} has no revision {one_line(revision)}")
            if problem in ("RepoNotFound", "GatedRepo") or response.status_code in (401, 403):
                raise UnavailableError(f"no {kind} {repository}, or it is private (to log in: hf auth login)")
            if response.status_code != 200:
                raise UnavailableError(f"no answer (HTTP status {response.status_code})")
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > MOST_ANSWER:
                    raise UnavailableError(f"its answer is broken: it has more than {MOST_ANSWER >> 20} MiB")
        answer = json.loads(body)
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise UnavailableError(f"no answer ({one_line(error)})") from error
    except (ValueError, RecursionError) as error:
        raise UnavailableError(f"its answer is broken: no JSON ({one_line(error)})") from error
    if not isinstance(answer, dict):
        raise UnavailableError(f"its answer is broken: {one_line(repr(answer), 80)}")
    return answer


def _file(entry: Any) -> RemoteFile:
    """One of the `siblings`: a large file has a SHA-256, another the id of a git blob."""
    lfs = entry.get("lfs") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(lfs, dict | None):
        raise UnavailableError(f"its answer is broken: a file is {one_line(repr(entry), 80)}")
    hashes = {"sha256": lfs.get("sha256")} if lfs else {"git_sha1": entry.get("blobId")}
    if None in hashes.values():
        raise UnavailableError(f"its answer is broken: {one_line(repr(entry), 80)} has no checksum")
    return remote_file(entry.get("rfilename"), entry.get("size"), **hashes)


def fetch_from_hub(kind: Kind, repository: str, commit: str, file: RemoteFile, folder: Path) -> None:
    """Bring a file to its path below `folder`; what there is of it, as `<path>.part`, is gone on with.

    Raises:
        UserError: the hub refuses, ends too soon, stops sending, or sends more than the file has.
    """
    from huggingface_hub import hf_hub_url

    path, part = folder / file.path, folder / f"{file.path}.part"
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if part.exists() and part.stat().st_size > file.size:
        part.unlink()  # nothing of it can be trusted
    part.touch()
    url = hf_hub_url(repository, file.path, repo_type=kind, revision=commit)
    with tqdm(total=file.size, desc=file.path[-40:], unit="B", unit_scale=True) as bar:
        while (there := part.stat().st_size) < file.size:
            _add_rest(url, part, file.size, bar, f"{repository}: {file.path}")
            if part.stat().st_size <= there:
                raise UserError(f"{repository}: {file.path} ends after {there:,} of {file.size:,} bytes")
    part.replace(path)


def _add_rest(url: str, part: Path, size: int, bar: tqdm, name: str) -> None:
    """Add to `part` what it lacks, or some of it where the connection breaks off; errors as in `fetch_from_hub`."""
    import httpx
    from huggingface_hub.utils import build_hf_headers, get_session

    begin = there = part.stat().st_size
    headers = build_hf_headers() | {"Accept-Encoding": "identity"} | ({"Range": f"bytes={there}-"} if there else {})
    try:
        with (
            get_session().stream("GET", url, headers=headers, timeout=STALL_SECONDS) as response,
            part.open("ab") as out,
        ):
            if response.status_code not in (200, 206):
                raise httpx.HTTPError(f"HTTP status {response.status_code}")
            if response.status_code == 200:  # all of it, whatever was asked for
                out.truncate(0)
                begin = there = 0
            bar.reset(size)
            bar.update(there)
            for chunk in response.iter_bytes():
                there += len(chunk)
                if there > size:
                    break
                out.write(chunk)
                bar.update(len(chunk))
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        stalled = isinstance(error, httpx.TimeoutException)
        if isinstance(error, httpx.TransportError) and not stalled and there > begin:
            return
        reason = f"nothing came for {STALL_SECONDS} s" if stalled else one_line(error)
        raise UserError(f"{name}: download stopped ({reason}); run it again to go on") from error
    if there > size:
        part.unlink()
        raise UserError(f"{name} is sent with more than its {size:,} bytes; refused")

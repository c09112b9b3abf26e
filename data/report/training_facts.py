"""What a run is and what it took to make it, from the files that training left. (no torch)"""

from pathlib import Path
from typing import Any

from data.contract import Contract
from data.files import ADAPTER_FILE, ARGS_FILE, TASK_FILE, TRAIN_RESULTS_FILE
from data.report.run_files import is_grpo, read_run_file


def training_facts(directory: str | Path) -> dict[str, Any]:
    """Those of these that the files in a run's directory tell.

    Returns:
        `objective`, `head`, `method` ("GRPO" or "exact expectation"), `tuning`, `base_model`: see task.json and
        args.json; `all_parameters` and `trainable_parameters`, of the model with its adapter; `size_mb`, of its
        safetensors files in 10^6 bytes, and `size_of`, whether these are the "adapter" alone or a whole "model";
        `train_seconds`, with validation, of a run that was made in one go (one that was resumed only knows the seconds
        since then); `peak_memory_mib`.

    Raises:
        UserError: one of the files is broken.
    """
    directory = Path(directory)
    args, trained = (read_run_file(directory, name, missing_ok=True) for name in (ARGS_FILE, TRAIN_RESULTS_FILE))
    facts: dict[str, Any] = {}
    if (directory / TASK_FILE).is_file():
        contract = Contract.load(directory)
        facts = {"objective": contract.objective, "head": contract.head, "base_model": contract.base_model}
    if is_grpo(directory, args):
        facts["method"] = "exact expectation" if args.get("expectation") == "exact" else "GRPO"
    facts["tuning"] = args.get("tuning")
    facts |= {name: trained.get(name) for name in ("all_parameters", "trainable_parameters", "peak_memory_mib")}
    if not trained.get("resumed_from"):
        facts["train_seconds"] = trained.get("seconds_since_resumed", trained.get("seconds"))
    weights = [path.stat().st_size for path in directory.glob("*.safetensors") if path.is_file()]
    if weights:
        facts["size_mb"] = round(sum(weights) / 1e6, 3)
        facts["size_of"] = "adapter" if (directory / ADAPTER_FILE).is_file() else "model"
    return {name: value for name, value in facts.items() if value not in (None, "")}

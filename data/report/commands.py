"""The command lines in a report: those that made its runs, and those that would measure what is missing. (no torch)"""

import os
import shlex
from pathlib import Path
from typing import Any

from data.arguments import spelled
from data.contract import HASHES, PROCESSES
from data.report.sources import Source

MODEL, FILE, TASK = "MODEL", "FILE", "TASK"  # in the place of what nothing says


def command_line(program: str, settings: dict[str, Any]) -> str:
    """A command as one can paste it into a shell, a flag a line; what is None is left out.

    >>> print(command_line("python main_SFT.py", {"model_path": "my model", "cot": False, "task": None}))
    python main_SFT.py \\
        --model_path 'my model' \\
        --cot off
    """
    lines = [program]
    for name, value in settings.items():
        if value is not None and name not in (HASHES, PROCESSES):
            values = value if isinstance(value, list) else [value]
            lines.append(" ".join([f"--{name}", *(shlex.quote(spelled(each)) for each in values)]))
    return " \\\n    ".join(lines)


def stage_of(flags: dict[str, Any]) -> str:
    """The script whose args.json these flags are."""
    return "main_grpo.py" if "num_generations" in flags else "main_SFT.py"


def commands(source: Source) -> list[dict[str, str]]:
    """The commands that made a run, as far as its files tell: `what` ("sft", "grpo", "inference") and `line`.

    That of inference.py only where the predictions are still those that it made.
    """
    made = []
    if source.args:
        script = stage_of(source.args)
        what = {"main_SFT.py": "sft", "main_grpo.py": "grpo"}[script]
        made.append({"what": what, "line": command_line(f"python {script}", source.args)})
    if flags := inference_flags(source):
        made.append({"what": "inference", "line": command_line("python inference.py", flags)})
    return made


def inference_flags(source: Source) -> dict[str, Any]:
    """How inference.py was called for the predictions that are there; nothing where others made them."""
    if source.inference.get("predictions") != source.run.sha256:
        return {}
    return source.inference.get("flags", {})


def remedies(source: Source, found: dict[str, Any]) -> dict[str, str | None]:
    """Section of a run that has nothing to show -> the command that would measure it; None where none would.

    Args:
        source: the run.
        found: its numbers, see `data.report.sections.run_data`.
    """
    flags = inference_flags(source)
    about = {
        "model_path": model_path(source) or flags.get("model_path", MODEL),
        "test_data_path": flags.get("test_data_path") or source.args.get("test_data_path") or FILE,
        "task": flags.get("task"),
        "label_path": flags.get("label_path"),
    }
    if source.run.contract is None and about["task"] is None and about["label_path"] is None:
        about["task"] = TASK
    here = {"output_dir": source.run.folder}
    # where these two write by themselves is where the report looks, too
    by_default = source.run.contract is not None
    at = {} if by_default else here
    return {
        "scores": None if found["scores"] else command_line("python inference.py", about | here),
        "confidence": None if found["confidence"] else command_line("python inference.py", about | here),
        "probabilities": None
        if found["has_probabilities"]
        else command_line("python inference.py", about | here | {"probabilities": True}),
        "robustness": None if found["robustness"] else command_line("python -m scripts.robustness", about | at),
        "attention": None if found["attention"] else command_line("python -m scripts.attention", about | at),
    }


def model_path(source: Source) -> str | None:
    """The directory of the run's model, by the path that the user gave; None for a model that is not in one."""
    run = source.run
    if run.contract is None:
        return None
    given = (Path(run.folder), Path(run.folder).parent)
    near = next((path for path in given if path.resolve() == run.directory.resolve()), None)
    return str(near or os.path.relpath(run.directory))

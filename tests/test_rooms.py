"""The house: who may import whom, and that the ground floor stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

STAGES = ("download", "main_SFT", "main_grpo", "merge_lora", "inference")
BELOW = {  # room -> rooms it may import from, itself aside
    "stages": {"learning", "engine", "report", "ground"},
    "scripts": {"stages", "learning", "engine", "report", "ground"},
    "learning": {"engine", "ground"},
    "engine": {"ground"},
    "report": {"ground"},
    "ground": set(),
}
CODE = [
    *(ROOT / f"{stage}.py" for stage in STAGES),
    *sorted((ROOT / "data").glob("*.py")),
    *(path for room in ("perturbing", "summaries") for path in sorted((ROOT / "data" / room).glob("*.py"))),
    *(path for room in ("engine", "learning", "report") for path in sorted((ROOT / "data" / room).rglob("*.py"))),
    *sorted((ROOT / "scripts").rglob("*.py")),
]


def room_of(module: str) -> str | None:
    """`data.engine.packing` -> "engine"; None for a module that is not ours."""
    first, *rest = module.split(".")
    if first in STAGES:
        return "stages"
    if first == "data":
        return rest[0] if rest and rest[0] in ("engine", "learning", "report") else "ground"
    return "scripts" if first == "scripts" else None


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imported(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found.add(node.module)
            found |= {f"{node.module}.{a.name}" for a in node.names if (ROOT / node.module.replace(".", "/")).is_dir()}
    return found


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_down(path):
    own = room_of(module_of(path))
    for module in imported(path):
        room = room_of(module)
        if room is None or (room == own and room not in ("stages", "scripts")):
            continue
        if room == "scripts":  # a package of scripts may be made of several files, but nobody else imports it
            assert module.rpartition(".")[0] == module_of(path).rpartition(".")[0] != "scripts", f"imports {module}"
            continue
        assert room in BELOW[own], f"{own} imports {module}"


def test_download_needs_the_ground_floor_only():
    assert {room_of(module) for module in imported(ROOT / "download.py")} <= {"ground", None}


def test_the_ground_floor_loads_no_torch():
    ground = [path for path in CODE if room_of(module_of(path)) == "ground"]
    modules = [module_of(path).removesuffix(".__init__") for path in ground]
    code = f"import sys, {', '.join(modules)}; print(*sorted({{'torch', 'trl', 'peft'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert len(modules) > 10
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("path", [path for path in CODE if path.is_relative_to(ROOT / "data")], ids=lambda p: p.name)
def test_a_file_of_more_than_400_lines_has_a_second_room_inside(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_names_that_earlier_runs_import():
    """inference_example.py in run directories of earlier versions."""
    from data.arguments import UserError
    from inference import Predictor

    assert issubclass(UserError, Exception)
    assert callable(Predictor)

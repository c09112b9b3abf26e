"""Plans of runs (`--plan`) beside what the same runs then take."""

import os
import random
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

import main_grpo
import main_SFT
from data.arguments import UserError, check_at_least, check_output_dir, flag
from data.contract import contract_for
from data.engine.memory import forget_peak, peak_memory, use_huge_pages
from data.engine.models import check_model_path, load_tokenizer, pick_device
from data.files import write_json
from data.learning.memory_plan import in_a_process, longest_batch, peaks, without_contents_args
from data.learning.trainers import Data, load_data, train
from data.report.tables import markdown_table
from scripts.benchmark.memory import TASK, MemoryArgs, long_case
from scripts.benchmark.race import Contestant, Turns, check_known

SAMPLE = Path("data/sample")
OWN_MAPPINGS = {"MALLOC_MMAP_THRESHOLD_": "65536"}  # of glibc: no tensor lies in the heap, which has gaps
CASES: dict[str, dict[str, Any]] = {
    "lora": dict(tuning="lora"),
    "lora, checkpointing": dict(tuning="lora", gradient_checkpointing=True),
    "lora, padded": dict(tuning="lora", prefix_sharing="off"),
    "lora, bf16": dict(tuning="lora", precision="bf16", batch_size=2),
    "lora, 2,048 tokens": dict(tuning="lora", max_length=2048),
    "lora, 2,048 tokens, checkpointing": dict(tuning="lora", max_length=2048, gradient_checkpointing=True),
    "full": dict(tuning="full"),
    "full, checkpointing": dict(tuning="full", gradient_checkpointing=True),
    "head": dict(tuning="head", objective="classify"),
    "grpo": dict(expectation="sampled"),
    "exact": dict(expectation="exact", batch_size=4),
}


@dataclass
class PlanArgs:
    model_path: str | None = flag(None, "the model: hub id or directory")
    output_dir: str = flag("outputs/benchmark", "where the figures go")
    cases: list[str] = flag(list(CASES), "which runs")
    steps: int = flag(3, "of each run")
    seed: int = flag(42, "seed of order, adapter and drawing")

    def __post_init__(self):
        if self.model_path is None:
            raise UserError("--model_path is needed")
        check_known(self, cases=CASES)
        check_at_least(self, steps=1, seed=0)
        check_output_dir(self.output_dir)


def settings_of(args: PlanArgs, case: str, folder: str) -> Any:
    """A case as flags of its stage."""
    flags = {"precision": "fp32"} | CASES[case]
    stage = main_grpo if "expectation" in flags else main_SFT
    labels = "data/sample_zh" if flags.get("expectation") == "exact" else SAMPLE
    common = {
        "model_path": args.model_path, "output_dir": folder, "val_ratio": 0.0, "max_steps": args.steps,
        "seed": args.seed, "label_path": f"{labels}/labels.txt", "train_data_path": f"{labels}/train.tsv",
    }  # fmt: skip
    if flags.get("max_length"):
        common |= {"label_path": None, "task": TASK.name}
        flags = {"batch_size": 1, "gradient_accumulation_steps": 1} | flags
    return stage.Args(**common | flags)


def trainer_of(settings: Any) -> Any:
    """The stage's own trainer."""
    if isinstance(settings, main_grpo.Args):
        started = contract_for(settings.model_path, settings.task, settings.label_path)
        return main_grpo.prepare(settings, load_data(settings, started.task, kind_known=False), started)
    if settings.task is None:
        task = main_SFT.resolve_task(None, settings.label_path)
        settings = main_SFT.with_defaults(settings, task)
        data = load_data(settings, task, kind_known=False)
    else:
        settings = main_SFT.with_defaults(settings, TASK)
        draw, tokenizer = random.Random(settings.seed), load_tokenizer(settings.model_path)
        about = MemoryArgs(model_path=settings.model_path, tokens=settings.max_length, answer_tokens=256)
        data = Data(TASK, [long_case(draw, tokenizer, about)], [], [], [], {})
    return main_SFT.prepare(settings, data)


def planned(turns: Turns, args: PlanArgs, case: str) -> None:
    """Bytes that the stage's own plan counts."""
    turns.wait()
    with tempfile.TemporaryDirectory() as folder:
        settings = replace(settings_of(args, case, folder), plan=True)
        found, tokens = peaks(settings, trainer_of(without_contents_args(settings)))
    most = max(found.values(), key=lambda peak: peak.total())
    whole = most if pick_device() == "cuda" else in_a_process(most, 0)
    turns.done(bytes=most.total(), with_gaps=whole.total(), kinds=dict(most), tokens=tokens)


def measured(turns: Turns, args: PlanArgs, case: str) -> None:
    """Bytes that the process has at its peak, beyond those before the model was loaded, on the longest batch alone.

    Loading is apart: the file is then mapped, too, in pages that the system can take back.
    """
    if "max_length" in CASES[case]:
        use_huge_pages()  # as main_SFT.py does for such rows, before there is a tensor
    import peft  # noqa: F401  (libraries are no part of a run's memory)
    import torch
    from trl import GRPOTrainer, SFTTrainer  # noqa: F401

    turns.wait()
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_of(args, case, folder)
        before = 0 if torch.cuda.is_available() else psutil.Process().memory_info().rss
        trainer = trainer_of(settings)
        batch = longest_batch(trainer)
        ids = set(batch["ids"] if isinstance(batch, dict) else (row["id"] for row in batch))
        trainer.train_dataset = trainer.train_dataset.filter(lambda row: row["id"] in ids)
        loading = peak_memory() - before
        forget_peak()
        train(trainer, None)
        turns.done(before=before, loading=loading)


def plan(args: PlanArgs) -> None:
    check_model_path(args.model_path)
    results: dict[str, Any] = {}
    for case in args.cases:
        results[case] = {"planned": _figures(planned, args, case)}
        for name, variables in (("measured", {}), ("own_mappings", OWN_MAPPINGS)):
            figures = _figures(measured, args, case, variables)
            results[case][name] = figures["peak_bytes"] - figures["before"]
            results[case]["loading"] = figures["loading"]
        print(table({case: results[case]}), flush=True)
        write_json(Path(args.output_dir) / "benchmark_plan.json", results)
    print(table(results))
    print(f"written to {Path(args.output_dir) / 'benchmark_plan.json'}")


def _figures(work: Any, args: PlanArgs, case: str, variables: dict[str, str] | None = None) -> dict[str, Any]:
    """What a process of its own reports, started with these variables."""
    os.environ |= variables or {}
    try:
        contestant = Contestant(work, args=args, case=case)
        try:
            return contestant.turn()
        finally:
            contestant.stop()
    finally:
        for name in variables or {}:
            del os.environ[name]


def table(results: dict[str, Any]) -> str:
    """The results as a Markdown table, one line a case."""
    head = ["run", "tokens", "planned", "own mappings", "off by", "planned with gaps", "as it peaks", "off by"]
    rows = []
    for case, each in results.items():
        row = [case, str(each["planned"]["tokens"])]
        for plan, found in (("bytes", "own_mappings"), ("with_gaps", "measured")):
            sizes = each["planned"][plan], each[found]
            row += [*(f"{size / 2**20:,.0f} MiB" for size in sizes), f"{sizes[0] / sizes[1] - 1:+.0%}"]
        rows.append(row)
    return markdown_table(head, rows)

"""One step of reinforcement: TRL's GRPOTrainer against main_grpo.py, whose answers are drawn, or all weighed."""

import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import main_grpo
from data.arguments import check_at_least, flag
from data.contract import Contract, contract_for
from data.engine.models import base_model_path, dtype_of, load_tokenizer, pick_device
from data.files import ADAPTER_FILE, write_json
from data.learning.rewards import Rewards
from data.learning.trainers import Data, load_data, lora_config, train
from data.report.tables import markdown_table
from scripts.benchmark.race import (
    CASES,
    Contestant,
    TrainingRaceArgs,
    Turns,
    check_known,
    checked,
    race,
    synchronize,
    train_file,
)


@dataclass
class GrpoArgs(TrainingRaceArgs):
    model_path: str | None = flag(None, "start: hub id or directory, untuned or an SFT run")
    contestants: list[str] = flag(["trl", "ours", "exact"], "which of trl, plain, ours, exact")
    case: Literal["28-labels", "4-labels"] = flag("28-labels", "labels of GoEmotions")
    most_labels: int = flag(2, "labels an answer may have; rows with more are left out")
    texts: int = flag(4, "texts a step")
    num_generations: int = flag(8, "answers drawn for each")

    def __post_init__(self):
        super().__post_init__()
        check_known(self, contestants=CONTESTANTS)
        check_at_least(self, texts=1, num_generations=2, most_labels=1)


def grpo_args(args: GrpoArgs, output_dir: str, **settings: Any) -> main_grpo.Args:
    """The benchmark's settings as main_grpo.py's."""
    trained, case = (Path(args.model_path) / ADAPTER_FILE).is_file(), CASES[args.case]
    drawing = {"num_generations": args.num_generations, "batch_size": args.texts * args.num_generations}
    return main_grpo.Args(
        model_path=args.model_path, task=case.task, train_data_path=str(train_file(args.data_dir, case)),
        output_dir=output_dir, skip_bad_rows=True, **drawing | settings,
        lora_r=None if trained else args.lora_r, max_steps=args.warmup + args.rounds, val_ratio=0.0, seed=args.seed,
        logging_steps=args.warmup + args.rounds + 1, precision=args.precision,
    )  # fmt: skip


def started_on(args: GrpoArgs, settings: main_grpo.Args) -> tuple[Contract, Data]:
    """The start's contract and the rows, both with at most `--most_labels` labels an answer."""
    contract = contract_for(args.model_path, settings.task)
    contract = replace(contract, task=replace(contract.task, most_labels=args.most_labels))
    return contract, load_data(settings, contract.task, kind_known=True, most_labels=args.most_labels)


def _take_turns(trainer, turns: Turns) -> None:
    """Have a trainer make each of its steps a turn, and report how much of it went into drawing answers."""
    from transformers import TrainerCallback

    seconds = {"drawing": 0.0}
    place = "_generate_single_turn" if hasattr(trainer, "_generate_single_turn") else "_found"  # drawn, or looked for
    draw = getattr(trainer, place)

    def timed(*args, **kwargs) -> Any:
        begin = time.perf_counter()
        drawn = draw(*args, **kwargs)
        synchronize()
        seconds["drawing"] += time.perf_counter() - begin
        return drawn

    class StepIsTurn(TrainerCallback):
        def on_train_begin(self, *args, **kwargs) -> None:
            turns.wait()

        def on_step_end(self, *args, **kwargs) -> None:
            if place == "_found":
                length = trainer._sums["completions/mean_length"] / trainer._sums["texts"]
            else:
                length = trainer._metrics["train"]["completions/mean_length"][-1]
            turns.done(drawing_seconds=seconds["drawing"], answer_tokens=length)
            seconds["drawing"] = 0.0
            turns.wait()

    setattr(trainer, place, timed)
    trainer.add_callback(StepIsTurn())


def ours(turns: Turns, args: GrpoArgs, **flags: Any) -> None:
    """main_grpo.py, from its own pieces."""
    with tempfile.TemporaryDirectory() as folder:
        settings = grpo_args(args, folder, **flags)
        contract, data = started_on(args, settings)
        encoder = contract.encoder(load_tokenizer(args.model_path))
        model = main_grpo.load_policy(settings, longest=contract.max_length)
        trainer = main_grpo.build_trainer(settings, data, model, encoder, contract)
        _take_turns(trainer, turns)
        train(trainer, None)


def plain(turns: Turns, args: GrpoArgs) -> None:
    """The same without packing."""
    ours(turns, args, prefix_sharing="off")


def exact(turns: Turns, args: GrpoArgs) -> None:
    """The expected reward of all answers, nothing is drawn."""
    ours(turns, args, expectation="exact", batch_size=args.texts, num_generations=8)


def trl(turns: Turns, args: GrpoArgs) -> None:
    """TRL's GRPOTrainer on the same chats, with the same rewards and settings."""
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    from data.engine.generation import stop_token_ids

    with tempfile.TemporaryDirectory() as folder:
        settings = grpo_args(args, folder)
        contract, data = started_on(args, settings)
        task = contract.task
        tokenizer = load_tokenizer(args.model_path)
        encoder = contract.encoder(tokenizer)
        start = base_model_path(args.model_path)
        model = AutoModelForCausalLM.from_pretrained(
            start or args.model_path, dtype=dtype_of(args.peer_precision), trust_remote_code=False
        )
        if start is not None:
            model = PeftModel.from_pretrained(model, args.model_path, is_trainable=True)
        budget, limit = main_grpo.answer_lengths(settings, encoder, data.train)
        weights = {
            "jaccard": settings.accuracy_weight, "format": settings.format_weight, "length": settings.length_weight,
        }  # fmt: skip
        rewards = Rewards(encoder, stop_token_ids(model, encoder.end_id), budget, limit, weights)
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=rewards.functions(),
            args=GRPOConfig(
                output_dir=folder, max_steps=settings.max_steps, per_device_train_batch_size=settings.batch_size,
                num_generations=args.num_generations, max_completion_length=limit, beta=0.0,
                reward_weights=list(weights.values()), learning_rate=settings.learning_rate,
                bf16=args.peer_precision == "bf16", fp16=args.peer_precision == "fp16",
                use_cpu=pick_device() == "cpu", gradient_checkpointing=False, seed=args.seed, report_to=[],
                save_strategy="no", logging_steps=settings.logging_steps,
            ),
            train_dataset=Dataset.from_list([{"prompt": task.messages(e.text), "gold": e.labels} for e in data.train]),
            processing_class=tokenizer,
            peft_config=None if start else lora_config(settings, model),
        )  # fmt: skip
        _take_turns(trainer, turns)
        trainer.train()


CONTESTANTS = {"trl": trl, "plain": plain, "ours": ours, "exact": exact}


def grpo(args: GrpoArgs) -> None:
    args = checked(args)
    train_file(args.data_dir, CASES[args.case])
    turns = race(
        {which: Contestant(CONTESTANTS[which], args=args) for which in args.contestants},
        args.warmup + args.rounds, "grpo",
    )  # fmt: skip
    results: dict[str, Any] = {
        "what": f"{args.texts} texts x {args.num_generations} answers, {CASES[args.case].what}",
        "most_labels": args.most_labels,
        "precision": args.precision,
        "peer_precision": args.peer_precision,
        "contestants": {},
    }
    for which, entries in turns.items():
        timed = entries[args.warmup :]
        learning = [entry["seconds"] - entry["drawing_seconds"] for entry in timed]
        results["contestants"][which] = {
            "seconds": statistics.median(entry["seconds"] for entry in timed),
            "drawing_seconds": statistics.median(entry["drawing_seconds"] for entry in timed),
            "learning_seconds": statistics.median(learning),
            "answer_tokens": statistics.mean(entry["answer_tokens"] for entry in timed),
            "all_seconds": [entry["seconds"] for entry in timed],
            "peak_gib": timed[-1]["peak_bytes"] / 2**30,
        }
    print(table(results))
    write_json(Path(args.output_dir) / "benchmark_grpo.json", results)
    print(f"written to {Path(args.output_dir) / 'benchmark_grpo.json'}")


def table(results: dict[str, Any]) -> str:
    """The results as a Markdown table, one line a contestant."""
    head = ["trainer", "seconds a step", "drawing", "learning", "answer tokens", "peak memory"]
    rows = []
    base = results["contestants"].get("trl")
    for which, figures in results["contestants"].items():
        columns = [
            f"{figures[name]:.2f}" + (f" ({base[name] / figures[name]:.1f}×)" if base else "")
            for name in ("seconds", "drawing_seconds", "learning_seconds")
        ]
        rows.append([which, *columns, f"{figures['answer_tokens']:.1f}", f"{figures['peak_gib']:.1f} GiB"])
    return markdown_table(head, rows)

"""One training step: TRL's SFTTrainer against main_SFT.py."""

import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import main_SFT
from data.arguments import check_at_least, flag
from data.contract import Contract, Format
from data.encoding import Encoder
from data.engine.models import dtype_of, four_bits, load_tokenizer, pick_device
from data.files import write_json
from data.learning.trainers import load_data, lora_config, train
from data.loading import load_examples
from data.report.tables import markdown_table
from data.tasks import BUILT_IN_TASKS
from scripts.benchmark.race import (
    CASES,
    Case,
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
class SftArgs(TrainingRaceArgs):
    contestants: list[str] = flag(
        ["trl", "ours", "compiled"], "which of trl, plain, ours, compiled, flex, dense, spans"
    )
    cases: list[str] = flag(list(CASES), f"which of {', '.join(CASES)}")
    max_length: int = flag(512, "tokens of prompt and answer together")
    tuning: Literal["lora", "qlora"] = flag("lora", "adapters over weights as they are, or in 4 bits")

    def __post_init__(self):
        super().__post_init__()
        check_known(self, cases=CASES, contestants=CONTESTANTS)
        check_at_least(self, max_length=1)


def sft_args(args: SftArgs, case: Case, output_dir: str, **settings: Any) -> main_SFT.Args:
    """The benchmark's settings as main_SFT.py's."""
    chosen = main_SFT.Args(
        model_path=args.model_path, task=case.task, train_data_path=str(train_file(args.data_dir, case)),
        output_dir=output_dir, objective="generate", tuning=args.tuning, max_length=args.max_length,
        batch_size=case.batch_size,
        lora_r=args.lora_r, lora_alpha=2 * args.lora_r, lora_dropout=0.0, learning_rate=2e-4, precision=args.precision,
        max_steps=args.warmup + args.rounds, val_ratio=0.0, seed=args.seed, **settings,
    )  # fmt: skip
    return main_SFT.with_defaults(chosen, BUILT_IN_TASKS[case.task])


def take_steps(trainer, turns: Turns, tokens_of: Callable[[Any], int]) -> None:
    """Have a trainer make each of its steps a turn: from fetching the batch to the optimizer's update."""
    from transformers import TrainerCallback

    tokens: list[int] = []
    collate = trainer.data_collator

    def counted(examples) -> Any:
        batch = collate(examples)
        tokens.append(tokens_of(batch))
        return batch

    class StepIsTurn(TrainerCallback):
        def on_train_begin(self, *args, **kwargs) -> None:
            turns.wait()

        def on_step_end(self, args, state, control, **kwargs) -> None:
            turns.done(tokens=tokens[state.global_step - 1])
            turns.wait()

    trainer.data_collator = counted
    trainer.add_callback(StepIsTurn())


def ours(turns: Turns, args: SftArgs, case: Case, attention: str = "", **flags: Any) -> None:
    """main_SFT.py, from its own pieces; its packed rows through another `attention` than it would take."""
    from data.engine.tree_attention import bare_model

    with tempfile.TemporaryDirectory() as folder:
        settings = sft_args(args, case, folder, **flags)
        data = load_data(settings, BUILT_IN_TASKS[case.task], kind_known=True)
        encoder = Encoder(data.task, load_tokenizer(args.model_path), max_length=args.max_length)
        contract = Contract(data.task, max_length=args.max_length, base_model=args.model_path)
        model = main_SFT.load_trainable_model(settings, contract)
        trainer = main_SFT.build_trainer(settings, data, model, encoder, contract)
        if attention:
            bare_model(trainer.model).set_attn_implementation(attention)
        take_steps(trainer, turns, lambda batch: len(batch["row"]) if "row" in batch else batch["input_ids"].numel())
        train(trainer, None)


def compiled(turns: Turns, args: SftArgs, case: Case) -> None:
    """The same with --compile."""
    ours(turns, args, case, compile=True)


def plain(turns: Turns, args: SftArgs, case: Case) -> None:
    """The same without packing."""
    ours(turns, args, case, prefix_sharing="off")


def flex(turns: Turns, args: SftArgs, case: Case) -> None:
    """Packed rows through FlexAttention."""
    ours(turns, args, case, "flex_attention", prefix_sharing="on")


def dense(turns: Turns, args: SftArgs, case: Case) -> None:
    """Packed rows through PyTorch's fused attention under a mask of all pairs."""
    ours(turns, args, case, "sdpa", prefix_sharing="on")


def spans(turns: Turns, args: SftArgs, case: Case) -> None:
    """Packed rows through attention in spans."""
    from data.engine.span_attention import SPAN_ATTENTION

    ours(turns, args, case, SPAN_ATTENTION, prefix_sharing="on")


def trl(turns: Turns, args: SftArgs, case: Case) -> None:
    """TRL's SFTTrainer, on the same token ids."""
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    from data.learning.objectives import answer_rows

    with tempfile.TemporaryDirectory() as folder:
        settings = sft_args(args, case, folder)
        data = load_data(settings, BUILT_IN_TASKS[case.task], kind_known=True)
        tokenizer = load_tokenizer(args.model_path)
        packed_weights = {}
        if args.tuning == "qlora":
            packed_weights = {"quantization_config": four_bits(args.peer_precision), "device_map": {"": pick_device()}}
        model = AutoModelForCausalLM.from_pretrained(
            args.model_path, dtype=dtype_of(args.peer_precision), trust_remote_code=False, **packed_weights
        )
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=folder, max_steps=settings.max_steps, per_device_train_batch_size=case.batch_size,
                learning_rate=settings.learning_rate, weight_decay=settings.weight_decay,
                bf16=args.peer_precision == "bf16", fp16=args.peer_precision == "fp16",
                use_cpu=pick_device() == "cpu", gradient_checkpointing=False, seed=args.seed, report_to=[],
                save_strategy="no", max_length=None, dataset_kwargs={"skip_prepare_dataset": True},
            ),
            train_dataset=answer_rows(data.train, Encoder(data.task, tokenizer, max_length=args.max_length)),
            processing_class=tokenizer,
            peft_config=lora_config(settings, model),
        )  # fmt: skip
        take_steps(trainer, turns, lambda batch: batch["input_ids"].numel())
        trainer.train()


def multiply(turns: Turns, hidden: int, intermediate: int, rows: int, precision: Format) -> None:
    """The machine itself: products of (rows, hidden) with (hidden, intermediate), as an MLP layer's."""
    import torch

    kind = {"dtype": dtype_of(precision), "device": pick_device()}
    left, right = torch.randn(rows, hidden, **kind), torch.randn(intermediate, hidden, **kind)
    while True:
        turns.wait()
        seconds = []
        for _ in range(50):
            begin = time.perf_counter()
            torch.nn.functional.linear(left, right)
            synchronize()
            seconds.append(time.perf_counter() - begin)
        turns.done(flops=2 * rows * hidden * intermediate / statistics.median(seconds))


CONTESTANTS = {"trl": trl, "plain": plain, "ours": ours, "compiled": compiled, "flex": flex, "dense": dense,
               "spans": spans}  # fmt: skip


def matrix_flops(args: SftArgs) -> dict[str, Any]:
    """Operations in the matrix products of a step (a token's, a projected position's), and the MLP's sizes.

    A frozen layer's weights are used forward (2 operations each) and for the gradient of its input (2); an adapter's
    also for their own gradient (2 more). Attention scores are left out: below a twentieth on short texts.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(args.model_path, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    head = model.get_output_embeddings()
    linear = [m.weight for m in model.modules() if hasattr(m, "in_features") and m is not head]
    adapter = sum(args.lora_r * sum(weight.shape) for weight in linear)
    return {
        "token": 4.0 * sum(weight.numel() for weight in linear) + 6.0 * adapter,
        "position": 4.0 * head.weight.numel(),
        "hidden": config.get_text_config().hidden_size,
        "intermediate": config.get_text_config().intermediate_size,
    }


def unique_tokens(args: SftArgs, case: Case) -> tuple[float, float]:
    """Mean number of tokens and of projected positions in a packed batch, whatever the contestants compute."""
    from data.engine.packing import pack
    from data.learning.objectives import answer_rows

    examples = load_examples(train_file(args.data_dir, case), BUILT_IN_TASKS[case.task])
    drawn = random.Random(args.seed).sample(examples, min(len(examples), 16 * case.batch_size))
    encoder = Encoder(BUILT_IN_TASKS[case.task], load_tokenizer(args.model_path), max_length=args.max_length)
    data = answer_rows(drawn, encoder)
    ids, flags = data["input_ids"], [[label != -100 for label in row] for row in data["labels"]]
    rows = [
        pack(ids[i : i + case.batch_size], flags[i : i + case.batch_size])[0]
        for i in range(0, len(ids), case.batch_size)
    ]
    return statistics.mean(map(len, rows)), statistics.mean(len(row.logit_index) for row in rows)


def race_sft(args: SftArgs, name: str, case: Case) -> dict[str, Any]:
    """One case: every contestant and the machine itself in turns."""
    tokens, positions = unique_tokens(args, case)
    per = matrix_flops(args)
    needed = per["token"] * tokens + per["position"] * positions
    sizes = {"hidden": per["hidden"], "intermediate": per["intermediate"], "rows": round(tokens)}
    racers = {"machine": Contestant(multiply, precision=args.precision, **sizes)}
    racers |= {which: Contestant(CONTESTANTS[which], args=args, case=case) for which in args.contestants}
    turns = race(racers, args.warmup + args.rounds, name)
    timed = {which: entries[args.warmup :] for which, entries in turns.items()}
    rate = statistics.median(entry["flops"] for entry in timed.pop("machine"))
    result: dict[str, Any] = {
        "what": case.what, "batch_size": case.batch_size, "unique_tokens": round(tokens), "matrix_gflops": needed / 1e9,
        "precision": args.precision, "peer_precision": args.peer_precision,
        "gflops_per_second": rate / 1e9, "limit_seconds": needed / rate, "contestants": {},
    }  # fmt: skip
    for which, entries in timed.items():
        seconds = statistics.median(entry["seconds"] for entry in entries)
        result["contestants"][which] = {
            "seconds": seconds,
            "all_seconds": [entry["seconds"] for entry in entries],
            "warmup_seconds": [entry["seconds"] for entry in turns[which][: args.warmup]],
            "examples_per_second": case.batch_size / seconds,
            "tokens_a_step": statistics.median(entry["tokens"] for entry in entries),
            "peak_gib": entries[-1]["peak_bytes"] / 2**30,
            "times_the_limit": seconds / result["limit_seconds"],
        }
    if "trl" in timed:
        base = result["contestants"]["trl"]["seconds"]
        for figures in result["contestants"].values():
            figures["speedup"] = base / figures["seconds"]
    return result


def sft(args: SftArgs, others: dict[str, Case] | None = None) -> None:
    """Race `--cases`, or `others`."""
    args = checked(args)
    cases = others or {name: CASES[name] for name in args.cases}
    for case in cases.values():
        train_file(args.data_dir, case)  # a missing file is found before the first minutes are gone
    results = {}
    for name, case in cases.items():
        results[name] = race_sft(args, name, case)
        print(table({name: results[name]}), flush=True)
        write_json(Path(args.output_dir) / "benchmark_sft.json", results)
    print(table(results))
    print(f"written to {Path(args.output_dir) / 'benchmark_sft.json'}")


def table(results: dict[str, Any]) -> str:
    """The results as a Markdown table, one line a case and contestant."""
    head = ["case", "trainer", "texts/s", "vs. TRL", "tokens a step", "peak memory", "times the limit"]
    rows = []
    for name, result in results.items():
        for which, figures in result["contestants"].items():
            ratio = f"{figures['speedup']:.1f}×" if "speedup" in figures else "–"
            speed, tokens = f"{figures['examples_per_second']:.1f}", f"{figures['tokens_a_step']:.0f}"
            memory, limit = f"{figures['peak_gib']:.1f} GiB", f"{figures['times_the_limit']:.1f}"
            rows.append([name, which, speed, ratio, tokens, memory, limit])
    return markdown_table(head, rows)

"""One training step on a long case: how much memory it takes, and how long."""

import random
import statistics
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import main_SFT
from data.arguments import UserError, check_at_least, check_output_dir, flag
from data.contract import Contract, Precision
from data.engine.memory import use_huge_pages
from data.engine.models import check_model_path, load_tokenizer, pick_device
from data.engine.precision import pick_precision
from data.files import write_json
from data.learning.trainers import Data, train
from data.report.tables import markdown_table
from data.summaries.cases import Case
from data.tasks import BUILT_IN_TASKS
from scripts.benchmark.race import Contestant, Turns, check_known, race
from scripts.benchmark.sft import take_steps

TASK = BUILT_IN_TASKS["emotion-summary-en"]
TUNINGS = ("lora", "qlora", "full")
WORDS = ("they", "said", "that", "this", "week", "nothing", "was", "left", "of", "what", "we", "found", "together")


@dataclass
class MemoryArgs:
    model_path: str | None = flag(None, "the model: hub id or directory")
    output_dir: str = flag("outputs/benchmark", "where the figures go")
    contestants: list[str] = flag(["whole", "ours"], "which of whole, padded, eager, ours")
    tunings: list[str] = flag(["lora", "qlora"], f"which of {', '.join(TUNINGS)}")
    tokens: int = flag(8192, "tokens of prompt and answer together")
    answer_tokens: int = flag(1200, "tokens of the answer among them")
    batch_size: int = flag(1, "cases of a step")
    rounds: int = flag(1, "timed steps")
    warmup: int = flag(0, "steps before them that are not timed")
    precision: Precision = flag("auto", "number format of all; auto = the one main_SFT.py would take here")
    seed: int = flag(42, "seed of cases and adapter")

    def __post_init__(self):
        if self.model_path is None:
            raise UserError("--model_path is needed")
        check_known(self, contestants=WAYS, tunings=TUNINGS)
        check_at_least(self, tokens=256, answer_tokens=8, batch_size=1, rounds=1, warmup=0, seed=0)
        if self.answer_tokens > self.tokens // 2:
            raise UserError(f"--answer_tokens {self.answer_tokens}: must be at most half of --tokens {self.tokens}")
        check_output_dir(self.output_dir)


def some_words(draw: random.Random, tokenizer, tokens: int) -> str:
    """About so many tokens of text."""
    ids = tokenizer(" ".join(draw.choices(WORDS, k=tokens)), add_special_tokens=False)["input_ids"]
    return tokenizer.decode(ids[:tokens])


def long_case(draw: random.Random, tokenizer, args: MemoryArgs) -> Case:
    """A case of more tokens than there is room for, in short turns, so that what is left fills the room."""
    turns = tuple(some_words(draw, tokenizer, 12) for _ in range(args.tokens // 8))
    return Case("", (some_words(draw, tokenizer, 64),), turns, some_words(draw, tokenizer, args.answer_tokens))


def whole_losses(model, inputs: dict[str, Any]) -> tuple[Any, Any]:
    """What `LabelTraining.losses` gives, summed up, by Transformers' own loss: from logits of all positions."""
    import torch

    labels = inputs["labels"]
    output = model(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=labels, use_cache=False
    )
    return output.loss[None] * (labels != -100).sum(), torch.zeros(1, dtype=torch.long, device=labels.device)


def learn(turns: Turns, args: MemoryArgs, tuning: str, sharing: str, whole: bool = False, attention: str = "") -> None:
    """main_SFT.py, from its own pieces, with another loss where `whole`, or another `attention`."""
    draw, tokenizer = random.Random(args.seed), load_tokenizer(args.model_path)
    cases = [long_case(draw, tokenizer, args) for _ in range(args.batch_size)]
    with tempfile.TemporaryDirectory() as folder:
        settings = main_SFT.with_defaults(
            main_SFT.Args(
                model_path=args.model_path, task=TASK.name, train_data_path=".", output_dir=folder, tuning=tuning,
                max_length=args.tokens, batch_size=args.batch_size, gradient_accumulation_steps=1, val_ratio=0.0,
                max_steps=args.warmup + args.rounds, precision=args.precision, prefix_sharing=sharing, seed=args.seed,
            ),
            TASK,
        )  # fmt: skip
        data = Data(TASK, cases, [], [], [], {})
        sampling = main_SFT.sampling_for(settings, data, tokenizer)
        contract = Contract(TASK, max_length=args.tokens, sampling=sampling, base_model=args.model_path)
        encoder = contract.encoder(tokenizer)
        model = main_SFT.load_trainable_model(settings, contract)
        if attention:
            model.set_attn_implementation(attention)
        trainer = main_SFT.build_trainer(settings, data, model, encoder, contract)
        if whole:
            trainer.losses = whole_losses
        turns.wait()  # the loading is a turn of its own
        turns.done()
        take_steps(trainer, turns, lambda batch: len(batch["row"]) if "row" in batch else batch["input_ids"].numel())
        train(trainer, None)


WAYS = {
    "whole": partial(learn, sharing="off", whole=True),
    "eager": partial(learn, sharing="off", attention="eager"),
    "padded": partial(learn, sharing="off"),
    "ours": partial(learn, sharing="auto"),
}


def memory(args: MemoryArgs) -> None:
    """Every contestant by itself: together they might not fit."""
    use_huge_pages()  # as main_SFT.py does for such rows; the contestants' processes inherit it
    check_model_path(args.model_path)
    choice = pick_precision(args.precision, args.model_path, pick_device(), trains=True)
    choice.say()
    args = replace(args, precision=choice.format)
    results: dict[str, Any] = {
        "tokens": args.tokens, "answer_tokens": args.answer_tokens, "batch_size": args.batch_size,
        "precision": args.precision, "tunings": {},
    }  # fmt: skip
    for tuning in args.tunings:
        results["tunings"][tuning] = figures = {}
        for which in args.contestants:
            racer = {which: Contestant(WAYS[which], args=args, tuning=tuning)}
            _, *entries = race(racer, 1 + args.warmup + args.rounds, tuning)[which]
            figures[which] = {
                "seconds": statistics.median(entry["seconds"] for entry in entries[args.warmup :]),
                "tokens_a_step": entries[-1]["tokens"],
                "peak_mib": entries[-1]["peak_bytes"] // 2**20,
            }
        print(table({"tunings": {tuning: figures}}), flush=True)
        write_json(Path(args.output_dir) / "benchmark_memory.json", results)
    print(table(results))
    print(f"written to {Path(args.output_dir) / 'benchmark_memory.json'}")


def table(results: dict[str, Any]) -> str:
    """The results as a Markdown table, one line a tuning and contestant."""
    head = ["tuning", "step", "tokens", "seconds", "peak memory", "of the first"]
    rows = []
    for tuning, figures in results["tunings"].items():
        base = next(iter(figures.values()))["peak_mib"]
        for which, each in figures.items():
            peak, seconds = f"{each['peak_mib']} MiB", f"{each['seconds']:.1f}"
            rows.append([tuning, which, str(each["tokens_a_step"]), seconds, peak, f"{each['peak_mib'] / base:.2f}"])
    return markdown_table(head, rows)

"""Measure EmoTune against the libraries it stands on: same model, same data, same machine, in one run.

    python -m scripts.benchmark sft --model_path models/smollm2-135m-instruct --output_dir outputs/benchmark

Each contestant is a process of its own, so that its peak memory is its own. They take turns, one training step each,
and medians are compared: what else the machine does then slows all of them alike. A figure in seconds says little on
another machine; a ratio does.

sft     one training step of a Llama-type model under a LoRA adapter. `trl` is TRL's SFTTrainer as it comes, `ours`
        main_SFT.py, `compiled` the same with --compile, `plain` with --prefix_sharing off: what the packing adds to
        the rest (on a CPU plain instead of fused attention, adapters without casts, logits of the answers only).
        The limit is the time the step's matrix products would take at the rate at which this machine multiplies
        bf16 matrices of the model's own sizes, measured between the steps.
"""

import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.arguments import UserError, check_at_least, check_output_dir, flag, run
from data.files import write_json
from data.loading import load_examples
from data.tasks import BUILT_IN_TASKS
from data.training import load_data, lora_config, train
from inference import check_model_path


@dataclass(frozen=True)
class Case:
    """Data to train on: a task, the folder under `--data_dir` that holds it, and how many texts make a batch."""

    what: str
    task: str
    folder: str
    batch_size: int


SFT_CASES = {
    "28-labels": Case("instruction with 28 labels first", "goemotions-original", "goemotions/original", 32),
    "4-labels": Case("instruction with 4 labels first", "goemotions-group", "goemotions/group", 32),
    "text-first": Case("SST-2, text first: nothing to share", "sst2", "sst2", 32),
    "long-texts": Case("R8, long texts, text first", "r8", "r8", 8),
}


@dataclass
class Args:
    model_path: str | None = flag(None, "model to train: hub id or directory")
    data_dir: str = flag("data", "folder of the data sets, as download.py fills it")
    output_dir: str = flag("outputs/benchmark", "where the figures go")
    cases: list[str] = flag(list(SFT_CASES), f"which of {', '.join(SFT_CASES)}")
    contestants: list[str] = flag(["trl", "ours", "compiled"], "which of trl, plain, ours, compiled")
    rounds: int = flag(5, "timed steps of each contestant")
    warmup: int = flag(2, "steps before them that are not timed")
    max_length: int = flag(512, "tokens of prompt and answer together")
    lora_r: int = flag(16, "rank of the adapter")
    seed: int = flag(42, "seed of order and adapter")

    def __post_init__(self):
        if self.model_path is None:
            raise UserError("--model_path is needed")
        for name, known in (("cases", SFT_CASES), ("contestants", CONTESTANTS)):
            if unknown := [value for value in getattr(self, name) if value not in known]:
                raise UserError(f"--{name} {unknown[0]}: must be of {', '.join(known)}")
        check_at_least(self, rounds=1, warmup=1, max_length=1, lora_r=1, seed=0)
        check_output_dir(self.output_dir)


# --- taking turns ---------------------------------------------------------------------------------------------------


class Contestant:
    """A process that works when it is asked to. `work(turns, **settings)` runs in it and takes one turn after another.

    A turn is `turns.wait()`, then the work, then `turns.done(**figures)`.
    """

    def __init__(self, work: Callable[..., None], **settings: Any):
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(work, theirs, settings), daemon=True)
        self._process.start()
        theirs.close()

    def turn(self) -> dict[str, Any]:
        """Let it take its next turn; what it reports, with `seconds` from being asked to being done."""
        begin = time.perf_counter()
        try:
            self._connection.send("go")
            figures = self._connection.recv()
        except (EOFError, ConnectionError) as error:
            raise UserError("a contestant died; out of memory?") from error
        if "failure" in figures:
            raise RuntimeError(f"a contestant failed:\n{figures['failure']}")
        return {"seconds": time.perf_counter() - begin} | figures

    def stop(self) -> None:
        self._connection.close()  # whoever waits for a turn ends, and tidies up behind itself
        self._process.join(10)
        self._process.terminate()
        self._process.join()


class Turns:
    """The contestant's end of the line."""

    def __init__(self, connection):
        self._connection = connection

    def wait(self) -> None:
        self._connection.recv()

    def done(self, **figures: Any) -> None:
        _synchronize()
        self._connection.send(figures | {"peak_bytes": peak_memory()})


def _synchronize() -> None:
    """A GPU works on after it has been asked; wait for it."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory() -> int:
    """Most bytes this process had at any time: on the GPU, if it has one, else in main memory."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    # not ru_maxrss: on Linux a process starts with the peak of the one that started it
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _work(work: Callable[..., None], connection, settings: dict[str, Any]) -> None:
    try:
        work(Turns(connection), **settings)
    except (EOFError, BrokenPipeError):
        return
    except BaseException:  # whatever it was, the one who waits has to hear of it
        connection.send({"failure": traceback.format_exc()})
        raise


# --- sft: a training step -------------------------------------------------------------------------------------------


def sft_args(args: Args, case: Case, output_dir: str, **settings: Any):
    """The benchmark's settings as main_SFT.py's."""
    import main_SFT

    return main_SFT.Args(
        model_path=args.model_path, task=case.task, train_data_path=str(train_file(args, case)), output_dir=output_dir,
        max_length=args.max_length, batch_size=case.batch_size, lora_r=args.lora_r, lora_alpha=2 * args.lora_r,
        max_steps=args.warmup + args.rounds, val_ratio=0.0, seed=args.seed, **settings,
    )  # fmt: skip


def train_file(args: Args, case: Case) -> Path:
    """The training rows of a case.

    Raises:
        UserError: not there.
    """
    folder = Path(args.data_dir) / case.folder
    found = sorted(folder.glob("train.*"))
    if not found:
        name = case.folder.partition("/")[0]
        raise UserError(f"{folder}: no train file there; get it with: python download.py --dataset {name}")
    return found[0]


def _take_turns(trainer, turns: Turns, tokens_of: Callable[[Any], int]) -> None:
    """Have a trainer make each of its steps a turn: from fetching the batch to the optimizer's update."""
    from transformers import TrainerCallback

    tokens: list[int] = []
    collate = trainer.data_collator

    def counted(examples):
        batch = collate(examples)
        tokens.append(tokens_of(batch))
        return batch

    class StepIsTurn(TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            turns.wait()

        def on_step_end(self, training_arguments, state, *args, **kwargs):
            turns.done(tokens=tokens[state.global_step - 1])
            turns.wait()

    trainer.data_collator = counted
    trainer.add_callback(StepIsTurn())


def ours(turns: Turns, args: Args, case: Case, **flags: Any) -> None:
    """main_SFT.py, from its own pieces."""
    import main_SFT
    from data.contract import Contract
    from data.encoding import Encoder
    from inference import load_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        settings = sft_args(args, case, folder, **flags)
        data = load_data(settings, BUILT_IN_TASKS[case.task], kind_known=True)
        encoder = Encoder(data.task, load_tokenizer(args.model_path), max_length=args.max_length)
        model = main_SFT.load_trainable_model(settings)
        contract = Contract(data.task, max_length=args.max_length, base_model=args.model_path)
        trainer = main_SFT.build_trainer(settings, data, model, encoder, contract)
        _take_turns(trainer, turns, lambda batch: len(batch["row"]) if "row" in batch else batch["input_ids"].numel())
        train(trainer, None)


def compiled(turns: Turns, args: Args, case: Case) -> None:
    """The same with --compile."""
    ours(turns, args, case, compile=True)


def plain(turns: Turns, args: Args, case: Case) -> None:
    """The same without packing."""
    ours(turns, args, case, prefix_sharing="off")


def trl(turns: Turns, args: Args, case: Case) -> None:
    """TRL's SFTTrainer, on the same token ids."""
    import torch
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    import main_SFT
    from data.encoding import Encoder
    from inference import load_tokenizer, pick_device

    with tempfile.TemporaryDirectory() as folder:
        settings = sft_args(args, case, folder)
        data = load_data(settings, BUILT_IN_TASKS[case.task], kind_known=True)
        tokenizer = load_tokenizer(args.model_path)
        model = AutoModelForCausalLM.from_pretrained(args.model_path, dtype=torch.bfloat16)
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=folder, max_steps=settings.max_steps, per_device_train_batch_size=case.batch_size,
                learning_rate=settings.learning_rate, weight_decay=settings.weight_decay, bf16=True,
                use_cpu=pick_device() == "cpu", gradient_checkpointing=False, seed=args.seed, report_to=[],
                save_strategy="no", max_length=None, dataset_kwargs={"skip_prepare_dataset": True},
            ),
            train_dataset=main_SFT.tokenize(data.train, Encoder(data.task, tokenizer, max_length=args.max_length)),
            processing_class=tokenizer,
            peft_config=lora_config(settings, model),
        )  # fmt: skip
        _take_turns(trainer, turns, lambda batch: batch["input_ids"].numel())
        trainer.train()


def multiply(turns: Turns, hidden: int, intermediate: int, rows: int) -> None:
    """The machine itself: bf16 products of (rows, hidden) with (hidden, intermediate), as an MLP layer's."""
    import torch

    from inference import pick_device

    kind = {"dtype": torch.bfloat16, "device": pick_device()}
    left, right = torch.randn(rows, hidden, **kind), torch.randn(intermediate, hidden, **kind)
    while True:
        turns.wait()
        seconds = []
        for _ in range(50):
            begin = time.perf_counter()
            torch.nn.functional.linear(left, right)
            _synchronize()
            seconds.append(time.perf_counter() - begin)
        turns.done(flops=2 * rows * hidden * intermediate / statistics.median(seconds))


CONTESTANTS = {"trl": trl, "plain": plain, "ours": ours, "compiled": compiled}


def matrix_flops(args: Args) -> dict[str, Any]:
    """Operations in the matrix products of a step (a token's, a projected position's), and the MLP's sizes.

    A frozen layer's weights are used forward (2 operations each) and for the gradient of its input (2); an adapter's
    also for their own gradient (2 more). Attention scores are left out: below a twentieth on short texts.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(args.model_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    linear = [m.weight for m in model.modules() if hasattr(m, "in_features") and m is not head]
    adapter = sum(args.lora_r * sum(weight.shape) for weight in linear)
    return {
        "token": 4.0 * sum(weight.numel() for weight in linear) + 6.0 * adapter,
        "position": 4.0 * head.weight.numel(),
        "hidden": config.get_text_config().hidden_size,
        "intermediate": config.get_text_config().intermediate_size,
    }


def unique_tokens(args: Args, case: Case) -> tuple[float, float]:
    """Mean number of tokens and of projected positions in a packed batch, whatever the contestants compute."""
    import random

    import main_SFT
    from data.encoding import Encoder
    from data.packing import pack
    from inference import load_tokenizer

    examples = load_examples(train_file(args, case), BUILT_IN_TASKS[case.task])
    drawn = random.Random(args.seed).sample(examples, 16 * case.batch_size)
    encoder = Encoder(BUILT_IN_TASKS[case.task], load_tokenizer(args.model_path), max_length=args.max_length)
    data = main_SFT.tokenize(drawn, encoder)
    ids, flags = data["input_ids"], [[label != -100 for label in row] for row in data["labels"]]
    rows = [
        pack(ids[i : i + case.batch_size], flags[i : i + case.batch_size])[0]
        for i in range(0, len(ids), case.batch_size)
    ]
    return statistics.mean(map(len, rows)), statistics.mean(len(row.logit_index) for row in rows)


def race_sft(args: Args, name: str) -> dict[str, Any]:
    """One case: every contestant and the machine itself in turns."""
    case = SFT_CASES[name]
    tokens, positions = unique_tokens(args, case)
    per = matrix_flops(args)
    needed = per["token"] * tokens + per["position"] * positions
    racers = {
        "machine": Contestant(multiply, hidden=per["hidden"], intermediate=per["intermediate"], rows=round(tokens))
    }
    racers |= {which: Contestant(CONTESTANTS[which], args=args, case=case) for which in args.contestants}
    turns: dict[str, list[dict[str, Any]]] = {which: [] for which in racers}
    try:
        for number in range(args.warmup + args.rounds):
            for which, racer in racers.items():
                turns[which].append(racer.turn())
                if which != "machine":
                    seconds = turns[which][-1]["seconds"]
                    print(f"{name} step {number + 1} {which:9} {seconds:7.2f} s", flush=True)
    finally:
        for racer in racers.values():
            racer.stop()
    timed = {which: entries[args.warmup :] for which, entries in turns.items()}
    rate = statistics.median(entry["flops"] for entry in timed.pop("machine"))
    result: dict[str, Any] = {
        "what": case.what, "batch_size": case.batch_size, "unique_tokens": round(tokens), "matrix_gflops": needed / 1e9,
        "bf16_gflops_per_second": rate / 1e9, "limit_seconds": needed / rate, "contestants": {},
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


def sft(args: Args) -> None:
    check_model_path(args.model_path)
    for name in args.cases:
        train_file(args, SFT_CASES[name])  # a missing file is found before the first minutes are gone
    results = {}
    for name in args.cases:
        results[name] = race_sft(args, name)
        print(table({name: results[name]}), flush=True)
        write_json(Path(args.output_dir) / "benchmark_sft.json", results)
    print(table(results))
    print(f"written to {Path(args.output_dir) / 'benchmark_sft.json'}")


def table(results: dict[str, Any]) -> str:
    """The results as a Markdown table, one line a case and contestant."""
    lines = [
        "| case | trainer | texts/s | vs. TRL | tokens a step | peak memory | times the limit |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        for which, figures in result["contestants"].items():
            ratio = f"{figures['speedup']:.1f}×" if "speedup" in figures else "–"
            lines.append(
                f"| {name} | {which} | {figures['examples_per_second']:.1f} | {ratio} | {figures['tokens_a_step']:.0f} "
                f"| {figures['peak_gib']:.1f} GiB | {figures['times_the_limit']:.1f} |"
            )
    return "\n".join(lines)


BENCHMARKS = {"sft": sft}


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in BENCHMARKS:
        run(BENCHMARKS[sys.argv.pop(1)], Args, dict())
    elif len(sys.argv) > 1 and sys.argv[1] in ("-h", "--help"):
        run(sft, Args, dict())
    else:
        print(f"benchmark.py: error: the first argument is one of {', '.join(BENCHMARKS)}", file=sys.stderr)
        sys.exit(2)

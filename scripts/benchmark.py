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
grpo    one step of GRPO: draw a group of answers to each text, score them, learn from them. `trl` is TRL's GRPOTrainer
        as it comes, with our rewards; `ours` main_grpo.py, `plain` the same with --prefix_sharing off.
"""

import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
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
class SftArgs:
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
        _check_known(self, cases=SFT_CASES, contestants=SFT_CONTESTANTS)
        check_at_least(self, rounds=1, warmup=1, max_length=1, lora_r=1, seed=0)
        check_output_dir(self.output_dir)


@dataclass
class GrpoArgs:
    model_path: str | None = flag(None, "start: hub id or directory, untuned or an SFT run")
    data_dir: str = flag("data", "folder of the data sets, as download.py fills it")
    output_dir: str = flag("outputs/benchmark", "where the figures go")
    contestants: list[str] = flag(["trl", "ours"], "which of trl, plain, ours")
    texts: int = flag(4, "texts a step")
    num_generations: int = flag(8, "answers drawn for each")
    rounds: int = flag(5, "timed steps of each contestant")
    warmup: int = flag(2, "steps before them that are not timed")
    lora_r: int = flag(16, "rank of the adapter, where the start brings none")
    seed: int = flag(42, "seed of order, adapter and drawing")

    def __post_init__(self):
        if self.model_path is None:
            raise UserError("--model_path is needed")
        _check_known(self, contestants=GRPO_CONTESTANTS)
        check_at_least(self, texts=1, num_generations=2, rounds=1, warmup=1, lora_r=1, seed=0)
        check_output_dir(self.output_dir)


def _check_known(args: Any, **allowed: Iterable[str]) -> None:
    """Raise a `UserError` naming the first value of a list flag that is none of those allowed."""
    for name, known in allowed.items():
        if unknown := [value for value in getattr(args, name) if value not in known]:
            raise UserError(f"--{name} {unknown[0]}: must be of {', '.join(known)}")


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


def race(racers: dict[str, Contestant], rounds: int, name: str) -> dict[str, list[dict[str, Any]]]:
    """Let all take turns, and stop them; what each reported, turn by turn."""
    turns: dict[str, list[dict[str, Any]]] = {which: [] for which in racers}
    try:
        for number in range(rounds):
            for which, racer in racers.items():
                turns[which].append(racer.turn())
                if which != "machine":
                    seconds = turns[which][-1]["seconds"]
                    print(f"{name} step {number + 1} {which:9} {seconds:7.2f} s", flush=True)
    finally:
        for racer in racers.values():
            racer.stop()
    return turns


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


def sft_args(args: SftArgs, case: Case, output_dir: str, **settings: Any):
    """The benchmark's settings as main_SFT.py's."""
    import main_SFT

    return main_SFT.Args(
        model_path=args.model_path, task=case.task, train_data_path=str(train_file(args, case)), output_dir=output_dir,
        max_length=args.max_length, batch_size=case.batch_size, lora_r=args.lora_r, lora_alpha=2 * args.lora_r,
        max_steps=args.warmup + args.rounds, val_ratio=0.0, seed=args.seed, **settings,
    )  # fmt: skip


def train_file(args: SftArgs | GrpoArgs, case: Case) -> Path:
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


def ours(turns: Turns, args: SftArgs, case: Case, **flags: Any) -> None:
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


def compiled(turns: Turns, args: SftArgs, case: Case) -> None:
    """The same with --compile."""
    ours(turns, args, case, compile=True)


def plain(turns: Turns, args: SftArgs, case: Case) -> None:
    """The same without packing."""
    ours(turns, args, case, prefix_sharing="off")


def trl(turns: Turns, args: SftArgs, case: Case) -> None:
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


SFT_CONTESTANTS = {"trl": trl, "plain": plain, "ours": ours, "compiled": compiled}


def matrix_flops(args: SftArgs) -> dict[str, Any]:
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


def unique_tokens(args: SftArgs, case: Case) -> tuple[float, float]:
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


def race_sft(args: SftArgs, name: str) -> dict[str, Any]:
    """One case: every contestant and the machine itself in turns."""
    case = SFT_CASES[name]
    tokens, positions = unique_tokens(args, case)
    per = matrix_flops(args)
    needed = per["token"] * tokens + per["position"] * positions
    racers = {
        "machine": Contestant(multiply, hidden=per["hidden"], intermediate=per["intermediate"], rows=round(tokens))
    }
    racers |= {which: Contestant(SFT_CONTESTANTS[which], args=args, case=case) for which in args.contestants}
    turns = race(racers, args.warmup + args.rounds, name)
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


def sft(args: SftArgs) -> None:
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


# --- grpo: draw answers, learn from them ----------------------------------------------------------------------------


GRPO_CASE = SFT_CASES["28-labels"]


def grpo_args(args: GrpoArgs, output_dir: str, **settings: Any):
    """The benchmark's settings as main_grpo.py's."""
    import main_grpo

    trained = (Path(args.model_path) / "adapter_config.json").is_file()
    return main_grpo.Args(
        model_path=args.model_path, task=GRPO_CASE.task, train_data_path=str(train_file(args, GRPO_CASE)),
        output_dir=output_dir, num_generations=args.num_generations, batch_size=args.texts * args.num_generations,
        lora_r=None if trained else args.lora_r, max_steps=args.warmup + args.rounds, val_ratio=0.0, seed=args.seed,
        logging_steps=args.warmup + args.rounds + 1, **settings,
    )  # fmt: skip


def _take_grpo_turns(trainer, turns: Turns) -> None:
    """Have a trainer make each of its steps a turn, and report how much of it went into drawing answers."""
    from transformers import TrainerCallback

    seconds = {"drawing": 0.0}
    draw = trainer._generate_single_turn

    def timed(*args, **kwargs):
        begin = time.perf_counter()
        drawn = draw(*args, **kwargs)
        _synchronize()
        seconds["drawing"] += time.perf_counter() - begin
        return drawn

    class StepIsTurn(TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            turns.wait()

        def on_step_end(self, *args, **kwargs):
            length = trainer._metrics["train"]["completions/mean_length"][-1]
            turns.done(drawing_seconds=seconds["drawing"], answer_tokens=length)
            seconds["drawing"] = 0.0
            turns.wait()

    trainer._generate_single_turn = timed
    trainer.add_callback(StepIsTurn())


def our_grpo(turns: Turns, args: GrpoArgs, **flags: Any) -> None:
    """main_grpo.py, from its own pieces."""
    import main_grpo
    from data.contract import contract_for
    from data.encoding import Encoder
    from inference import load_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        settings = grpo_args(args, folder, **flags)
        contract = contract_for(args.model_path, settings.task)
        data = load_data(settings, contract.task, kind_known=True)
        encoder = Encoder(data.task, load_tokenizer(args.model_path), contract.cot, contract.max_length)
        model, packed = main_grpo.load_policy(settings, longest=contract.max_length)
        trainer = main_grpo.build_trainer(settings, data, model, packed, encoder, contract)
        _take_grpo_turns(trainer, turns)
        train(trainer, None)


def plain_grpo(turns: Turns, args: GrpoArgs) -> None:
    """The same without packing."""
    our_grpo(turns, args, prefix_sharing="off")


def trl_grpo(turns: Turns, args: GrpoArgs) -> None:
    """TRL's GRPOTrainer on the same chats, with the same rewards and settings."""
    import torch
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    import main_grpo
    from data.contract import contract_for
    from data.encoding import Encoder
    from inference import base_model_path, load_tokenizer, pick_device, stop_token_ids

    with tempfile.TemporaryDirectory() as folder:
        settings = grpo_args(args, folder)
        contract = contract_for(args.model_path, settings.task)
        task = contract.task
        data = load_data(settings, task, kind_known=True)
        tokenizer = load_tokenizer(args.model_path)
        encoder = Encoder(task, tokenizer, contract.cot, contract.max_length)
        start = base_model_path(args.model_path)
        model = AutoModelForCausalLM.from_pretrained(start or args.model_path, dtype=torch.bfloat16)
        if start is not None:
            model = PeftModel.from_pretrained(model, args.model_path, is_trainable=True)
        budget, limit = main_grpo.answer_lengths(settings, encoder, data.train)
        weights = {"jaccard": settings.accuracy_weight, "format": settings.format_weight, "length": 0.5}
        rewards = main_grpo.Rewards(encoder, stop_token_ids(model, encoder.end_id), budget, limit, weights)
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=rewards.functions(),
            args=GRPOConfig(
                output_dir=folder, max_steps=settings.max_steps, per_device_train_batch_size=settings.batch_size,
                num_generations=args.num_generations, max_completion_length=limit, beta=0.0,
                reward_weights=list(weights.values()), learning_rate=settings.learning_rate, bf16=True,
                use_cpu=pick_device() == "cpu", gradient_checkpointing=False, seed=args.seed, report_to=[],
                save_strategy="no", logging_steps=settings.logging_steps,
            ),
            train_dataset=Dataset.from_list([{"prompt": task.messages(e.text), "gold": e.labels} for e in data.train]),
            processing_class=tokenizer,
            peft_config=None if start else lora_config(settings, model),
        )  # fmt: skip
        _take_grpo_turns(trainer, turns)
        trainer.train()


GRPO_CONTESTANTS = {"trl": trl_grpo, "plain": plain_grpo, "ours": our_grpo}


def grpo(args: GrpoArgs) -> None:
    check_model_path(args.model_path)
    train_file(args, GRPO_CASE)
    turns = race(
        {which: Contestant(GRPO_CONTESTANTS[which], args=args) for which in args.contestants},
        args.warmup + args.rounds, "grpo",
    )  # fmt: skip
    results: dict[str, Any] = {
        "what": f"{args.texts} texts x {args.num_generations} answers, {GRPO_CASE.what}",
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
    print(grpo_table(results))
    write_json(Path(args.output_dir) / "benchmark_grpo.json", results)
    print(f"written to {Path(args.output_dir) / 'benchmark_grpo.json'}")


def grpo_table(results: dict[str, Any]) -> str:
    """The results as a Markdown table, one line a contestant."""
    lines = [
        "| trainer | seconds a step | drawing | learning | answer tokens | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    base = results["contestants"].get("trl")
    for which, figures in results["contestants"].items():
        columns = [
            f"{figures[name]:.2f}" + (f" ({base[name] / figures[name]:.1f}×)" if base else "")
            for name in ("seconds", "drawing_seconds", "learning_seconds")
        ]
        lines.append(
            f"| {which} | {' | '.join(columns)} | {figures['answer_tokens']:.1f} | {figures['peak_gib']:.1f} GiB |"
        )
    return "\n".join(lines)


BENCHMARKS = {"sft": (sft, SftArgs), "grpo": (grpo, GrpoArgs)}


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in BENCHMARKS:
        run(*BENCHMARKS[sys.argv.pop(1)], dict())
    elif len(sys.argv) > 1 and sys.argv[1] in ("-h", "--help"):
        print(f"{__doc__}\nFlags of one of them: python -m scripts.benchmark {'|'.join(BENCHMARKS)} --help")
    else:
        print(f"benchmark.py: error: the first argument is one of {', '.join(BENCHMARKS)}", file=sys.stderr)
        sys.exit(2)

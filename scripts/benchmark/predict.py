"""Answers to a file of texts: Transformers' generate and the vLLM engine against inference.py."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data.arguments import UserError, check_at_least, flag
from data.contract import Contract, contract_for
from data.engine.models import base_model_path, dtype_of, load_model, load_tokenizer, pick_device
from data.engine.predictor import Predictor
from data.files import TASK_FILE, write_json
from data.loading import load_examples
from data.report.tables import markdown_table
from scripts.benchmark.race import (
    CASES,
    Case,
    Contestant,
    RaceArgs,
    Turns,
    check_known,
    checked,
    race,
    synchronize,
    train_file,
)

SINGLES, WARM_UP = 100, 10  # texts predicted one by one, for the latency, and before them


@dataclass
class InferenceArgs(RaceArgs):
    model_path: str | None = flag(None, "a whole model that writes its answers: merged, fully tuned, or untuned")
    contestants: list[str] = flag(
        ["generate", "mended", "free", "bare", "ours", "workers", "compiled"],
        "which of generate, mended, vllm, free, bare, ours, workers, compiled",
    )
    rounds: int = flag(8, "timed turns of each contestant, which share the texts")
    case: Literal["28-labels", "4-labels"] = flag("28-labels", "the prompt, and the texts")
    rows: int = flag(1000, "texts in all")
    batch_size: int = flag(64, "texts a batch, but for vLLM")
    workers: int = flag(2, "processes of the contestants workers and compiled")

    def __post_init__(self):
        super().__post_init__()
        check_known(self, contestants=CONTESTANTS)
        check_at_least(self, batch_size=1, workers=2, rows=self.rounds)


def _contract(args: InferenceArgs) -> Contract:
    trained = (Path(args.model_path) / TASK_FILE).is_file()
    return contract_for(args.model_path, None if trained else CASES[args.case].task)


def _texts(args: InferenceArgs, case: Case, contract: Contract) -> list[str]:
    """Texts of the validation rows, where there are any."""
    train = train_file(args.data_dir, case)
    dev = train.with_stem("dev")
    examples = load_examples(dev if dev.is_file() else train, contract.task, labels_required=False)
    return [example.text for example in examples[: args.rows]]


def _take_turns(turns: Turns, args: InferenceArgs, predict: Callable[[Sequence[str]], list[str]]) -> None:
    """Turns of a batch to warm up, then a part of the texts each."""
    texts = _texts(args, CASES[args.case], _contract(args))
    parts = [texts[: args.batch_size]] * args.warmup + [texts[i :: args.rounds] for i in range(args.rounds)]
    for part in parts:
        turns.wait()
        answers = predict(part)
        turns.done(answers=answers, texts=len(part))


def generate(turns: Turns, args: InferenceArgs) -> None:
    """`model.generate` on batches padded on the left, as it comes."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        args.model_path, dtype=dtype_of(args.peer_precision), trust_remote_code=False
    )
    model = model.to(pick_device()).eval()
    _generate(turns, args, model)


def mended(turns: Turns, args: InferenceArgs) -> None:
    """The same with the last position copied before it meets the vocabulary, as inference.py loads models."""
    _generate(turns, args, load_model(args.model_path, args.peer_precision))


def _generate(turns: Turns, args: InferenceArgs, model) -> None:
    import torch

    from data.engine.generation import stop_token_ids

    contract, tokenizer = _contract(args), load_tokenizer(args.model_path)
    encoder = contract.encoder(tokenizer)
    tokenizer.padding_side = "left"

    def predict(texts: Sequence[str]) -> list[str]:
        prompts = encoder.prompt_ids(texts)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
        answers = [""] * len(prompts)
        for begin in range(0, len(order), args.batch_size):
            rows = order[begin : begin + args.batch_size]
            batch = tokenizer.pad({"input_ids": [prompts[i] for i in rows]}, return_tensors="pt").to(model.device)
            with torch.inference_mode():
                written = model.generate(
                    **batch, do_sample=False, max_new_tokens=encoder.answer_tokens,
                    eos_token_id=stop_token_ids(model, encoder.end_id), pad_token_id=tokenizer.pad_token_id,
                )[:, batch["input_ids"].shape[1] :]  # fmt: skip
            for row, ids in zip(rows, written.tolist(), strict=True):
                answers[row] = " ".join(contract.task.parse(encoder.decode(ids), contract.cot).labels)
        synchronize()
        return answers

    _take_turns(turns, args, predict)


def _predictor(args: InferenceArgs, **settings: Any) -> Predictor:
    trained = (Path(args.model_path) / TASK_FILE).is_file()
    task = None if trained else CASES[args.case].task
    return Predictor(args.model_path, task, **{"batch_size": args.batch_size, "precision": args.precision} | settings)


def _predict(turns: Turns, args: InferenceArgs, **settings: Any) -> None:
    predictor = _predictor(args, **settings)

    def predict(texts: Sequence[str]) -> list[str]:
        return [" ".join(prediction.labels) for prediction in predictor.predict_batch(texts)]

    _take_turns(turns, args, predict)


def single(turns: Turns, args: InferenceArgs) -> None:
    """inference.py, one text after the other."""
    predictor = _predictor(args)
    texts = _texts(args, CASES[args.case], predictor.contract)
    turns.wait()
    seconds = []
    for text in texts[: WARM_UP + SINGLES]:
        begin = time.perf_counter()
        predictor.predict(text)
        seconds.append(time.perf_counter() - begin)
    turns.done(each=seconds[WARM_UP:])


def vllm(turns: Turns, args: InferenceArgs) -> None:
    """inference.py --backend vllm: valid answers only, prefix caching."""
    _predict(turns, args, backend="vllm", precision=args.peer_precision)


def free(turns: Turns, args: InferenceArgs) -> None:
    """inference.py --constrained off."""
    _predict(turns, args, constrained=False, decide="answer")


def bare(turns: Turns, args: InferenceArgs) -> None:
    """inference.py --probabilities off --decide answer: answers alone, as the peers give them."""
    _predict(turns, args, probabilities=False, decide="answer")


def ours(turns: Turns, args: InferenceArgs) -> None:
    """inference.py."""
    _predict(turns, args)


def workers(turns: Turns, args: InferenceArgs) -> None:
    """inference.py --workers."""
    _predict(turns, args, workers=args.workers)


def compiled(turns: Turns, args: InferenceArgs) -> None:
    """inference.py --workers --compile."""
    _predict(turns, args, workers=args.workers, compile=True)


CONTESTANTS = {"generate": generate, "mended": mended, "vllm": vllm, "free": free, "bare": bare, "ours": ours,
               "workers": workers, "compiled": compiled}  # fmt: skip


def inference(args: InferenceArgs) -> None:
    args = checked(args)
    if base_model_path(args.model_path) is not None:
        raise UserError(f"--model_path {args.model_path}: an adapter; merge it first (merge_lora.py)")
    _contract(args)
    train_file(args.data_dir, CASES[args.case])
    turns = race(
        {which: Contestant(CONTESTANTS[which], args=args) for which in args.contestants},
        args.warmup + args.rounds, "inference",
    )  # fmt: skip
    results: dict[str, Any] = {"what": f"{args.rows} texts, {CASES[args.case].what}", "precision": args.precision,
                               "peer_precision": args.peer_precision, "contestants": {}}  # fmt: skip
    for which, entries in turns.items():
        timed = entries[args.warmup :]
        rates = [entry["texts"] / entry["seconds"] for entry in timed]
        results["contestants"][which] = {
            "texts_per_second": statistics.median(rates),
            "all_rates": rates,
            "answers": [answer for entry in timed for answer in entry["answers"]],
            "peak_gib": entries[-1]["peak_bytes"] / 2**30,
        }
    if "ours" in turns:
        ((entry,),) = race({"single": Contestant(single, args=args)}, 1, "inference").values()
        each = sorted(entry["each"])
        results["latency"] = {"median": statistics.median(each), "p95": each[int(0.95 * len(each))]}
    print(table(results))
    write_json(Path(args.output_dir) / f"benchmark_inference_{args.case}.json", results)
    print(f"written to {Path(args.output_dir) / f'benchmark_inference_{args.case}.json'}")


def table(results: dict[str, Any]) -> str:
    """The results as a Markdown table, one line a contestant."""
    contestants = results["contestants"]
    ours = contestants.get("ours")
    rivals = [which for which in ("generate", "mended", "vllm") if which in contestants]
    head = ["answers", "texts/s", *(f"times {which}" for which in rivals), "labels as ours", "peak memory"]
    rows = []
    for which, figures in contestants.items():
        speed = figures["texts_per_second"]
        columns = [which, f"{speed:.1f}", *(f"{speed / contestants[r]['texts_per_second']:.1f}×" for r in rivals)]
        equal = sum(a == b for a, b in zip(figures["answers"], ours["answers"], strict=True)) if ours else 0
        columns += [f"{equal / len(figures['answers']):.1%}" if ours else "–", f"{figures['peak_gib']:.1f} GiB"]
        rows.append(columns)
    text = markdown_table(head, rows)
    if "latency" in results:
        median, p95 = (f"{1000 * results['latency'][name]:.0f} ms" for name in ("median", "p95"))
        text += f"\n\none text at a time: {median} (median), {p95} (95 %)"
    return text

"""An encoder learns, and predicts: Transformers' Trainer and pipeline against main_SFT.py and inference.py."""

import random
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import main_SFT
from data.arguments import UserError, check_at_least, flag
from data.contract import Contract
from data.encoding import Encoder
from data.engine.models import base_model_path, dtype_of, is_encoder, load_model, load_tokenizer, pick_device
from data.engine.predictor import Predictor
from data.files import write_json
from data.learning.trainers import load_data, train
from data.loading import load_examples
from data.report.tables import markdown_table
from data.tasks import BUILT_IN_TASKS, Task, with_prompt
from scripts.benchmark.race import Case, Contestant, RaceArgs, Turns, check_known, checked, race, train_file
from scripts.benchmark.sft import take_steps

CASES = {
    "chnsenticorp": Case("ChnSentiCorp, Chinese reviews", "chnsenticorp", "chnsenticorp", 16),
    "r8": Case("R8, English news", "r8", "r8", 16),
}


@dataclass
class EncoderArgs(RaceArgs):
    model_path: str | None = flag(None, "an encoder: hub id or directory")
    contestants: list[str] = flag(["trainer", "plain", "ours"], "which of trainer, plain, ours learn")
    predictors: list[str] = flag(["pipeline", "padded", "ours"], "which of pipeline, padded, ours predict")
    case: Literal["chnsenticorp", "r8"] = flag("chnsenticorp", "the texts")
    warmup: int = flag(2, "turns before them that are not timed")
    max_length: int = flag(256, "tokens of a text; longer ones lose their end")
    rows: int = flag(512, "texts to predict in all")
    predict_batch_size: int = flag(64, "texts a batch in prediction")
    freeze_embeddings: bool = flag(False, "leave the token embeddings as they are, on both sides")
    seed: int = flag(42, "seed of order and head")

    def __post_init__(self):
        super().__post_init__()
        check_known(self, contestants=LEARNERS, predictors=PREDICTORS)
        check_at_least(self, max_length=8, rows=self.rounds, predict_batch_size=1, seed=0)


def _task(args: EncoderArgs) -> Task:
    return with_prompt(BUILT_IN_TASKS[CASES[args.case].task], "text_only")


def _frozen(args: EncoderArgs, model) -> Any:
    if args.freeze_embeddings:
        model.get_input_embeddings().requires_grad_(False)
    return model


# --- learning -------------------------------------------------------------------------------------------------------


def sft_args(args: EncoderArgs, output_dir: str, **settings: Any) -> main_SFT.Args:
    """The benchmark's settings as main_SFT.py's."""
    case = CASES[args.case]
    chosen = main_SFT.Args(
        model_path=args.model_path, task=case.task, train_data_path=str(train_file(args.data_dir, case)),
        output_dir=output_dir, tuning="full", head="linear", max_length=args.max_length, batch_size=case.batch_size,
        precision=args.precision, max_steps=args.warmup + args.rounds, val_ratio=0.0, seed=args.seed, **settings,
    )  # fmt: skip
    return main_SFT.with_defaults(chosen, BUILT_IN_TASKS[case.task])


def _tokens(batch: dict[str, Any]) -> int:
    return len(batch["row"]) if "row" in batch else batch["input_ids"].numel()


def ours(turns: Turns, args: EncoderArgs, **flags: Any) -> None:
    """main_SFT.py, from its own pieces."""
    with tempfile.TemporaryDirectory() as folder:
        settings = sft_args(args, folder, **flags)
        task = _task(args)
        contract = Contract(task, objective="classify", head="linear", max_length=args.max_length)
        data = load_data(settings, task, kind_known=True)
        encoder = contract.encoder(load_tokenizer(args.model_path))
        model = _frozen(args, main_SFT.load_trainable_model(settings, contract))
        trainer = main_SFT.build_trainer(settings, data, model, encoder, contract)
        take_steps(trainer, turns, _tokens)
        train(trainer, None)


def plain(turns: Turns, args: EncoderArgs) -> None:
    """The same in padded batches."""
    ours(turns, args, prefix_sharing="off")


def trainer(turns: Turns, args: EncoderArgs) -> None:
    """Transformers' Trainer with its padding collator, on the same token ids."""
    from datasets import Dataset
    from transformers import (
        AutoModelForSequenceClassification,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    with tempfile.TemporaryDirectory() as folder:
        settings, task = sft_args(args, folder), _task(args)
        tokenizer = load_tokenizer(args.model_path)
        encoder = Encoder(task, tokenizer, objective="classify", max_length=args.max_length)
        examples = load_data(settings, task, kind_known=True).train
        rows = {
            "input_ids": encoder.prompt_ids([e.text for e in examples]),
            "label": [task.ids[e.labels[0]] for e in examples],
        }
        set_seed(args.seed)
        model = AutoModelForSequenceClassification.from_pretrained(
            args.model_path, num_labels=len(task.labels), trust_remote_code=False
        )
        peer = Trainer(
            model=_frozen(args, model),
            args=TrainingArguments(
                output_dir=folder, max_steps=settings.max_steps, per_device_train_batch_size=settings.batch_size,
                learning_rate=settings.learning_rate, weight_decay=settings.weight_decay,
                bf16=args.peer_precision == "bf16", fp16=args.peer_precision == "fp16",
                use_cpu=pick_device() == "cpu", seed=args.seed, report_to=[], save_strategy="no",
            ),
            train_dataset=Dataset.from_dict(rows),
            data_collator=DataCollatorWithPadding(tokenizer),
        )  # fmt: skip
        take_steps(peer, turns, _tokens)
        peer.train()


LEARNERS = {"trainer": trainer, "plain": plain, "ours": ours}


# --- predicting -----------------------------------------------------------------------------------------------------


def save_untrained(args: EncoderArgs, directory: str) -> None:
    """The model with a new head, as a directory that all predict from."""
    from transformers import set_seed

    contract = Contract(_task(args), objective="classify", head="linear", max_length=args.max_length)
    tokenizer = load_tokenizer(args.model_path)
    set_seed(args.seed)
    load_model(args.model_path, "fp32", "cpu", contract=contract, new_head=True).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    contract.frozen(contract.encoder(tokenizer)).save(directory)


def _take_turns(turns: Turns, args: EncoderArgs, predict: Callable[[Sequence[str]], list[str]]) -> None:
    """Turns of a batch to warm up, then a part of the texts each."""
    case = CASES[args.case]
    examples = load_examples(train_file(args.data_dir, case), _task(args))
    texts = [e.text for e in random.Random(args.seed).sample(examples, min(args.rows, len(examples)))]
    parts = [texts[: args.predict_batch_size]] * args.warmup + [texts[i :: args.rounds] for i in range(args.rounds)]
    for part in parts:
        turns.wait()
        labels = predict(part)
        turns.done(labels=labels, texts=len(part))


def predict_ours(turns: Turns, args: EncoderArgs, directory: str, padded: bool = False) -> None:
    """inference.py."""
    predictor = Predictor(directory, batch_size=args.predict_batch_size, precision=args.precision)
    if padded:
        model = predictor.backend.model
        model.set_attn_implementation("sdpa")
        model.computes_packed_rows = False
    _take_turns(turns, args, lambda texts: [p.labels[0] for p in predictor.predict_batch(texts)])


def predict_padded(turns: Turns, args: EncoderArgs, directory: str) -> None:
    """The same in padded batches, of like length."""
    predict_ours(turns, args, directory, padded=True)


def pipeline(turns: Turns, args: EncoderArgs, directory: str) -> None:
    """Transformers' pipeline, in padded batches of the texts as they come."""
    from transformers import pipeline as transformers_pipeline

    classify = transformers_pipeline(
        "text-classification", model=directory, dtype=dtype_of(args.peer_precision), device=pick_device()
    )

    def predict(texts: Sequence[str]) -> list[str]:
        cut = {"truncation": True, "max_length": args.max_length}
        return [found["label"] for found in classify(list(texts), batch_size=args.predict_batch_size, **cut)]

    _take_turns(turns, args, predict)


PREDICTORS = {"pipeline": pipeline, "padded": predict_padded, "ours": predict_ours}


# --- figures --------------------------------------------------------------------------------------------------------


def race_learners(args: EncoderArgs) -> dict[str, Any]:
    """What each learner did in a step."""
    racers = {which: Contestant(LEARNERS[which], args=args) for which in args.contestants}
    figures = {}
    for which, entries in race(racers, args.warmup + args.rounds, args.case).items():
        timed = entries[args.warmup :]
        figures[which] = {
            # batches differ in length, but all compute the same ones
            "texts_per_second": CASES[args.case].batch_size / statistics.mean(entry["seconds"] for entry in timed),
            "all_seconds": [entry["seconds"] for entry in timed],
            "tokens_a_step": statistics.mean(entry["tokens"] for entry in timed),
            "peak_gib": timed[-1]["peak_bytes"] / 2**30,
        }
    return figures


def race_predictors(args: EncoderArgs) -> dict[str, Any]:
    """What each predictor did in a turn."""
    figures = {}
    with tempfile.TemporaryDirectory() as directory:
        save_untrained(args, directory)
        racers = {which: Contestant(PREDICTORS[which], args=args, directory=directory) for which in args.predictors}
        for which, entries in race(racers, args.warmup + args.rounds, args.case).items():
            timed = entries[args.warmup :]
            rates = [entry["texts"] / entry["seconds"] for entry in timed]
            figures[which] = {
                "texts_per_second": statistics.median(rates),
                "all_rates": rates,
                "labels": [label for entry in timed for label in entry["labels"]],
                "peak_gib": entries[-1]["peak_bytes"] / 2**30,
            }
    return figures


def encoder(args: EncoderArgs) -> None:
    args = checked(args)
    if base_model_path(args.model_path) is not None or not is_encoder(args.model_path):
        raise UserError(f"--model_path {args.model_path}: must be a whole encoder, such as BERT")
    train_file(args.data_dir, CASES[args.case])
    results: dict[str, Any] = {
        "what": f"{CASES[args.case].what}, up to {args.max_length} tokens", "model_path": args.model_path,
        "precision": args.precision, "peer_precision": args.peer_precision,
        "freeze_embeddings": args.freeze_embeddings, "learning": {}, "predicting": {},
    }  # fmt: skip
    if args.contestants:
        results["learning"] = race_learners(args)
    if args.predictors:
        results["predicting"] = race_predictors(args)
    print(table(results))
    path = Path(args.output_dir) / f"benchmark_encoder_{Path(args.model_path).name}_{args.case}.json"
    write_json(path, results)
    print(f"written to {path}")


def table(results: dict[str, Any]) -> str:
    """The results as a Markdown table, one line a contestant."""
    head = ["", "", "texts/s", "times the library", "tokens a step", "labels as ours", "peak memory"]
    rows = []
    for part, library in (("learning", "trainer"), ("predicting", "pipeline")):
        contestants = results[part]
        for which, figures in contestants.items():
            speed, ratio, tokens, equal = figures["texts_per_second"], "–", "–", "–"
            if library in contestants:
                ratio = f"{speed / contestants[library]['texts_per_second']:.1f}×"
            if "tokens_a_step" in figures:
                tokens = f"{figures['tokens_a_step']:.0f}"
            if "labels" in figures and "ours" in contestants:
                pairs = list(zip(figures["labels"], contestants["ours"]["labels"], strict=True))
                equal = f"{sum(a == b for a, b in pairs) / len(pairs):.1%}"
            rows.append([part, which, f"{speed:.1f}", ratio, tokens, equal, f"{figures['peak_gib']:.1f} GiB"])
    return markdown_table(head, rows)

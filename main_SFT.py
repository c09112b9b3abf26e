"""Supervised fine-tuning: a language model learns to write the labels of a text.

TRL's SFTTrainer does the training, with the loss on the answer only. What is watched, and what the best checkpoint is
chosen by, are label metrics of generated answers on the validation rows, never token accuracy. What the texts of a
batch share, first of all the instruction with its list of labels, is computed once a batch instead of once a text
(data/packing.py): the same loss and gradients in a fraction of the time.

    # LoRA on the GoEmotions groups (labels.txt alone says which task it is)
    python main_SFT.py --model_path models/Qwen2.5-7B-Instruct --train_data_path data/goemotions/group/train.tsv \\
        --dev_data_path data/goemotions/group/dev.tsv --label_path data/goemotions/group/labels.txt \\
        --test_data_path data/goemotions/group/test.tsv --output_dir outputs/group

    # every weight instead of an adapter
    python main_SFT.py --tuning full ...

    # eight GPUs (without a launcher, the first one is used)
    accelerate launch --num_processes 8 main_SFT.py ...

A killed run goes on from its newest whole checkpoint when the same command is given again.
"""

import gc
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from data.arguments import UserError, flag, is_first_process, run
from data.contract import Contract
from data.encoding import MAX_ANSWER_LABELS, RATIONALE_TOKENS, Encoder
from data.loading import Example
from data.metrics import DEFAULT_BEST, LABEL_METRICS
from data.tasks import Task, resolve_task
from data.training import (
    Data,
    LabelWatching,
    check_positions,
    check_same_task,
    check_training_flags,
    drawn,
    find_checkpoint,
    is_finished,
    load_data,
    lora_config,
    may_share_prefixes,
    train,
    write_run_facts,
)
from inference import (
    Predictor,
    base_model_path,
    check_model_path,
    compile_layers,
    load_model,
    load_tokenizer,
    pick_device,
    score_run,
)

WORTH_PACKING = 0.9  # --prefix_sharing auto packs if a batch then has at most this share of the padded tokens
DEFAULT_LEARNING_RATE = {"full": 2e-5, "lora": 2e-4}
# Flags that may differ when a run is continued: they change where, how often and how fast it works, or how long.
MAY_CHANGE = (
    "output_dir", "test_data_path", "resume_from_checkpoint", "logging_steps", "save_total_limit", "num_epochs",
    "max_steps", "predict_batch_size", "prefix_sharing", "compile",
)  # fmt: skip


@dataclass
class Args:
    # what
    model_path: str | None = flag(None, "hub id or directory of the model to fine-tune")
    task: str | None = flag(None, "built-in task, or single_label / multi_label for your own labels")
    label_path: str | None = flag(None, "labels.txt: one label a line, line number = id; names the task by itself")
    train_data_path: str | None = flag(None, "training file: TSV, CSV, JSON, JSON Lines, Parquet or text;label")
    dev_data_path: str | None = flag(None, "validation file (default: --val_ratio of the training rows)")
    test_data_path: str | None = flag(None, "labelled file the finished model is scored on")
    output_dir: str = flag("outputs/sft", "where the run goes")
    val_ratio: float = flag(0.15, "share of the training rows kept for validation when there is no --dev_data_path")
    skip_bad_rows: bool = flag(False, "list bad rows in rejected.jsonl instead of stopping at the first")
    cot: bool = flag(False, "train answers with reasoning, from the data's rationale column")
    max_length: int = flag(512, "tokens of prompt and answer together; longer texts lose their end")
    # how
    objective: Literal["generate"] = flag("generate", "what is learnt: generate = the model writes the labels")
    tuning: Literal["full", "lora"] = flag("lora", "train all weights, or a low-rank adapter")
    lora_r: int = flag(16, "rank of the adapter")
    lora_alpha: int = flag(32, "scale of the adapter (alpha / r multiplies it)")
    lora_dropout: float = flag(0.0, "dropout before the adapter (slow on a CPU: a third of a step)")
    lora_target_modules: list[str] = flag(["all-linear"], "layers that get an adapter; all-linear = all but the output")
    num_epochs: float = flag(3.0, "passes over the training rows")
    max_steps: int | None = flag(None, "stop after so many steps, whatever --num_epochs says")
    batch_size: int = flag(8, "training texts a step on each device")
    gradient_accumulation_steps: int = flag(1, "batches whose gradients are summed for a step")
    learning_rate: float | None = flag(None, "peak learning rate (default: 2e-4 for lora, 2e-5 for full)")
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = flag(
        "linear", "course of the learning rate after the warm-up"
    )
    warmup_ratio: float = flag(0.05, "share of the steps in which the learning rate rises")
    weight_decay: float = flag(0.01, "weight decay of AdamW")
    precision: Literal["bf16", "fp16", "fp32"] = flag("bf16", "number format of the computation")
    gradient_checkpointing: bool = flag(False, "recompute activations in the backward pass: less memory, slower")
    prefix_sharing: Literal["auto", "on", "off"] = flag(
        "auto", "compute what the texts of a batch share only once; auto = where the model allows it and it pays"
    )
    compile: bool = flag(False, "compile the model's layers: a minute at the start, then faster steps; for long runs")
    seed: int = flag(42, "seed of weights, order and split")
    # watching and keeping
    metric_for_best: str | None = flag(
        None, "chooses the best checkpoint (default: f1_macro, or accuracy if one label)"
    )
    eval_steps: int | None = flag(None, "score the validation rows every N steps (default: after each epoch)")
    eval_samples: int = flag(500, "validation rows scored while training, drawn once; 0 = all")
    save_steps: int | None = flag(
        None, "checkpoint every N steps (default: with each scoring); the best is always kept"
    )
    save_total_limit: int = flag(2, "checkpoints kept, the best one among them")
    logging_steps: int = flag(10, "report the loss every N steps")
    predict_batch_size: int = flag(32, "texts a batch when answers are generated")
    resume_from_checkpoint: str = flag("auto", "auto = go on from the newest whole checkpoint; none; or a checkpoint")

    def __post_init__(self):
        check_training_flags(self)
        if self.task is None and self.label_path is None:
            raise UserError("--task or --label_path is needed: which labels to learn")
        if self.metric_for_best not in (None, "loss", *LABEL_METRICS):
            raise UserError(
                f"--metric_for_best {self.metric_for_best}: must be loss or one of {', '.join(LABEL_METRICS)}"
            )
        if self.learning_rate is None:
            self.learning_rate = DEFAULT_LEARNING_RATE[self.tuning]


# --- data -----------------------------------------------------------------------------------------------------------


def tokenize(examples: Sequence[Example], encoder: Encoder):
    """Examples -> a data set of `input_ids` (prompt + answer + end) and `labels` (-100 on the prompt)."""
    from datasets import Dataset

    targets = [encoder.target_ids(e.labels, e.rationale if encoder.cot else None) for e in examples]
    for example, target in zip(examples, targets, strict=True):
        if len(target) > encoder.answer_tokens:
            raise UserError(
                f"row {example.id}: its answer takes {len(target)} tokens, while inference gives an answer "
                f"{encoder.answer_tokens} (at most {MAX_ANSWER_LABELS} labels, and {RATIONALE_TOKENS} of reasoning)"
            )
    prompts = encoder.prompt_ids([e.text for e in examples])
    full = sum(encoder.is_full(prompt) for prompt in prompts)
    if full and is_first_process():
        print(f"{full} of {len(examples)} texts fill --max_length {encoder.max_length}; what is longer loses its end")
    return Dataset.from_dict(
        {
            "input_ids": [p + t for p, t in zip(prompts, targets, strict=True)],
            "labels": [[-100] * len(p) + t for p, t in zip(prompts, targets, strict=True)],
        }
    )


# --- model and trainer ----------------------------------------------------------------------------------------------


def load_trainable_model(args: Args):
    """The model to train: whole in fp32 for `full` (autocast lowers it), in `--precision` under an adapter."""
    # the CPU's fused attention takes ten times as long backwards as plain matrix products on short texts
    attention = "eager" if pick_device() == "cpu" else None
    precision = "fp32" if args.tuning == "full" else args.precision
    return load_model(args.model_path, precision, device="cpu", attention=attention).train()


class AnswerCollator:
    """Examples -> a batch padded on the left, so that all answers end in the last column.

    Args:
        pad_id: the padding token.
    """

    def __init__(self, pad_id: int):
        self.pad_id = pad_id

    def __call__(self, examples: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
        """Returns `input_ids`, `attention_mask` and `labels`, each (B, T)."""
        import torch
        from trl.trainer.utils import pad

        ids = [torch.tensor(example["input_ids"]) for example in examples]
        labels = [torch.tensor(example["labels"]) for example in examples]
        return {
            "input_ids": pad(ids, self.pad_id, padding_side="left"),
            "attention_mask": pad([torch.ones_like(i) for i in ids], 0, padding_side="left"),
            "labels": pad(labels, -100, padding_side="left"),
        }


class PackingCollator:
    """Examples -> one packed row that holds what they share once, and `labels` (B, T), by which targets are counted."""

    def __call__(self, examples: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
        import torch
        from trl.trainer.utils import pad

        from data.packing import pack

        labels = [example["labels"] for example in examples]
        (row,) = pack([e["input_ids"] for e in examples], [[label != -100 for label in row] for row in labels])
        return {"labels": pad([torch.tensor(row) for row in labels], -100, padding_side="left"), "row": row}


class LabelTraining(LabelWatching):
    """Mixin over TRL's SFTTrainer: the loss from the answer's positions only, and label metrics at each evaluation."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Mean negative log-likelihood of the answers' tokens over the whole (accumulated, distributed) batch.

        TRL's own projects every position onto the vocabulary; here only those that predict an answer's token are,
        about one in twenty.
        """
        import torch

        log_probs = self._packed_log_probs(model, inputs) if "row" in inputs else self._padded_log_probs(model, inputs)
        if num_items_in_batch is None:
            loss = -log_probs.mean()
        else:
            loss = -log_probs.sum() / torch.as_tensor(num_items_in_batch, device=log_probs.device)
            if self.args.average_tokens_across_devices:
                loss = loss * self.accelerator.num_processes  # DDP takes the mean of the gradients, not their sum
        return (loss, None) if return_outputs else loss

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        metrics = super().evaluate(*args, **kwargs)  # the loss on the validation rows
        scores = self.label_scores()
        self.log(dict(scores))
        return metrics | scores

    def _packed_log_probs(self, model, inputs):
        """Log-probabilities (targets,) of a `PackingCollator`'s batch."""
        from data.tree_attention import target_log_probs

        return target_log_probs(model, inputs["row"], *self.packed_row_settings(model))

    def _padded_log_probs(self, model, inputs):
        """Log-probabilities (targets,) of an `AnswerCollator`'s batch."""
        inputs = dict(inputs)
        labels = inputs.pop("labels")  # (B, T)
        answer_length = int((labels != -100).sum(dim=1).max())
        targets = labels[:, -answer_length:]  # (B, A)
        is_target = targets != -100
        logits = model(**inputs, use_cache=False, logits_to_keep=answer_length + 1).logits[:, :-1]  # (B, A, V)
        log_probs = logits[is_target].float().log_softmax(dim=-1)  # each column predicts the next
        return log_probs.gather(-1, targets[is_target][:, None])[:, 0]


def share_prefixes(args: Args, model, dataset) -> bool:
    """Whether to train on packed rows, as `--prefix_sharing` says; if so, the model gets the attention for them."""
    from data.packing import packed_share
    from data.tree_attention import sharing_attention

    if not may_share_prefixes(args, model, longest=args.max_length):
        return False
    say = print if is_first_process() else lambda *_: None
    attention = sharing_attention(model, pick_device())
    tokens, scores = packed_share(dataset["input_ids"], args.batch_size, args.seed)
    if args.prefix_sharing == "auto" and tokens > WORTH_PACKING:
        say(f"prefix sharing off: it would leave {tokens:.0%} of a padded batch's tokens to compute")
        return False
    if args.prefix_sharing == "auto" and attention in ("eager", "sdpa") and scores > 1:
        say(f"prefix sharing off: a dense mask would have attention compute {scores:.1f} times as much")
        return False
    say(f"prefix sharing on: {tokens:.0%} of a padded batch's tokens are left to compute")
    model.set_attn_implementation(attention)
    return True


def build_trainer(args: Args, data: Data, model, encoder: Encoder, contract: Contract):
    """TRL's SFTTrainer with label metrics, on tokenised data."""
    from trl import SFTTrainer

    class LabelSFTTrainer(LabelTraining, SFTTrainer):
        pass

    dev = drawn(data.dev, args.eval_samples, args.seed)
    train_dataset = tokenize(data.train, encoder)
    packed = share_prefixes(args, model, train_dataset)
    if args.compile:
        compile_layers(model)
    trainer = LabelSFTTrainer(
        model=model,
        args=training_arguments(args, data.task, has_dev=bool(dev)),
        data_collator=PackingCollator() if packed else AnswerCollator(encoder.tokenizer.pad_token_id),
        train_dataset=train_dataset,
        eval_dataset=tokenize(dev, encoder) if dev else None,
        processing_class=encoder.tokenizer,
        peft_config=lora_config(args, model),
    )
    trainer.contract, trainer.dev = contract, dev
    trainer.answer = lambda model, texts, progress: Predictor.from_model(
        model, encoder, contract, args.predict_batch_size
    ).predict_batch(texts, progress)
    return trainer


def training_arguments(args: Args, task: Task, has_dev: bool):
    """Our flags as TRL's SFTConfig."""
    import torch
    from trl import SFTConfig

    if args.precision == "fp16" and not torch.cuda.is_available():
        raise UserError("--precision fp16: needs a GPU; use bf16 or fp32")
    strategy = "steps" if args.eval_steps or args.save_steps else "epoch"
    best = args.metric_for_best or DEFAULT_BEST[task.kind]
    return SFTConfig(
        output_dir=args.output_dir,
        num_train_epochs=args.num_epochs,
        max_steps=args.max_steps or -1,
        per_device_train_batch_size=args.batch_size,
        per_device_eval_batch_size=args.batch_size,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        learning_rate=args.learning_rate,
        lr_scheduler_type=args.lr_scheduler_type,
        warmup_steps=args.warmup_ratio,  # below 1 it is a share of all steps
        weight_decay=args.weight_decay,
        use_cpu=pick_device() == "cpu",
        bf16=args.precision == "bf16",
        fp16=args.precision == "fp16",
        gradient_checkpointing=args.gradient_checkpointing,
        seed=args.seed,
        eval_strategy=strategy if has_dev else "no",
        eval_steps=args.eval_steps or args.save_steps,
        save_strategy=strategy,
        save_steps=args.save_steps or args.eval_steps or 500,
        save_total_limit=args.save_total_limit,
        load_best_model_at_end=has_dev,
        metric_for_best_model=best if has_dev else None,
        greater_is_better=best != "loss" if has_dev else None,
        logging_steps=args.logging_steps,
        report_to=["tensorboard"],
        dataloader_pin_memory=torch.cuda.is_available(),
        max_length=None,  # the Encoder has cut the texts, never an answer
        dataset_kwargs={"skip_prepare_dataset": True},
        router_aux_loss_coef=0.0,  # experts' balance is a loss of whole batches, not of a packed row's answers
    )


# --- a run ----------------------------------------------------------------------------------------------------------


def fine_tune(args: Args, data: Data, checkpoint: str | None) -> bool:
    """Build everything and train. Returns whether this process is the one that goes on to report."""
    if "LOCAL_RANK" not in os.environ:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # TRL refuses one process that sees several GPUs
    encoder = Encoder(data.task, load_tokenizer(args.model_path), args.cot, args.max_length)
    model = load_trainable_model(args)
    check_positions(model, args.max_length, args.model_path)
    contract = Contract(
        data.task, cot=args.cot, max_length=args.max_length, base_model=args.model_path,
        base_revision=getattr(model.config, "_commit_hash", None), seed=args.seed,
    )  # fmt: skip
    trainer = build_trainer(args, data, model, encoder, contract)
    if trainer.is_world_process_zero():
        write_run_facts(args, data)
    train(trainer, checkpoint)
    return trainer.is_world_process_zero()


def main(args: Args) -> None:
    check_model_path(args.model_path)
    if base_model_path(args.model_path) is not None:
        raise UserError(f"--model_path {args.model_path}: an adapter; fine-tune its base model or a merged one")
    task = resolve_task(args.task, args.label_path)
    data = load_data(args, task, kind_known=args.task is not None, rationales=args.cot)
    checkpoint = find_checkpoint(args, MAY_CHANGE)
    check_same_task(checkpoint, data.task)
    if is_finished(args):
        if not is_first_process():
            return
        print(f"{args.output_dir}: trained to its end already")
    elif not fine_tune(args, data, checkpoint):
        return
    if data.test:
        gc.collect()  # the trainer and its model hold each other; two models may not fit
        score_run(args.output_dir, data.test, args.predict_batch_size, args.precision, args.seed)
    print(f"written to {args.output_dir}")


if __name__ == "__main__":
    # Edit here, or pass the same names as flags: a flag wins.
    settings = dict(
        # model_path="models/Qwen2.5-7B-Instruct",
        # train_data_path="data/goemotions/group/train.tsv",
        # label_path="data/goemotions/group/labels.txt",
        # test_data_path="data/goemotions/group/test.tsv",
    )
    run(main, Args, settings)

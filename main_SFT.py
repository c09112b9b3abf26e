"""Supervised fine-tuning: a model learns to read the labels of a text.

Three ways to say them (`--objective`): the model writes them (`generate`), a head on the model tells them apart
(`classify`, also for encoders such as BERT), or they are compared as answers (`score`). TRL's SFTTrainer does the
training of the first and last, Transformers' Trainer that of heads. What is watched, and what the best checkpoint is
chosen by, are label metrics of the validation rows, never token accuracy. What the texts of a batch share, first of
all the instruction with its list of labels, is computed once a batch instead of once a text
(data/engine/packing.py): the same loss and gradients in a fraction of the time.

    # LoRA on the GoEmotions groups (labels.txt alone says which task it is)
    python main_SFT.py --model_path models/Qwen2.5-7B-Instruct --train_data_path data/goemotions/group/train.tsv \\
        --dev_data_path data/goemotions/group/dev.tsv --label_path data/goemotions/group/labels.txt \\
        --test_data_path data/goemotions/group/test.tsv --output_dir outputs/group

    # a classifier head, a comparison of the labels, a 4-bit base, every weight, or the head alone
    python main_SFT.py --task sst2 --objective classify --head mlp ...
    python main_SFT.py --task chnsenticorp --objective score ...
    python main_SFT.py --task r8 --tuning qlora ...      # or full, head

    # an encoder: its text alone is read, and a head is all it can learn
    python main_SFT.py --task emotion --model_path models/minilm-l6 --tuning full --objective classify ...

    # summaries of counselling cases of up to 8,192 tokens: an adapter on a base in 4 bits (data/README.md)
    python main_SFT.py --task emotion-summary --model_path models/Qwen2-7B-Instruct \\
        --train_data_path data/psyqa/train/Emotion_Summary.jsonl ...

    # the best of 20 runs over learning rate, rank and epochs; goes on where it was stopped
    python main_SFT.py --task emotion --search 20 ...

    # eight GPUs (without a launcher, the first one is used)
    accelerate launch --num_processes 8 main_SFT.py ...

A killed run goes on from its newest whole checkpoint when the same command is given again.
"""

import gc
import os
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from data.arguments import UserError, flag, is_first_process, run
from data.conformal import check_rows
from data.contract import DEFAULT_MAX_LENGTH, Contract, Precision
from data.encoding import Encoder, Objective
from data.engine.evaluation import calibrate_once, score_run
from data.engine.fingerprints import fingerprint
from data.engine.memory import use_huge_pages
from data.engine.models import (
    base_model_path,
    check_model_path,
    compile_layers,
    is_encoder,
    load_model,
    load_tokenizer,
    pick_device,
)
from data.learning.checkpoints import (
    WholeCheckpoints,
    as_begun,
    check_same_base,
    check_same_task,
    check_trials,
    find_checkpoint,
    is_finished,
    one_run_in,
)
from data.learning.flags import check_needed, check_training_flags, run_steps
from data.learning.memory_plan import check_plan_flags, plan
from data.learning.search import search
from data.learning.trainers import (
    Data,
    check_positions,
    load_data,
    lora_config,
    run_device,
    say_what_is_over,
    share_prefixes,
    subsample,
    train,
    unpad,
    with_precision,
    writable,
    write_run_facts,
)
from data.published import recommended_settings, recommended_tuning
from data.report.model_card import write_model_card, write_run_report
from data.sampling import Sampling
from data.summaries.encoding import longest_answer
from data.tasks import Task, resolve_task, with_none, with_prompt

if TYPE_CHECKING:
    from peft import PeftModel
    from torch.utils.data import Sampler
    from transformers import PreTrainedModel, Trainer, TrainingArguments

    from data.learning.objectives import LossSettings

LONG = 512  # tokens, from which on fused attention is faster than plain products on a CPU, and spans than both
LONGEST_DENSE = 4096  # tokens of a packed row for which --prefix_sharing auto would have a mask of all their pairs
WORTH_PACKING = 0.9  # --prefix_sharing auto packs if a batch then has at most this share of the padded tokens

# What a flag that is not given is, in layers: what every encoder needs, what data/published.py recommends for the data
# set of the task, what goes with the tuning, and what is general. The first that has the flag gives it.
GENERAL = {
    "prompt": "task", "head": "linear", "lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "num_epochs": 3.0,
    "batch_size": 8, "gradient_accumulation_steps": 1, "warmup_ratio": 0.05, "warmup_steps": 0, "weight_decay": 0.01,
    "save_total_limit": 2, "max_length": DEFAULT_MAX_LENGTH, "gradient_checkpointing": False,
}  # fmt: skip
BY_TUNING = {
    "full": {"learning_rate": 2e-5},
    "lora": {"learning_rate": 2e-4},
    "qlora": {"learning_rate": 2e-4},
    "head": {"learning_rate": 1e-3, "objective": "classify"},
}
OF_ENCODERS = {"objective": "classify", "prompt": "text_only"}

# Flags that may differ when a run is continued: they change where, how often and how fast it works, or how long.
MAY_CHANGE = (
    "output_dir", "test_data_path", "resume_from_checkpoint", "logging_steps", "save_total_limit", "num_epochs",
    "max_steps", "predict_batch_size", "prefix_sharing", "compile", "calibration", "coverage", "search",
)  # fmt: skip


@dataclass
class Args:
    # what
    model_path: str | None = flag(None, "hub id or directory of the model to fine-tune")
    task: str | None = flag(
        None, "built-in task, or single_label / multi_label for your own labels; emotion-summary asks in the language "
        "of the training file, emotion-summary-en and -zh in theirs",
    )  # fmt: skip
    label_path: str | None = flag(None, "labels.txt: one label a line, line number = id; names the task by itself")
    train_data_path: str | None = flag(None, "training file: TSV, CSV, JSON, JSON Lines, Parquet or text;label")
    dev_data_path: str | None = flag(None, "validation file (default: --val_ratio of the training rows)")
    test_data_path: str | None = flag(None, "labelled file the finished model is scored on")
    output_dir: str = flag("outputs/sft", "where the run goes")
    val_ratio: float = flag(0.15, "share of the training rows kept for validation when there is no --dev_data_path")
    skip_bad_rows: bool = flag(False, "list bad rows in rejected.jsonl instead of stopping at the first")
    prompt: Literal["task", "instruction_first", "text_only"] | None = flag(
        None, "wording: the task's own; instruction and labels before the text, which prefix sharing likes; or the "
        "text alone, for a head (default: by task; text_only for encoders, else task)",
    )  # fmt: skip
    allow_none: bool | None = flag(
        None, "texts may have no label: an empty list or cell, a row of zeros; the answer is then none (multi_label; "
        "generate, classify; default: not)",
    )  # fmt: skip
    cot: bool = flag(False, "train answers with reasoning, from the data's rationale column")
    max_length: int | None = flag(
        None, "tokens of prompt and answer together; longer texts lose their end, cases turns from their middle "
        "(default: by task, else 512)",
    )  # fmt: skip
    max_new_tokens: int | None = flag(
        None, "emotion-summary: room for a summary, in training and later (default: what the longest one here takes)"
    )
    # how
    objective: Objective | None = flag(
        None, "generate = the model writes the labels; classify = a head tells them apart; score = they are compared "
        "as answers (default: by task, else generate)",
    )  # fmt: skip
    head: Literal["linear", "mlp"] | None = flag(
        None, "head of classify: one linear layer, or hidden -> 512 -> 256 -> labels (default: by task, else linear)"
    )
    score_loss: Literal["lm", "contrastive"] = flag(
        "lm", "what score learns: lm = to write the label; contrastive = to prefer it to the other labels"
    )
    tuning: Literal["full", "lora", "qlora", "head"] | None = flag(
        None, "all weights; a low-rank adapter; an adapter on a base in 4 bits; the head of classify alone (default: "
        "by task, else lora)",
    )  # fmt: skip
    lora_r: int | None = flag(None, "rank of the adapter (default: by task, else 16)")
    lora_alpha: int | None = flag(None, "scale of the adapter, alpha / r multiplies it (default: by task, else 32)")
    lora_dropout: float | None = flag(
        None, "dropout before the adapter; slow on a CPU: a third of a step (default: by task, else 0)"
    )
    lora_target_modules: list[str] = flag(["all-linear"], "layers that get an adapter; all-linear = all but the output")
    freeze_embeddings: bool = flag(
        False, "full: leave the vectors of the tokens as they are (those of positions learn); a large vocabulary then "
        "takes far less memory. An output layer that shares them is frozen with them",
    )  # fmt: skip
    class_weights: Literal["none", "balanced"] = flag("none", "balanced = rare labels count as much as frequent ones")
    loss: Literal["ce", "focal"] = flag("ce", "cross-entropy, or focal: what the model knows already counts little")
    focal_gamma: float = flag(2.0, "how little: with probability p of the right answer, (1 - p) ** gamma")
    label_smoothing: float = flag(0.0, "share of the target spread over all labels (classify, contrastive score)")
    num_epochs: float | None = flag(None, "passes over the training rows (default: by task, else 3)")
    max_steps: int | None = flag(None, "stop after so many steps, whatever --num_epochs says")
    batch_size: int | None = flag(None, "training texts a step on each device (default: by task, else 8)")
    gradient_accumulation_steps: int | None = flag(
        None, "batches whose gradients are summed for a step (default: by task, else 1)"
    )
    optimizer: Literal["adamw", "adafactor"] = flag(
        "adamw", "adafactor keeps next to nothing for each weight, where AdamW keeps eight bytes; slower on a CPU"
    )
    learning_rate: float | None = flag(
        None, "peak learning rate (default: by task, else 2e-4 for lora and qlora, 2e-5 for full, 1e-3 for head)"
    )
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = flag(
        "linear", "course of the learning rate after the warm-up"
    )
    warmup_ratio: float | None = flag(None, "share of the steps in which the learning rate rises (default: 0.05)")
    warmup_steps: int | None = flag(None, "steps in which it rises, instead of a share; 0 = the share")
    weight_decay: float | None = flag(None, "weight decay of the optimizer (default: by task, else 0.01)")
    precision: Precision = flag(
        "auto", "number format of the computation; auto = bf16 or fp32, whichever is faster by measure; on a GPU "
        "bf16, or fp16 where it has no bf16",
    )  # fmt: skip
    gradient_checkpointing: bool | None = flag(
        None, "recompute activations in the backward pass: less memory, slower (default: by task, else not)"
    )
    prefix_sharing: Literal["auto", "on", "off"] = flag(
        "auto", "compute what the texts of a batch share only once, and no padding; auto = where the model allows it "
        "and it pays",
    )  # fmt: skip
    compile: bool = flag(False, "compile the model's layers: a minute at the start, then faster steps; for long runs")
    seed: int = flag(42, "seed of weights, order and split")
    # watching and keeping
    metric_for_best: str | None = flag(
        None, "chooses the best checkpoint (default: f1_macro, or accuracy if one label; loss for summaries)"
    )
    eval_steps: int | None = flag(None, "score the validation rows every N steps (default: by task, else each epoch)")
    eval_samples: int = flag(500, "validation rows scored while training, drawn once; 0 = all")
    save_steps: int | None = flag(
        None, "checkpoint every N steps (default: with each scoring); the best is always kept"
    )
    save_total_limit: int | None = flag(None, "checkpoints kept, the best among them (default: by task, else 2)")
    calibration: bool = flag(
        True, "after training: fit temperature and thresholds on all validation rows; where labels are written, choose "
        "there what decides, the answer or thresholds of its labels' probabilities (not with --cot, nor for summaries)",
    )  # fmt: skip
    coverage: float | None = flag(
        None, "promise sets of labels that hold this share of the right ones, such as 0.9 (inference.py --coverage); "
        "calibrated on all validation rows",
    )  # fmt: skip
    logging_steps: int = flag(10, "report the loss every N steps")
    predict_batch_size: int = flag(32, "texts a batch in prediction")
    resume_from_checkpoint: str = flag("auto", "auto = go on from the newest whole checkpoint; none; or a checkpoint")
    search: int | None = flag(
        None, "train N runs that differ in learning rate, rank and epochs, and keep the best (needs optuna)"
    )
    plan: bool = flag(
        False, "print how much memory the run needs on each GPU, or in each process, and end; of the model, config.json"
        " and tokenizer are enough",
    )  # fmt: skip
    plan_gpus: int | None = flag(None, "plan: for so many GPUs, which need not be here (default: for this machine)")
    plan_parallel: Literal["ddp", "fsdp", "zero2", "zero3"] | None = flag(
        None, "plan: how the model is spread over them, see scripts/launch.sh (default: as started, else ddp)"
    )

    def __post_init__(self):
        check_training_flags(self)
        check_plan_flags(self)
        if self.loss != "focal":
            check_needed(self, "focal_gamma", needs="--loss focal")
        if self.tuning != "full":
            check_needed(self, "freeze_embeddings", needs="--tuning full, the only one under which they learn")
        if self.task is None and self.label_path is None:
            raise UserError("--task or --label_path is needed: which labels to learn")
        if self.coverage is not None and not self.calibration:
            raise UserError(f"--coverage {self.coverage}: is calibrated, so it needs --calibration on")
        if self.coverage is not None and self.cot:
            raise UserError(f"--coverage {self.coverage}: not of answers with reasoning (--cot)")
        if self.objective is not None:
            check_objective(self)


def check_objective(args: Args) -> None:
    """Raise a `UserError` naming the first flag that does not go with `--objective`."""
    objective = args.objective
    if objective != "classify":
        for name in ("head", "prompt", "tuning"):
            value = getattr(args, name)
            if value is not None and (name == "head" or value in ("text_only", "head")):
                raise UserError(f"--{name} {value}: needs --objective classify; {objective} has no head")
    if args.score_loss != "lm" and objective != "score":
        raise UserError(f"--score_loss {args.score_loss}: needs --objective score, not {objective}")
    if args.cot and objective != "generate":
        raise UserError(f"--cot: needs --objective generate; {objective} writes no reasoning")
    if args.label_smoothing and (objective == "generate" or (objective == "score" and args.score_loss == "lm")):
        raise UserError("--label_smoothing: needs --objective classify, or score with --score_loss contrastive")


def check_task(args: Args, task: Task) -> None:
    """Raise a `UserError` naming the first flag that does not go with the task."""
    if args.metric_for_best not in (None, "loss", *task.metrics):
        raise UserError(f"--metric_for_best {args.metric_for_best}: must be loss or one of {', '.join(task.metrics)}")
    if args.objective not in (None, *task.objectives):
        raise UserError(f"--objective {args.objective}: task {task.name} is written (generate)")
    if args.tuning == "head" and "classify" not in task.objectives:
        raise UserError(f"--tuning head: task {task.name} is written (generate), and has no head")
    if task.sampling is None:
        check_needed(args, "max_new_tokens", needs="a task whose answer is free text (emotion-summary)")
    else:
        check_needed(args, "cot", "allow_none", "class_weights", "head", "coverage", needs="a task of labels")


def with_defaults(args: Args, task: Task) -> Args:
    """`args` with what no flag gave, from the tables above and the one of data sets.

    Raises:
        UserError: flags that contradict each other or the model.
    """
    check_warmup_flags(args)
    args = replace(args, tuning=args.tuning or recommended_tuning(task.name))
    encoder = is_encoder(args.model_path)
    if encoder and "classify" not in task.objectives:
        raise UserError(f"--task {task.name}: {args.model_path} is an encoder, which writes nothing")
    layers = (
        OF_ENCODERS if encoder else {},
        recommended_settings(task.name, args.tuning, encoder),
        BY_TUNING[args.tuning],
        GENERAL,
    )
    objective = args.objective or next((layer["objective"] for layer in layers if "objective" in layer), "generate")
    steps_are_given = args.eval_steps is not None or args.save_steps is not None
    filled: dict[str, Any] = {"objective": objective}
    for layer in layers:
        for name, value in layer.items():
            if name == "head" and objective != "classify":
                continue
            if name == "prompt" and layer.get("objective", objective) != objective:
                continue  # worded for another objective
            if name in ("eval_steps", "save_steps") and steps_are_given:
                continue  # a save interval is a multiple of the other: both, or neither
            if name == "warmup_steps" and value and args.warmup_ratio is not None:
                continue  # a share was asked for
            if getattr(args, name) is None:
                filled.setdefault(name, value)
    args = replace(args, **filled)
    if encoder and args.objective != "classify":
        raise UserError(f"--objective {args.objective}: {args.model_path} is an encoder, which has to use classify")
    return args


def check_warmup_flags(args: Args) -> None:
    """Raise a `UserError` where flags, as they were given, ask for two warm-ups, or for one that there is not."""
    if args.warmup_steps and args.warmup_ratio is not None:
        raise UserError(f"--warmup_steps {args.warmup_steps} and --warmup_ratio {args.warmup_ratio}: give one of them")
    if args.lr_scheduler_type == "constant":
        check_needed(
            args, "warmup_ratio", "warmup_steps", needs="another --lr_scheduler_type, such as constant_with_warmup"
        )


def warm_up(args: Args, task: Task, rows: int) -> float:
    """Steps in which the learning rate rises or, below 1, their share of all.

    Raises:
        UserError: as many steps were asked for as the run over `rows` training rows has, or more.
    """
    steps = run_steps(args, rows)
    if steps == 1:
        return 0  # a rate that rises begins with 0
    if args.warmup_steps < steps:
        return args.warmup_steps or args.warmup_ratio
    recommended = recommended_settings(task.name, args.tuning, is_encoder(args.model_path))
    if args.warmup_steps != recommended.get("warmup_steps"):
        raise UserError(f"--warmup_steps {args.warmup_steps}: must be fewer than the run's {steps} steps")
    if is_first_process():
        print(
            f"the {args.warmup_steps} steps of warm-up that {task.name} takes by default are not fewer than the run's "
            f"{steps}: it has --warmup_ratio {args.warmup_ratio}"
        )
    return args.warmup_ratio


# --- model and trainer ----------------------------------------------------------------------------------------------


def load_trainable_model(args: Args, contract: Contract) -> "PreTrainedModel":
    """The model to train: whole in fp32 for `full` (autocast lowers it), in `--precision` under an adapter."""
    from data.engine.classifier import head_names

    # the CPU's fused attention takes ten times as long backwards as plain matrix products on short texts; on long ones
    # these take three times as long as it (1,024 tokens) and keep the scores of all pairs
    attention = "eager" if run_device(args) == "cpu" and args.max_length <= LONG else None
    # an encoder's head is computed in the format of its weights, and a head has to learn in fp32
    precision = "fp32" if args.tuning == "full" or is_encoder(args.model_path) else args.precision
    load_in_4bit = args.tuning == "qlora"
    # 4-bit weights are made where they stay; the trainer moves others
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if load_in_4bit and pick_device() == "cuda" else "cpu"
    model = load_model(
        args.model_path, precision, device, attention, contract, load_in_4bit, new_head=True, without_weights=args.plan
    ).train()
    if args.freeze_embeddings:
        model.get_input_embeddings().requires_grad_(False)
    if args.tuning == "head":
        model.requires_grad_(False)
        for name in head_names(model):
            model.get_submodule(name).requires_grad_(True)
    return model


def share_batches(args: Args, model, dataset, order: "Sampler | None" = None) -> bool:
    """Whether to train on packed rows, as `--prefix_sharing` says; if so, the model is set up for them.

    Args:
        args: the flags.
        model: the model, no adapter on it yet.
        dataset: the training rows.
        order: in which they would be drawn; None = at random.

    Raises:
        UserError: `--prefix_sharing on` with a decoder that cannot.
    """
    from data.engine.packing import packed_share
    from data.engine.span_attention import SPAN_ATTENTION

    if args.score_loss == "contrastive":  # all labels of a text share it
        return share_prefixes(args, model, args.max_length)
    rows = dataset["input_ids"]
    saving = packed_share(rows, args.batch_size, args.seed, list(order) if order else None)
    longest = max(saving.longest, *map(len, rows))

    def not_worth(attention: str) -> str | None:
        if attention == SPAN_ATTENTION and args.max_length > LONG:
            return None  # faster than what there is for long rows, whatever they share
        if saving.tokens > WORTH_PACKING:
            return f"it would leave {saving.tokens:.0%} of a padded batch's tokens to compute"
        if attention in ("eager", "sdpa"):
            if saving.scores > 1:
                return f"a dense mask would have attention compute {saving.scores:.1f} times as much"
            if longest > LONGEST_DENSE:
                return f"a dense mask of rows of {longest} tokens would take too much memory"
        return None

    encoder = is_encoder(args.model_path)
    shares = unpad(args, model, not_worth) if encoder else share_prefixes(args, model, args.max_length, not_worth)
    if shares and is_first_process():
        what = "no padding" if encoder else "prefix sharing on"
        print(f"{what}: {saving.tokens:.0%} of a padded batch's tokens are left to compute")
    return shares


def answers_together(args: Args, data: Data, contract: Contract) -> "Sampler | None":
    """An order in which the answers to one case share it; None where answers are labels, and texts are short."""
    from data.engine.padding import KeptTogether

    if contract.sampling is None or args.prefix_sharing == "off":
        return None
    return KeptTogether(args.batch_size, [example.beginning for example in data.train], args.seed)


def like_lengths(args: Args, dataset) -> "Sampler | None":
    """An order for an encoder's batches that have to be padded; None = at random."""
    from data.engine.padding import LikeLengths

    if args.prefix_sharing == "off" or not is_encoder(args.model_path):
        return None
    rows_a_step = args.batch_size * args.gradient_accumulation_steps
    return LikeLengths(rows_a_step, list(map(len, dataset["input_ids"])), args.seed)


def build_trainer(args: Args, data: Data, model, encoder: Encoder, contract: Contract) -> "Trainer":
    """TRL's SFTTrainer, or Transformers' own for a head, with our loss and label metrics, on tokenised data."""
    from transformers import Trainer
    from trl import SFTTrainer

    from data.engine.classifier import init_bias_from_priors
    from data.engine.scoring import batch_form
    from data.learning import objectives
    from data.learning.faults import StopAtFaults

    classify, compare = args.objective == "classify", args.score_loss == "contrastive"
    mixin = objectives.LabelTraining
    if classify or compare:
        mixin = objectives.ClassifierTraining if classify else objectives.ContrastiveTraining

    class LabelTrainer(StopAtFaults, WholeCheckpoints, mixin, Trainer if classify else SFTTrainer):
        pass

    settings = loss_settings(args, data, contract)
    if classify and contract.activation == "sigmoid" and not args.plan:
        priors = objectives.label_frequencies(data.train, data.task.labels)
        init_bias_from_priors(model, priors, settings.label_weights)
    make_rows = objectives.text_rows if classify or compare else objectives.answer_rows
    dev = subsample(data.dev, args.eval_samples, args.seed)
    written = args.objective == "generate"
    learnt_like = (writable(encoder.task, dev) or writable(encoder.task, data.dev)) if written else dev
    train_dataset = make_rows(data.train, encoder, settings.label_weights)
    pad_id = encoder.tokenizer.pad_token_id
    together = answers_together(args, data, contract)
    packed = share_batches(args, model, train_dataset, together)
    if classify or compare:
        collator = objectives.TextCollator(batch_form(model), pad_id, encoder.candidate_ids() if compare else None)
    else:
        collator = objectives.PackingCollator() if packed else objectives.AnswerCollator(pad_id)
    if args.compile:
        compile_layers(model)
    adapter = lora_config(args, model)
    trainer = LabelTrainer(
        model=with_adapter(args, model, adapter) if classify else model,
        args=training_arguments(args, data.task, warm_up(args, data.task, len(train_dataset)), has_dev=bool(dev)),
        data_collator=collator,
        train_dataset=train_dataset,
        eval_dataset=make_rows(learnt_like, encoder) if dev else None,
        processing_class=encoder.tokenizer,
        contract=contract,
        encoder=encoder,
        dev=dev,
        predict_batch_size=args.predict_batch_size,
        loss_settings=settings,
        order=together if packed else like_lengths(args, train_dataset),
        **({} if classify else {"peft_config": adapter}),
    )
    if args.precision != "bf16":  # TRL has adapters over 4 bits learn in bf16, which fp16's loss scaling does not know
        for weight in trainer.model.parameters():
            weight.data = weight.data.float() if weight.requires_grad else weight.data
    return trainer


def loss_settings(args: Args, data: Data, contract: Contract) -> "LossSettings":
    """Our flags as `LossSettings`."""
    from data.learning.objectives import LossSettings, balanced_weights

    weights = None
    if args.class_weights == "balanced":
        weights = balanced_weights(
            data.train, data.task.labels, yes_or_no=args.objective == "classify" and contract.activation == "sigmoid"
        )
    return LossSettings(weights, args.focal_gamma if args.loss == "focal" else 0.0, args.label_smoothing)


def with_adapter(args: Args, model, adapter) -> "PreTrainedModel | PeftModel":
    """`model` with a new adapter on it, as TRL does for the models it trains."""
    if adapter is None:
        return model
    from peft import get_peft_model, prepare_model_for_kbit_training

    if args.tuning == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=args.gradient_checkpointing)
    elif args.gradient_checkpointing:
        model.enable_input_require_grads()
    return get_peft_model(model, adapter)


def training_arguments(args: Args, task: Task, warmup: float, has_dev: bool) -> "TrainingArguments":
    """Our flags as TRL's SFTConfig, or for a head as the TrainingArguments it extends; `warmup` as of `warm_up`."""
    import torch
    from transformers import TrainingArguments
    from trl import SFTConfig

    strategy = "steps" if args.eval_steps or args.save_steps else "epoch"
    best = args.metric_for_best or task.default_metric
    settings = dict(
        output_dir=args.output_dir,
        num_train_epochs=args.num_epochs,
        max_steps=args.max_steps or -1,
        per_device_train_batch_size=args.batch_size,
        per_device_eval_batch_size=args.batch_size,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        learning_rate=args.learning_rate,
        lr_scheduler_type=args.lr_scheduler_type,
        warmup_steps=warmup,
        optim="adafactor" if args.optimizer == "adafactor" else "adamw_torch_fused",
        weight_decay=args.weight_decay,
        use_cpu=args.plan or pick_device() == "cpu",
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
        logging_nan_inf_filter=False,  # it would show a loss that is not finite as 0
        report_to=["tensorboard"],
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,  # the collators know them
        label_names=["labels"],
    )
    if args.tuning == "qlora" and args.optimizer == "adamw" and torch.cuda.is_available() and not args.plan:
        settings["optim"] = "paged_adamw_32bit"  # its states move to the host when a long batch needs their memory
    if args.objective == "classify":
        return TrainingArguments(**settings)
    return SFTConfig(
        **settings,
        max_length=None,  # the Encoder has cut the texts, never an answer
        dataset_kwargs={"skip_prepare_dataset": True},
        router_aux_loss_coef=0.0,  # experts' balance is a loss of whole batches, not of a packed row's answers
    )


# --- a run ----------------------------------------------------------------------------------------------------------


def sampling_for(args: Args, data: Data, tokenizer) -> Sampling | None:
    """How inference is to draw what this run learns to write: with room for the longest answer that is learnt from."""
    sampling = data.task.sampling
    if sampling is None:
        return None
    longest = longest_answer(data.task, tokenizer, [*data.train, *data.dev])
    return replace(sampling, max_new_tokens=args.max_new_tokens or longest)


def prepare(args: Args, data: Data, checkpoint: str | None = None) -> "Trainer":
    """Build everything up to the trainer; with `--plan` on a model without weights."""
    from transformers import set_seed

    set_seed(args.seed)  # a new head is drawn before the trainer is there
    tokenizer = load_tokenizer(args.model_path)
    begun = Contract.load(checkpoint) if checkpoint else None
    task = begun.task if begun else data.task  # earlier versions had other limits of an answer's labels
    contract = Contract(
        task, cot=args.cot, objective=args.objective, head=args.head, max_length=args.max_length,
        sampling=sampling_for(args, data, tokenizer),
        base_model=args.model_path, precision=args.precision, data_hashes=data.data_hashes, seed=args.seed,
        prompt=begun.prompt if begun else None,
    )  # fmt: skip
    encoder = contract.encoder(tokenizer)
    contract = contract.frozen(encoder)
    model = load_trainable_model(args, contract)
    check_positions(model, args.max_length, args.model_path)
    below = fingerprint(model) if args.tuning in ("lora", "qlora") and not args.plan else None
    contract = replace(
        contract, base_revision=getattr(model.config, "_commit_hash", None), base_fingerprint=below
    )  # fmt: skip
    check_same_base(checkpoint, contract)
    return build_trainer(args, data, model, encoder, contract)


def fine_tune(args: Args, data: Data, checkpoint: str | None) -> bool:
    """Build everything and train. Returns whether this process is the one that goes on to report."""
    trainer = prepare(args, data, checkpoint)
    if trainer.is_world_process_zero():
        write_run_facts(args, data)
    train(trainer, checkpoint)
    return trainer.is_world_process_zero()


def train_and_score(args: Args, data: Data) -> bool:
    """A whole run, or what is left of it. Returns whether this process is the one that reports."""
    args = as_begun(args)
    checkpoint = find_checkpoint(args, MAY_CHANGE, data.hashes)
    check_same_task(args.output_dir if is_finished(args) else checkpoint, data.task, data.data_hashes)
    if is_finished(args):
        if not is_first_process():
            return False
        print(f"{args.output_dir}: trained to its end already")
    else:
        args = with_precision(args)
        if not fine_tune(args, data, checkpoint):
            return False
    if args.calibration:
        calibrate_once(args.output_dir, data.dev, args.predict_batch_size, args.precision, args.coverage)
    write_run_report(args.output_dir)
    if data.test:
        gc.collect()  # the trainer and its model hold each other; two models may not fit
        score_run(args.output_dir, data.test, args.predict_batch_size, args.precision, args.seed)
        write_model_card(args.output_dir)  # once more, with the scores
    return True


def search_and_score(args: Args, data: Data) -> bool:
    """The runs of a search, and the best of them scored. Returns whether this process is the one that reports."""
    args = as_begun(args)
    check_trials(args, data.hashes)

    def train_one(trial: Args) -> None:
        with one_run_in(trial.output_dir):
            train_and_score(trial, replace(data, test=[]))

    search(args, data.task.default_metric, train_one)
    return train_and_score(args, data)  # trained already: calibrated and scored


def main(args: Args) -> None:
    check_model_path(args.model_path)
    if base_model_path(args.model_path) is not None:
        raise UserError(f"--model_path {args.model_path}: an adapter; fine-tune its base model or a merged one")
    task = resolve_task(args.task, args.label_path)
    check_task(args, task)
    args = with_defaults(args, task)
    if args.max_length > LONG:
        use_huge_pages()
    task = with_none(task, args.allow_none, args.objective)
    data = load_data(args, task, kind_known=args.task is not None, rationales=args.cot)
    if args.objective == "generate":
        say_what_is_over(data)
    data = replace(data, task=with_prompt(data.task, args.prompt))
    if args.coverage is not None:
        check_rows(args.coverage, len(data.dev))
    if args.plan:
        return plan(args, partial(prepare, data=data))
    if args.search is not None:
        if not data.dev:
            raise UserError("--search: there are no validation rows to choose by")
        if args.max_steps is None:
            warm_up(replace(args, num_epochs=1.0), data.task, len(data.train))  # the shortest run of the search
    with one_run_in(args.output_dir):
        reports = search_and_score(args, data) if args.search is not None else train_and_score(args, data)
    if reports:
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

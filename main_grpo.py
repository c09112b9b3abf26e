"""Reinforcement: a model that writes labels learns from what its answers earn.

Two ways (`--expectation`). With `sampled`, the model writes several answers to each text and learns from the better
ones: group relative policy optimization (GRPO), by TRL's GRPOTrainer. With `exact`, nothing is drawn: the answers of a
label task can be listed, one packed tree has the probability of each, and so the expected reward and its gradient are
exact. The start is an untuned model, a merged one, or a LoRA run of main_SFT.py, whose adapter then learns on; exact
wants one that writes valid answers already. What is watched, and what the best checkpoint is chosen by, are label
metrics of greedy answers on the validation rows.

The answers to a text share its prompt, and all prompts share the instruction. Both are computed once: when answers are
drawn, by branching the cache of keys and values; when they are scored, by packing them into one prefix tree
(data/engine/packing.py).

    # go on from an SFT run (its task.json names the task)
    python main_grpo.py --model_path outputs/sft --train_data_path data/goemotions/original/train.tsv \\
        --dev_data_path data/goemotions/original/dev.tsv --output_dir outputs/grpo

    # the same with all answers weighed, for the metric that is measured
    python main_grpo.py --model_path outputs/sft --expectation exact --accuracy_reward f1_macro \\
        --train_data_path data/goemotions/original/train.tsv --output_dir outputs/exact ...

    # from an untuned model, with reasoning before the answer
    python main_grpo.py --model_path models/Qwen2.5-7B-Instruct --label_path data/goemotions/group/labels.txt \\
        --train_data_path data/goemotions/group/train.tsv --cot --max_completion_length 300 ...

    # eight GPUs (without a launcher, the first one is used)
    accelerate launch --num_processes 8 main_grpo.py ...

The reward R of an answer y is the sum of three, each with a weight: for its labels (`--accuracy_reward`: the Jaccard
index of predicted and gold labels, exact match, or what they add to F1), for its form, and a penalty for its length.

Exact (data/learning/exact.py, outcomes.py). Y(x) are the valid answers to text x, p the policy's probabilities over the
whole vocabulary, q those of the start. Of B texts:

    J          mean over x of   sum over y in Y(x) of p(y|x) R(y)      an answer that is none of Y(x) has R = 0
    KL         mean over x of   sum over y of p log(p / q) + p(other) log(p(other) / q(other))
    H          mean over x of   -sum over y of p log p
    loss       -J + beta KL - entropy_weight H; with --scale_rewards mean, the default, each text's J is divided by the
               mean under p of the Jaccard index of y and gold, + 1e-4, as in MaxRL: where that is the reward, log J is
               what is maximised. An F1 reward may be far below 0 where that mean is next to nothing, so there it
               counts as 0.2 at least

Of more than 64 answers, those that matter are found first, best first and without gradients. Of the others, which have
a probability of up to `--pruned_mass`, it is known how they begin: they earn what the labels in that beginning do, with
a wrong one behind them where one more has to come. Gold is always in. F1 is no sum over answers. With an F1 reward, R
is linear in the expected counts of true positives, predictions and gold labels: what a label in this answer adds to F1,
n times its derivative, with the counts of this step and, fading, of about `--f1_window` texts before
(data/learning/f1_reward.py has it, and its bias). With `--cot`, `--num_generations` rationales are drawn, and the
answers behind each are weighed: see data/learning/reasoned.py.

Sampled (`--loss_type dapo`, `--scale_rewards group`, `--importance_sampling_level token`, the defaults), of B answers
with up to C tokens, G to a text; m (B, C) is 1 where an answer has a token, n the number of tokens in the whole step:

    A (B,)     advantage        (r - mean of r over its group) / (standard deviation over its group + 1e-4)
    w (B, C)   ratio            exp(logp - old_logp), the policy's and that of the policy that wrote the answers
    KL (B, C)                   exp(ref_logp - logp) - (ref_logp - logp) - 1, from the start; not computed for --beta 0
    loss       sum over m of    [-min(w A, clip(w, 1 - epsilon, 1 + epsilon_high) A) + beta KL] / n

What of it is TRL's, and what is not:

    TRL's method                             ours (data/learning/group_training.py)
    _tokenize_prompts                        our token ids, the same in every stage
    _generate_single_turn                    answers by branching the cache of keys and values; vLLM's are TRL's own
    _generate_and_score_completions          TRL's; with --dynamic_sampling other texts take the place of flat groups
    _prepare_inputs                          TRL's, but the answers to a text stay together in a batch
    _get_train_sampler                       TRL's, but a resumed epoch has its own order of texts
    _save_rng_state, _load_rng_state         the answers that are still to be learnt from are part of a checkpoint
    _get_per_token_logps_and_entropies       logp and entropy (B, C) from one prefix tree; TRL's own where none is taken
    compute_loss                             TRL's
    evaluate                                 label metrics of greedy answers instead of a loss

GRPO: Shao et al., "DeepSeekMath", 2024; dynamic sampling, token-mean loss and the higher upper clip: Yu et al., "DAPO",
2025. As in DAPO there is by default no reference model (`--beta 0`): labels are checked, not guessed at by a reward
model, so little can be exploited. The expected reward as an objective: minimum risk training (Shen et al., 2016), there
over a sample of answers; divided by its mean: Tajwar et al., "Maximum Likelihood Reinforcement Learning", 2026. A
killed run goes on from its newest whole checkpoint when the same command is given again.
"""

import gc
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from data.answers import MOST_LISTED
from data.arguments import UserError, flag, is_first_process, one_line, process_count, run
from data.conformal import check_rows
from data.contract import Contract, Precision, contract_for
from data.encoding import RATIONALE_TOKENS, Encoder
from data.engine.evaluation import calibrate_once, score_run
from data.engine.fingerprints import fingerprint
from data.engine.models import base_model_path, check_model_path, load_tokenizer, pick_device
from data.files import TASK_FILE
from data.learning.checkpoints import (
    WholeCheckpoints,
    as_begun,
    check_same_base,
    check_same_task,
    find_checkpoint,
    is_finished,
    one_run_in,
)
from data.learning.f1_reward import F1Memory
from data.learning.flags import SMALLEST_REWARD, check_needed, check_training_flags
from data.learning.memory_plan import check_plan_flags, plan
from data.learning.policy import check_adapter_flags, check_vllm, load_policy, with_new_adapter
from data.learning.rewards import Rewards, reward_writer
from data.learning.trainers import (
    Data,
    load_data,
    lora_config,
    say_what_is_over,
    subsample,
    train,
    with_precision,
    write_run_facts,
)
from data.loading import Example
from data.metrics import LABEL_METRICS
from data.report.model_card import write_model_card, write_run_report
from data.tasks import Task, check_has_labels

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments

DEFAULT_LEARNING_RATE = {  # of what is drawn, and of what is expected
    "sampled": {"full": 1e-6, "lora": 1e-4}, "exact": {"full": 1e-6, "lora": 3e-4},
}  # fmt: skip
DEFAULT_SCALE = {"sampled": "group", "exact": "mean"}
DEFAULT_BATCH_SIZE = {"sampled": 32, "exact": 8}  # answers; texts
METRIC_OF_REWARD = {"jaccard": "jaccard", "exact_match": "accuracy", "f1_macro": "f1_macro", "f1_micro": "f1_micro"}
# of answers that are drawn, or of learning from them once more
OF_SAMPLING = (
    "temperature", "top_p", "top_k", "dynamic_sampling", "dynamic_sampling_rounds", "use_vllm", "loss_type", "epsilon",
    "epsilon_high", "importance_sampling_level", "num_iterations", "steps_per_generation",
    "mask_truncated_completions",
)  # fmt: skip
# Flags that may differ when a run is continued: they change where, how often and how fast it works, or how long.
MAY_CHANGE = (
    "output_dir", "test_data_path", "resume_from_checkpoint", "logging_steps", "save_total_limit", "num_epochs",
    "max_steps", "predict_batch_size", "prefix_sharing", "compile", "vllm_server_host", "vllm_server_port",
    "vllm_gpu_memory_utilization", "calibration", "coverage",
)  # fmt: skip


@dataclass
class Args:
    # what
    model_path: str | None = flag(None, "hub id or directory of the start: a base model, a merged one, or an SFT run")
    task: str | None = flag(None, "for an untuned model: built-in task, or single_label / multi_label for your labels")
    label_path: str | None = flag(None, "labels.txt: one label a line, line number = id; names the task by itself")
    train_data_path: str | None = flag(None, "texts with gold labels: TSV, CSV, JSON, JSON Lines, Parquet, text;label")
    dev_data_path: str | None = flag(None, "validation file (default: --val_ratio of the training rows)")
    test_data_path: str | None = flag(None, "labelled file the finished model is scored on")
    output_dir: str = flag("outputs/grpo", "where the run goes")
    val_ratio: float = flag(0.15, "share of the training rows kept for validation when there is no --dev_data_path")
    skip_bad_rows: bool = flag(False, "list bad rows in rejected.jsonl instead of stopping at the first")
    cot: bool | None = flag(None, "ask for reasoning before the answer (default: as the start was trained)")
    allow_none: bool | None = flag(
        None, "for an untuned model: texts may have no label: an empty list or cell, a row of zeros; the answer is "
        "then none (multi_label; default: as the start)",
    )  # fmt: skip
    max_length: int | None = flag(None, "tokens of prompt and answer together (default: as the start, else 512)")
    # how
    expectation: Literal["sampled", "exact"] = flag(
        "sampled", "sampled = answers are drawn (GRPO); exact = the expected reward of all answers, nothing is drawn"
    )
    # rewards
    accuracy_reward: Literal["jaccard", "exact_match", "f1_macro", "f1_micro"] = flag(
        "jaccard", "what predicted and gold labels earn: the Jaccard index of the two, 1 if they are the same, or what "
        "they add to the F1 of many texts",
    )  # fmt: skip
    accuracy_weight: float = flag(1.0, "weight of the reward for the labels")
    format_weight: float = flag(0.5, "weight of well-formed answers (0 or 1)")
    length_weight: float = flag(0.5, "weight of the penalty for length (-1 to 0)")
    length_budget: int | None = flag(
        None, f"tokens an answer may take without penalty (default: the longest gold answer; with --cot, and "
        f"{RATIONALE_TOKENS} for reasoning)"
    )  # fmt: skip
    f1_window: int = flag(1000, "texts after which a share of 1/e is left of what F1 rewards count")
    # drawing answers
    num_generations: int = flag(8, "answers drawn for each text, the group (G); exact, with --cot: rationales")
    max_completion_length: int | None = flag(
        None, "tokens at which an answer is cut off (default: what inference gives an answer)"
    )
    temperature: float = flag(1.0, "divides the logits when answers are drawn")
    top_p: float = flag(1.0, "draw from the smallest set of tokens with this probability")
    top_k: int = flag(0, "draw from the most probable K tokens; 0 = from all")
    dynamic_sampling: bool = flag(False, "draw other texts for those whose answers all have the same reward (DAPO)")
    dynamic_sampling_rounds: int = flag(3, "how often at most, in a step")
    use_vllm: Literal["off", "colocate", "server"] = flag(
        "off", "draw answers with vLLM: on the training GPUs, or on a server started by scripts/serve_vllm.sh"
    )
    vllm_server_host: str = flag("127.0.0.1", "where the vLLM server is")
    vllm_server_port: int = flag(8000, "its port")
    vllm_gpu_memory_utilization: float = flag(0.3, "share of a GPU's memory for a colocated vLLM")
    # learning
    beta: float = flag(0.0, "weight of the KL divergence from the start; above 0 costs a second forward pass")
    entropy_weight: float = flag(0.0, "exact: weight of the entropy of the valid answers")
    pruned_mass: float = flag(
        0.1,
        "exact: probability of answers of which only the beginning is weighed, of tasks with over "
        f"{MOST_LISTED} of them",
    )
    max_tree_tokens: int = flag(512, "exact: tokens of answers to a text that are computed at most, of such tasks")
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo"] = flag("dapo", "how tokens' losses are averaged")
    epsilon: float = flag(0.2, "clip range of the probability ratio")
    epsilon_high: float | None = flag(None, "its upper end (default: as --epsilon; DAPO: 0.28)")
    scale_rewards: Literal["group", "batch", "mean", "none"] | None = flag(
        None, "what a text's rewards are divided by: their standard deviation (group, the default of sampled), that of "
        "the batch, the mean of the Jaccard index (the default of exact), or nothing",
    )  # fmt: skip
    importance_sampling_level: Literal["token", "sequence"] = flag("token", "ratio a token, or a sequence (GSPO)")
    num_iterations: int = flag(1, "updates on the same answers")
    steps_per_generation: int | None = flag(None, "batches drawn at once (default: --gradient_accumulation_steps)")
    mask_truncated_completions: bool = flag(False, "learn nothing from answers that were cut off")
    tuning: Literal["full", "lora"] = flag("lora", "train all weights, or a low-rank adapter")
    lora_r: int | None = flag(None, "rank of a new adapter (default: 16); the start's own adapter keeps its rank")
    lora_alpha: int | None = flag(None, "scale of a new adapter (default: 2 * rank)")
    lora_dropout: float = flag(0.0, "dropout before a new adapter")
    lora_target_modules: list[str] = flag(["all-linear"], "layers that get an adapter; all-linear = all but the output")
    freeze_embeddings: bool = flag(
        False, "full: leave the vectors of the tokens as they are (those of positions learn); a large vocabulary then "
        "takes far less memory. An output layer that shares them is frozen with them",
    )  # fmt: skip
    num_epochs: float = flag(1.0, "passes over the training texts")
    max_steps: int | None = flag(None, "stop after so many steps, whatever --num_epochs says")
    batch_size: int | None = flag(
        None, "answers a step on each device, texts x --num_generations (default: 32); exact: texts (default: 8)"
    )
    gradient_accumulation_steps: int = flag(1, "batches whose gradients are summed for a step")
    optimizer: Literal["adamw", "adafactor"] = flag(
        "adamw", "adafactor keeps next to nothing for each weight, where AdamW keeps eight bytes; slower on a CPU"
    )
    learning_rate: float | None = flag(None, "peak learning rate (default: 1e-4 for lora, exact 1.5e-4; 1e-6 for full)")
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = flag(
        "linear", "course of the learning rate after the warm-up"
    )
    warmup_ratio: float = flag(0.05, "share of the steps in which the learning rate rises")
    weight_decay: float = flag(0.0, "weight decay of the optimizer")
    max_grad_norm: float = flag(1.0, "gradients longer than this are shortened to it")
    precision: Precision = flag(
        "auto", "number format of the computation; auto = bf16 or fp32, whichever is faster by measure; on a GPU "
        "bf16, or fp16 where it has no bf16",
    )  # fmt: skip
    gradient_checkpointing: bool = flag(False, "recompute activations in the backward pass: less memory, slower")
    prefix_sharing: Literal["auto", "on", "off"] = flag(
        "auto", "compute what texts and answers share only once; auto = where the model allows it"
    )
    compile: bool = flag(False, "compile the model's layers: a minute at the start, then faster steps; for long runs")
    seed: int = flag(42, "seed of adapter, order, split and drawing")
    # watching and keeping
    metric_for_best: str | None = flag(
        None, "chooses the best checkpoint (default: what is rewarded, or accuracy if one label)"
    )
    eval_steps: int = flag(50, "score the validation rows every N steps, and before the first")
    eval_samples: int = flag(500, "validation rows scored while training, drawn once; 0 = all")
    save_steps: int | None = flag(
        None, "checkpoint every N steps (default: with each scoring); the best is always kept"
    )
    save_total_limit: int = flag(2, "checkpoints kept, the best one among them")
    calibration: bool = flag(
        True, "after training: fit temperature and thresholds on all validation rows, and choose there what decides, "
        "the answer or thresholds of its labels' probabilities (not with --cot)",
    )  # fmt: skip
    coverage: float | None = flag(
        None, "promise sets of labels that hold this share of the right ones, such as 0.9 (inference.py --coverage); "
        "calibrated on all validation rows",
    )  # fmt: skip
    logging_steps: int = flag(5, "report rewards, and keep the answers of a step, every N steps")
    predict_batch_size: int = flag(32, "texts a batch when greedy answers are scored")
    resume_from_checkpoint: str = flag("auto", "auto = go on from the newest whole checkpoint; none; or a checkpoint")
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
        if self.batch_size is None:
            self.batch_size = DEFAULT_BATCH_SIZE[self.expectation]
        if max(self.accuracy_weight, self.format_weight, self.length_weight) < SMALLEST_REWARD:
            raise UserError(
                "--accuracy_weight, --format_weight, --length_weight: all are below "
                f"{SMALLEST_REWARD}, so there is no reward"
            )
        self._check_needs()
        if self.expectation == "sampled":
            self._check_batches()
        if self.metric_for_best not in (None, *LABEL_METRICS):
            raise UserError(f"--metric_for_best {self.metric_for_best}: must be one of {', '.join(LABEL_METRICS)}")
        if self.learning_rate is None:
            self.learning_rate = DEFAULT_LEARNING_RATE[self.expectation][self.tuning]
        if self.scale_rewards is None:
            self.scale_rewards = DEFAULT_SCALE[self.expectation]
        if self.coverage is not None and not self.calibration:
            raise UserError(f"--coverage {self.coverage}: is calibrated, so it needs --calibration on")

    def _check_needs(self) -> None:
        if self.expectation == "exact":
            check_needed(self, *OF_SAMPLING, needs="--expectation sampled")
            if self.scale_rewards == "batch":
                raise UserError("--scale_rewards batch: needs --expectation sampled; exact has mean, group and none")
        else:
            if self.scale_rewards == "mean":
                raise UserError("--scale_rewards mean: needs --expectation exact; sampled has group, batch and none")
            check_needed(self, "entropy_weight", "pruned_mass", "max_tree_tokens", needs="--expectation exact")
        if not self.accuracy_reward.startswith("f1"):
            check_needed(self, "f1_window", needs="--accuracy_reward f1_macro or f1_micro")
        if self.use_vllm != "server":
            check_needed(self, "vllm_server_host", "vllm_server_port", needs="--use_vllm server")
        if self.use_vllm != "colocate":
            check_needed(self, "vllm_gpu_memory_utilization", needs="--use_vllm colocate")
        if not self.dynamic_sampling:
            check_needed(self, "dynamic_sampling_rounds", needs="--dynamic_sampling")
        if self.tuning != "full":
            check_needed(self, "freeze_embeddings", needs="--tuning full, the only one under which they learn")
        if self.lr_scheduler_type == "constant":
            check_needed(self, "warmup_ratio", needs="another --lr_scheduler_type, such as constant_with_warmup")

    def _check_batches(self) -> None:
        answers, shown = self.drawn_at_once()
        if answers % self.num_generations:
            raise UserError(
                f"{shown}: must be a multiple of --num_generations {self.num_generations}, the answers drawn for each "
                "text"
            )
        if self.dynamic_sampling and answers // process_count() % self.num_generations:
            raise UserError(
                f"--dynamic_sampling: --batch_size {self.batch_size} must hold whole groups of --num_generations "
                f"{self.num_generations} on each device"
            )

    def drawn_at_once(self) -> tuple[int, str]:
        """How many answers all processes draw before they learn, and how that comes about, for messages."""
        processes, steps = process_count(), self.steps_per_generation or self.gradient_accumulation_steps
        factors = [f" x {count} {what}" for count, what in ((steps, "batches"), (processes, "processes")) if count > 1]
        return self.batch_size * steps * processes, f"--batch_size {self.batch_size}{''.join(factors)}"


def check_texts(args: Args, texts: int) -> None:
    """Raise a `UserError` when answers are drawn for more texts at once than there are: none would be drawn."""
    if args.expectation == "exact":
        return
    answers, shown = args.drawn_at_once()
    if texts < answers // args.num_generations:
        raise UserError(
            f"{shown}: with --num_generations {args.num_generations}, these are answers to "
            f"{answers // args.num_generations} texts at once, and {args.train_data_path} has {texts} to learn from"
        )


# --- lengths of answers ---------------------------------------------------------------------------------------------


def answer_lengths(args: Args, encoder: Encoder, train: Sequence[Example]) -> tuple[int, int]:
    """Budget and limit of an answer, in tokens.

    Raises:
        UserError: the budget is over the limit, or the limit cuts off gold answers.
    """
    limit = args.max_completion_length or encoder.answer_tokens
    rationale = "" if encoder.cot else None
    row_of = {e.labels: e for e in train}
    lengths = {labels: len(encoder.target_ids(labels, rationale)) for labels in row_of}
    labels, shortest = max(lengths.items(), key=lambda item: item[1])
    longest = shortest + RATIONALE_TOKENS if encoder.cot else shortest
    given = f"--max_completion_length {limit}" if args.max_completion_length else f"the limit of {limit} tokens"
    if args.length_budget is not None and args.length_budget > limit:
        raise UserError(f"--length_budget {args.length_budget}: is over {given}")
    if shortest > limit:
        raise UserError(
            f"{given}: the longest gold answer takes {shortest} tokens{' without its reasoning' * encoder.cot}: "
            f"{one_line(encoder.task.answer(labels), 60)} of row {one_line(row_of[labels].id, 40)}"
        )
    return args.length_budget or min(longest, limit), limit


# --- trainer --------------------------------------------------------------------------------------------------------


def build_trainer(args: Args, data: Data, model, encoder: Encoder, contract: Contract) -> "Trainer":
    """The trainer of `--expectation`, with our rewards and label metrics."""
    from data.engine.generation import stop_token_ids

    budget, limit = answer_lengths(args, encoder, data.train)
    if is_first_process():
        cut = f", and is cut off at {limit}" if args.expectation == "sampled" else ""
        print(f"an answer may take {budget} tokens without penalty{cut}")
    weights = {args.accuracy_reward: args.accuracy_weight, "format": args.format_weight, "length": args.length_weight}
    memory = None
    if args.accuracy_reward.startswith("f1"):
        memory = F1Memory(args.accuracy_reward.removeprefix("f1_"), shares(data), args.f1_window)
    rewards = Rewards(encoder, stop_token_ids(model, encoder.end_id), budget, limit, weights, memory)
    build = sampling_trainer if args.expectation == "sampled" else exact_trainer
    dev = subsample(data.dev, args.eval_samples, args.seed)
    return build(
        args, data, model, rewards,
        contract=contract, encoder=encoder, dev=dev, predict_batch_size=args.predict_batch_size,
    )  # fmt: skip


def shares(data: Data) -> list[float]:
    """Share of the training rows that have each label, (K,)."""
    from data.learning.objectives import label_frequencies

    return label_frequencies(data.train, data.task.labels)


def sampling_trainer(args: Args, data: Data, model, rewards: Rewards, **watched) -> "Trainer":
    """TRL's GRPOTrainer, which learns from answers that are drawn; `watched`: see `LabelEvaluationMixin`."""
    from trl import GRPOTrainer

    from data.learning.faults import StopAtFaults
    from data.learning.group_training import GroupTraining, weights_through_a_folder

    class LabelGRPOTrainer(StopAtFaults, WholeCheckpoints, GroupTraining, GRPOTrainer):
        pass

    without_nccl = args.use_vllm == "server" and pick_device() != "cuda"
    with weights_through_a_folder() if without_nccl else nullcontext():
        return LabelGRPOTrainer(
            model=model,
            reward_funcs=rewards.functions(),
            args=sampling_arguments(args, data.task, rewards, has_dev=bool(watched["dev"])),
            train_dataset=prompts(data.train),
            eval_dataset=prompts(watched["dev"]) if watched["dev"] else None,
            processing_class=rewards.encoder.tokenizer,
            peft_config=None if hasattr(model, "peft_config") else lora_config(args, model),
            callbacks=[reward_writer()],
            totals=rewards.totals,
            memory=rewards.memory,
            stop_ids=rewards.stop_ids,
            dynamic_sampling_rounds=args.dynamic_sampling_rounds if args.dynamic_sampling else 0,
            **watched,
        )


def exact_trainer(args: Args, data: Data, model, rewards: Rewards, **watched) -> "Trainer":
    """Transformers' Trainer, whose objective is the expected reward; `watched`: see `LabelEvaluationMixin`."""
    from transformers import Trainer, TrainingArguments

    from data.learning.exact import ExactCollator, ExactTraining, exact_rows
    from data.learning.faults import StopAtFaults
    from data.learning.reasoned import ReasonedTraining

    encoder = rewards.encoder

    class ExactTrainer(StopAtFaults, WholeCheckpoints, ReasonedTraining if encoder.cot else ExactTraining, Trainer):
        pass

    drawn = {"num_generations": args.num_generations, "stop_ids": rewards.stop_ids} if encoder.cot else {}
    return ExactTrainer(
        model=with_new_adapter(args, model),
        args=TrainingArguments(
            **common_arguments(args, data.task, has_dev=bool(watched["dev"])), label_names=["shift_labels"]
        ),
        data_collator=ExactCollator(),
        train_dataset=exact_rows(data.train, encoder),
        eval_dataset=exact_rows(watched["dev"], encoder) if watched["dev"] else None,
        processing_class=encoder.tokenizer,
        callbacks=[reward_writer()],
        rewards=rewards,
        beta=args.beta,
        entropy_weight=args.entropy_weight,
        scale=args.scale_rewards,
        pruned_mass=args.pruned_mass,
        max_tree_tokens=args.max_tree_tokens,
        **drawn,
        **watched,
    )


def prompts(examples: Sequence[Example]) -> "Dataset":
    """Examples -> a data set of texts (`prompt`; the trainer makes token ids of them) and `gold` labels."""
    from datasets import Dataset

    return Dataset.from_list([{"prompt": e.text, "gold": list(e.labels), "id": e.id} for e in examples])


def common_arguments(args: Args, task: Task, has_dev: bool) -> dict[str, Any]:
    """Our flags as those of Transformers' TrainingArguments, which TRL's GRPOConfig extends."""
    import torch

    rewarded = METRIC_OF_REWARD[args.accuracy_reward] if task.kind == "multi_label" else "accuracy"
    return dict(
        output_dir=args.output_dir,
        num_train_epochs=args.num_epochs,
        max_steps=args.max_steps or -1,
        per_device_train_batch_size=args.batch_size,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        learning_rate=args.learning_rate,
        lr_scheduler_type=args.lr_scheduler_type,
        # below 1 it is a share of all steps; a rate that rises begins with 0, which would be all of a single step
        warmup_steps=args.warmup_ratio if args.max_steps != 1 else 0,
        optim="adafactor" if args.optimizer == "adafactor" else "adamw_torch_fused",
        weight_decay=args.weight_decay,
        max_grad_norm=args.max_grad_norm,
        use_cpu=args.plan or pick_device() == "cpu",
        bf16=args.precision == "bf16",
        fp16=args.precision == "fp16",
        gradient_checkpointing=args.gradient_checkpointing,
        seed=args.seed,
        eval_strategy="steps" if has_dev else "no",
        eval_on_start=has_dev,
        eval_steps=args.eval_steps,
        save_strategy="steps",
        save_steps=args.save_steps or args.eval_steps,
        save_total_limit=args.save_total_limit,
        load_best_model_at_end=has_dev,
        metric_for_best_model=(args.metric_for_best or rewarded) if has_dev else None,
        greater_is_better=True if has_dev else None,
        logging_steps=args.logging_steps,
        logging_nan_inf_filter=False,  # it would show a loss that is not finite as 0
        report_to=["tensorboard"],
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
    )


def sampling_arguments(args: Args, task: Task, rewards: Rewards, has_dev: bool) -> "TrainingArguments":
    """Our flags as TRL's GRPOConfig."""
    from trl import GRPOConfig

    return GRPOConfig(
        **common_arguments(args, task, has_dev),
        steps_per_generation=args.steps_per_generation,
        num_generations=args.num_generations,
        max_completion_length=rewards.limit,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        use_vllm=args.use_vllm != "off",
        vllm_mode="colocate" if args.use_vllm == "colocate" else "server",
        vllm_server_host=args.vllm_server_host,
        vllm_server_port=args.vllm_server_port,
        vllm_gpu_memory_utilization=args.vllm_gpu_memory_utilization,
        generation_kwargs={"stop_token_ids": list(rewards.stop_ids)} if args.use_vllm != "off" else None,
        reward_weights=[weight for weight in rewards.weights.values() if weight],
        beta=args.beta,
        loss_type=args.loss_type,
        epsilon=args.epsilon,
        epsilon_high=args.epsilon_high,
        scale_rewards=args.scale_rewards,
        importance_sampling_level=args.importance_sampling_level,
        num_iterations=args.num_iterations,
        mask_truncated_completions=args.mask_truncated_completions,
        per_device_eval_batch_size=args.num_generations,  # TRL asks for whole groups, though ours draws none
        log_completions=True,
        num_completions_to_print=0,  # it draws a large table; `_shown_answers` are two lines
        router_aux_loss_coef=0.0,  # experts' balance is a loss of whole batches, not of a packed row's answers
    )


# --- a run ----------------------------------------------------------------------------------------------------------


def prepare(args: Args, data: Data, started: Contract, checkpoint: str | None = None) -> "Trainer":
    """Build everything up to the trainer; with `--plan` on a model without weights."""
    begun = Contract.load(checkpoint) if checkpoint else replace(started, task=data.task)
    contract = Contract(
        begun.task, cot=started.cot, max_length=started.max_length, seed=args.seed,
        base_model=base_model_path(args.model_path) or args.model_path, precision=args.precision,
        prompt=begun.prompt, data_hashes=data.data_hashes,
    )  # fmt: skip
    encoder = contract.encoder(load_tokenizer(args.model_path))
    contract = contract.frozen(encoder)
    _, limit = answer_lengths(args, encoder, data.train)
    model = load_policy(args, longest=started.max_length - encoder.answer_tokens + limit)
    contract = replace(
        contract, base_revision=getattr(model.config, "_commit_hash", None),
        base_fingerprint=fingerprint(model) if args.tuning != "full" and not args.plan else None,
    )  # fmt: skip
    check_same_base(checkpoint, contract)
    return build_trainer(args, data, model, encoder, contract)


def reinforce(args: Args, data: Data, started: Contract, checkpoint: str | None) -> bool:
    """Build everything and train. Returns whether this process is the one that goes on to report."""
    trainer = prepare(args, data, started, checkpoint)
    if args.expectation == "exact" and checkpoint is None:
        trainer.check_tree()
    if trainer.is_world_process_zero():
        write_run_facts(args, data)
    train(trainer, checkpoint)
    return trainer.is_world_process_zero()


def train_and_score(args: Args, data: Data, started: Contract) -> bool:
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
        if not reinforce(args, data, started, checkpoint):
            return False
    if args.calibration:
        calibrate_once(args.output_dir, data.dev, args.predict_batch_size, args.precision, args.coverage)
    write_run_report(args.output_dir)
    if data.test:
        gc.collect()  # the trainer and its model hold each other; two models may not fit
        score_run(args.output_dir, data.test, args.predict_batch_size, args.precision, args.seed)
        write_model_card(args.output_dir)  # once more, with the scores
    return True


def main(args: Args) -> None:
    check_model_path(args.model_path)
    check_vllm(args)
    if base_model_path(args.model_path) is not None:
        check_adapter_flags(args)
    started = contract_for(
        args.model_path, args.task, args.label_path, args.cot, args.max_length, allow_none=args.allow_none
    )
    check_has_labels(started.task, args.task, args.model_path, "a reward")
    if started.objective != "generate":
        raise UserError(f"--model_path {args.model_path}: trained to {started.objective}, which writes no answers")
    if args.expectation == "exact" and not started.cot:  # the start may have learnt to reason
        check_needed(args, "num_generations", needs="--expectation sampled, or --cot")
    trained_before = (Path(args.model_path) / TASK_FILE).is_file()
    kind_known = trained_before or args.task is not None
    data = load_data(args, started.task, kind_known, most_labels=started.task.most_labels if trained_before else None)
    say_what_is_over(data)
    check_texts(args, len(data.train))
    if args.coverage is not None:
        started.check_promises()
        check_rows(args.coverage, len(data.dev))
    if args.plan and args.expectation == "exact" and started.cot:
        raise UserError("--plan: not of --expectation exact with reasoning (--cot)")
    if args.plan:
        return plan(args, partial(prepare, data=data, started=started))
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":  # answers are written in inference mode, and shards are not
        raise UserError("PARALLEL=fsdp: is for main_SFT.py; reinforcement needs the whole model in each process (ddp)")
    with one_run_in(args.output_dir):
        reports = train_and_score(args, data, started)
    if reports:
        print(f"written to {args.output_dir}")


if __name__ == "__main__":
    # Edit here, or pass the same names as flags: a flag wins.
    settings = dict(
        # model_path="outputs/sft",
        # train_data_path="data/goemotions/original/train.tsv",
        # dev_data_path="data/goemotions/original/dev.tsv",
    )
    run(main, Args, settings)

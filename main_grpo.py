"""Group relative policy optimization (GRPO): a model writes several answers to each text and learns from the better.

TRL's GRPOTrainer does the learning, with three rewards: the Jaccard index of predicted and gold labels, whether the
answer is well formed, and a penalty for length. The start is an untuned model, a merged one, or a LoRA run of
main_SFT.py, whose adapter then learns on. What is watched, and what the best checkpoint is chosen by, are label
metrics of greedy answers on the validation rows.

The samples of a text share its prompt, and all prompts share the instruction. Both are computed once: when answers
are drawn, by branching the cache of keys and values; when they are scored, by packing them into one prefix tree
(data/engine/packing.py).

    # go on from an SFT run (its task.json names the task)
    python main_grpo.py --model_path outputs/sft --train_data_path data/goemotions/original/train.tsv \\
        --dev_data_path data/goemotions/original/dev.tsv --output_dir outputs/grpo

    # from an untuned model, with reasoning before the answer
    python main_grpo.py --model_path models/Qwen2.5-7B-Instruct --label_path data/goemotions/group/labels.txt \\
        --train_data_path data/goemotions/group/train.tsv --cot --max_completion_length 300 ...

    # eight GPUs (without a launcher, the first one is used)
    accelerate launch --num_processes 8 main_grpo.py ...

The loss (`--loss_type dapo`, `--scale_rewards group`, `--importance_sampling_level token`, the defaults), of B answers
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
model, so little can be exploited. A killed run goes on from its newest whole checkpoint when the same command is given
again.
"""

import gc
import importlib.util
import urllib.request
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from data.arguments import UserError, flag, is_first_process, one_line, process_count, run
from data.conformal import check_rows
from data.contract import Contract, Precision, contract_for
from data.encoding import MAX_ANSWER_LABELS, RATIONALE_TOKENS, Encoder
from data.engine.evaluation import promise_run, score_run
from data.engine.fingerprints import fingerprint
from data.engine.models import (
    adapter_stack,
    base_model_path,
    check_model_path,
    compile_layers,
    load_model,
    load_tokenizer,
    pick_device,
    with_adapters,
)
from data.files import ADAPTER_FILE, TASK_FILE, read_json
from data.learning.checkpoints import (
    WholeCheckpoints,
    as_begun,
    check_same_base,
    check_same_task,
    find_checkpoint,
    is_finished,
    one_run_in,
)
from data.learning.flags import SMALLEST_REWARD, check_needed, check_training_flags
from data.learning.rewards import Rewards, reward_writer
from data.learning.trainers import (
    Data,
    check_positions,
    load_data,
    lora_config,
    share_prefixes,
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
    from peft import PeftModel
    from transformers import PreTrainedModel
    from trl import GRPOConfig, GRPOTrainer

DEFAULT_LEARNING_RATE = {"full": 1e-6, "lora": 1e-4}
REWARDED_METRIC = {"multi_label": "jaccard", "single_label": "accuracy"}
# Flags that may differ when a run is continued: they change where, how often and how fast it works, or how long.
MAY_CHANGE = (
    "output_dir", "test_data_path", "resume_from_checkpoint", "logging_steps", "save_total_limit", "num_epochs",
    "max_steps", "predict_batch_size", "prefix_sharing", "compile", "vllm_server_host", "vllm_server_port",
    "vllm_gpu_memory_utilization", "coverage",
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
    max_length: int | None = flag(None, "tokens of prompt and answer together (default: as the start, else 512)")
    # rewards
    accuracy_weight: float = flag(1.0, "weight of the Jaccard index of predicted and gold labels (0 to 1)")
    format_weight: float = flag(0.5, "weight of well-formed answers (0 or 1)")
    length_weight: float = flag(0.5, "weight of the penalty for length (-1 to 0)")
    length_budget: int | None = flag(
        None, f"tokens an answer may take without penalty (default: the longest gold answer; with --cot, and "
        f"{RATIONALE_TOKENS} for reasoning)"
    )  # fmt: skip
    # drawing answers
    num_generations: int = flag(8, "answers drawn for each text, the group (G)")
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
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo"] = flag("dapo", "how tokens' losses are averaged")
    epsilon: float = flag(0.2, "clip range of the probability ratio")
    epsilon_high: float | None = flag(None, "its upper end (default: as --epsilon; DAPO: 0.28)")
    scale_rewards: Literal["group", "batch", "none"] = flag(
        "group", "what advantages are divided by: a group's standard deviation, the batch's, or nothing"
    )
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
    batch_size: int = flag(32, "answers a step on each device: texts x --num_generations")
    gradient_accumulation_steps: int = flag(1, "batches whose gradients are summed for a step")
    optimizer: Literal["adamw", "adafactor"] = flag(
        "adamw", "adafactor keeps next to nothing for each weight, where AdamW keeps eight bytes; slower on a CPU"
    )
    learning_rate: float | None = flag(None, "peak learning rate (default: 1e-4 for lora, 1e-6 for full)")
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
    metric_for_best: str | None = flag(None, "chooses the best checkpoint (default: jaccard, or accuracy if one label)")
    eval_steps: int = flag(50, "score the validation rows every N steps, and before the first")
    eval_samples: int = flag(500, "validation rows scored while training, drawn once; 0 = all")
    save_steps: int | None = flag(
        None, "checkpoint every N steps (default: with each scoring); the best is always kept"
    )
    save_total_limit: int = flag(2, "checkpoints kept, the best one among them")
    coverage: float | None = flag(
        None, "promise sets of labels that hold this share of the right ones, such as 0.9 (inference.py --coverage); "
        "calibrated on all validation rows",
    )  # fmt: skip
    logging_steps: int = flag(5, "report rewards, and keep the answers of a step, every N steps")
    predict_batch_size: int = flag(32, "texts a batch when greedy answers are scored")
    resume_from_checkpoint: str = flag("auto", "auto = go on from the newest whole checkpoint; none; or a checkpoint")

    def __post_init__(self):
        check_training_flags(self)
        if max(self.accuracy_weight, self.format_weight, self.length_weight) < SMALLEST_REWARD:
            raise UserError(
                "--accuracy_weight, --format_weight, --length_weight: all are below "
                f"{SMALLEST_REWARD}, so there is no reward"
            )
        self._check_needs()
        self._check_batches()
        if self.metric_for_best not in (None, *LABEL_METRICS):
            raise UserError(f"--metric_for_best {self.metric_for_best}: must be one of {', '.join(LABEL_METRICS)}")
        if self.learning_rate is None:
            self.learning_rate = DEFAULT_LEARNING_RATE[self.tuning]

    def _check_needs(self) -> None:
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
            f"{one_line(', '.join(labels), 60)} of row {one_line(row_of[labels].id, 40)}"
        )
    return args.length_budget or min(longest, limit), limit


# --- model ----------------------------------------------------------------------------------------------------------


def load_policy(args: Args, longest: int) -> "PreTrainedModel | PeftModel":
    """The model to train, set up for packed rows where it takes them.

    An adapter (a LoRA run of main_SFT.py) learns on; any other start gets a new one, unless `--tuning full`.

    Args:
        args: the stage's flags.
        longest: tokens of the longest prompt with its answer.

    Raises:
        UserError: it does not load, is too short, or its adapter was trained on another model.
    """
    base, *adapters = adapter_stack(args.model_path)
    # as in SFT: plain matrix products go backwards faster on short texts than the CPU's fused attention
    attention = "eager" if pick_device() == "cpu" else None
    precision = "fp32" if args.tuning == "full" else args.precision
    model = load_model(base, precision, device="cpu", attention=attention)
    if args.freeze_embeddings:
        model.get_input_embeddings().requires_grad_(False)
    check_positions(model, longest, args.model_path)
    share_prefixes(args, model, longest)
    if args.compile:
        compile_layers(model)
    if adapters:
        model = with_adapters(model, base, adapters, Contract.load(args.model_path), trainable=True)
    return model.train()


def check_vllm(args: Args) -> None:
    """Raise a `UserError` when `--use_vllm` asks for an engine that is not here, or a server that does not answer."""
    if args.use_vllm == "off":
        return
    if importlib.util.find_spec("vllm") is None:
        raise UserError(f"--use_vllm {args.use_vllm}: vLLM is not installed; see requirements-vllm.txt")
    if args.use_vllm == "server":
        address = f"http://{args.vllm_server_host}:{args.vllm_server_port}/health"
        try:
            urllib.request.urlopen(address, timeout=10).close()
        except OSError as error:
            raise UserError(
                f"--use_vllm server: no answer from {address} ({error}); see scripts/serve_vllm.sh"
            ) from error


def check_adapter_flags(args: Args) -> None:
    """Raise a `UserError` when a flag asks for another adapter than the one the start brings, or for none."""
    if args.tuning == "full":
        raise UserError(f"--tuning full: {args.model_path} is an adapter, which learns on; merge it first")
    settings = read_json(Path(args.model_path) / ADAPTER_FILE)
    for name, key in (("lora_r", "r"), ("lora_alpha", "lora_alpha")):
        if getattr(args, name) not in (None, settings.get(key)):
            raise UserError(f"--{name} {getattr(args, name)}: the adapter in {args.model_path} has {settings.get(key)}")


# --- trainer --------------------------------------------------------------------------------------------------------


def build_trainer(args: Args, data: Data, model, encoder: Encoder, contract: Contract) -> "GRPOTrainer":
    """TRL's GRPOTrainer with our rewards and label metrics."""
    from trl import GRPOTrainer

    from data.engine.generation import stop_token_ids
    from data.learning.faults import StopAtFaults
    from data.learning.group_training import GroupTraining, weights_through_a_folder

    class LabelGRPOTrainer(StopAtFaults, WholeCheckpoints, GroupTraining, GRPOTrainer):
        pass

    budget, limit = answer_lengths(args, encoder, data.train)
    if is_first_process():
        print(f"an answer may take {budget} tokens without penalty, and is cut off at {limit}")
    weights = {"jaccard": args.accuracy_weight, "format": args.format_weight, "length": args.length_weight}
    stop_ids = stop_token_ids(model, encoder.end_id)
    rewards = Rewards(encoder, stop_ids, budget, limit, weights)
    dev = subsample(data.dev, args.eval_samples, args.seed)
    without_nccl = args.use_vllm == "server" and pick_device() != "cuda"
    with weights_through_a_folder() if without_nccl else nullcontext():
        trainer = LabelGRPOTrainer(
            model=model,
            reward_funcs=rewards.functions(),
            args=training_arguments(args, data.task, rewards, has_dev=bool(dev)),
            train_dataset=prompts(data.train),
            eval_dataset=prompts(dev) if dev else None,
            processing_class=encoder.tokenizer,
            peft_config=None if hasattr(model, "peft_config") else lora_config(args, model),
            callbacks=[reward_writer()],
            contract=contract,
            encoder=encoder,
            dev=dev,
            predict_batch_size=args.predict_batch_size,
            totals=rewards.totals,
            stop_ids=stop_ids,
            dynamic_sampling_rounds=args.dynamic_sampling_rounds if args.dynamic_sampling else 0,
        )
    return trainer


def prompts(examples: Sequence[Example]) -> "Dataset":
    """Examples -> a data set of texts (`prompt`; the trainer makes token ids of them) and `gold` labels."""
    from datasets import Dataset

    return Dataset.from_list([{"prompt": e.text, "gold": list(e.labels), "id": e.id} for e in examples])


def training_arguments(args: Args, task: Task, rewards: Rewards, has_dev: bool) -> "GRPOConfig":
    """Our flags as TRL's GRPOConfig."""
    import torch
    from trl import GRPOConfig

    return GRPOConfig(
        output_dir=args.output_dir,
        num_train_epochs=args.num_epochs,
        max_steps=args.max_steps or -1,
        per_device_train_batch_size=args.batch_size,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
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
        learning_rate=args.learning_rate,
        lr_scheduler_type=args.lr_scheduler_type,
        # below 1 it is a share of all steps; a rate that rises begins with 0, which would be all of a single step
        warmup_steps=args.warmup_ratio if args.max_steps != 1 else 0,
        optim="adafactor" if args.optimizer == "adafactor" else "adamw_torch_fused",
        weight_decay=args.weight_decay,
        max_grad_norm=args.max_grad_norm,
        use_cpu=pick_device() == "cpu",
        bf16=args.precision == "bf16",
        fp16=args.precision == "fp16",
        gradient_checkpointing=args.gradient_checkpointing,
        seed=args.seed,
        per_device_eval_batch_size=args.num_generations,  # TRL asks for whole groups, though ours draws none
        eval_strategy="steps" if has_dev else "no",
        eval_on_start=has_dev,
        eval_steps=args.eval_steps,
        save_strategy="steps",
        save_steps=args.save_steps or args.eval_steps,
        save_total_limit=args.save_total_limit,
        load_best_model_at_end=has_dev,
        metric_for_best_model=(args.metric_for_best or REWARDED_METRIC[task.kind]) if has_dev else None,
        greater_is_better=True if has_dev else None,
        logging_steps=args.logging_steps,
        logging_nan_inf_filter=False,  # it would show a loss that is not finite as 0
        log_completions=True,
        num_completions_to_print=0,  # it draws a large table; `_shown_answers` are two lines
        report_to=["tensorboard"],
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        router_aux_loss_coef=0.0,  # experts' balance is a loss of whole batches, not of a packed row's answers
    )


# --- a run ----------------------------------------------------------------------------------------------------------


def reinforce(args: Args, data: Data, started: Contract, checkpoint: str | None) -> bool:
    """Build everything and train. Returns whether this process is the one that goes on to report."""
    contract = Contract(
        data.task, cot=started.cot, max_length=started.max_length, seed=args.seed,
        base_model=base_model_path(args.model_path) or args.model_path, precision=args.precision,
        prompt=(Contract.load(checkpoint) if checkpoint else started).prompt, data_hashes=data.data_hashes,
    )  # fmt: skip
    encoder = contract.encoder(load_tokenizer(args.model_path))
    contract = contract.frozen(encoder)
    _, limit = answer_lengths(args, encoder, data.train)
    model = load_policy(args, longest=started.max_length - encoder.answer_tokens + limit)
    contract = replace(
        contract, base_revision=getattr(model.config, "_commit_hash", None),
        base_fingerprint=fingerprint(model) if args.tuning != "full" else None,
    )  # fmt: skip
    check_same_base(checkpoint, contract)
    trainer = build_trainer(args, data, model, encoder, contract)
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
    promise_run(args.output_dir, data.dev, args.coverage, args.predict_batch_size, args.precision)
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
    started = contract_for(args.model_path, args.task, args.label_path, args.cot, args.max_length)
    check_has_labels(started.task, args.task, args.model_path, "a reward")
    if started.objective != "generate":
        raise UserError(f"--model_path {args.model_path}: trained to {started.objective}, which writes no answers")
    trained_before = (Path(args.model_path) / TASK_FILE).is_file()
    kind_known = trained_before or args.task is not None
    data = load_data(args, started.task, kind_known, most_labels=MAX_ANSWER_LABELS)
    check_texts(args, len(data.train))
    if args.coverage is not None:
        started.check_promises()
        check_rows(args.coverage, len(data.dev))
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

"""`--plan`: how much memory a run will need on each device, before it is started.

The stage builds its own trainer, on a model that has shapes and no contents (`data/engine/weightless.py`). Of the
batches of the training file the longest is computed once, forward and backward, by the trainer's own loss, and the
optimizer makes its step; meanwhile the bytes of all tensors are counted (`data/engine/live_memory.py`). So the plan
follows the code, and has no formula of what a layer keeps. Each part of a step has its own peak:

    update      the optimizer's step
    drawing     GRPO: the last token of answers that all become as long as they may
    learning    forward and backward of the longest batch, with the optimizer's states of the step before

Of a task with many answers, exact reinforcement is planned with as many as `--max_tree_tokens` allows: an upper bound.

What is reckoned instead, where a model is spread over N GPUs (`spread_over`), is what lies where.

On a CPU, two things that are no tensors are added (`in_a_process`): what the process has before there is a model, and
the gaps that the C library's heap leaves, by experience. What is in no plan: a GPU's reserve, and its own context
(about 0.5 GiB). A plan for GPUs takes their attention as fused: it keeps queries, keys, values and a number for each
row.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import psutil

from data.arguments import UserError, is_first_process, process_count
from data.engine.models import pick_device
from data.learning.flags import OF_LAUNCHERS, check_needed
from data.learning.trainers import with_precision

if TYPE_CHECKING:
    from torch import Tensor

    from data.engine.live_memory import LiveMemory

Parallel = Literal["ddp", "fsdp", "zero2", "zero3"]
MOST_BATCHES = 1000  # of the training file that are looked through for the longest
GIB = 2**30
FROZEN, LEARNING, GRADIENTS, STATES = "weights that stay", "weights that learn", "their gradients", "optimizer states"
CAST, ACTIVATIONS, LOGITS = "weights in bf16 beside", "activations", "logits"
KEYS, INPUTS, REFERENCE = "keys and values", "token ids and masks", "where the run began"
COPIES, GATHERED = "copies to exchange", "layers that are gathered"
GAPS, LIBRARIES = "gaps in the heap, about", "Python, libraries, rows"
KINDS = (
    FROZEN, LEARNING, GRADIENTS, STATES, REFERENCE, CAST, COPIES, GATHERED, ACTIVATIONS, LOGITS, KEYS, INPUTS, GAPS,
    LIBRARIES,
)  # fmt: skip
# of all tensors: seven kinds of runs peaked at 1.17 to 1.63 times theirs (scripts/benchmark/RESULTS.md)
HEAP_GAPS = 3 / 8
LAUNCHED = ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", *OF_LAUNCHERS)


@dataclass(frozen=True)
class Machine:
    """What a run is planned for.

    Attributes:
        processes: each on its own GPU, or all on one CPU.
        parallel: how the model is spread over them.
        on_gpu: whether they are GPUs.
        memory: bytes of each of these GPUs, or of main memory; None = of GPUs that are not here.
    """

    processes: int
    parallel: Parallel
    on_gpu: bool
    memory: int | None


def check_plan_flags(args) -> None:
    """Raise a `UserError` where flags of a plan go without it, or contradict each other."""
    if not args.plan:
        check_needed(args, "plan_gpus", "plan_parallel", needs="--plan")
        return
    if args.plan_parallel not in (None, "ddp") and (args.plan_gpus or 1) < 2:
        raise UserError(f"--plan_parallel {args.plan_parallel}: spreads a model over GPUs: needs --plan_gpus 2 or more")


def plan(args, build: Callable[[Any], Any]) -> None:
    """Print what the run of these flags needs; nothing is written.

    Args:
        args: the stage's flags.
        build: flags -> the stage's trainer on a model without contents.
    """
    machine = planned_machine(args)
    if not is_first_process():
        return
    with _alone(), TemporaryDirectory() as folder:
        planned = with_precision(args) if args.plan_gpus is None else _on_gpus(args)
        trainer = build(replace(without_contents_args(planned), output_dir=folder))
        found, tokens = peaks(planned, trainer)
    spread = {phase: spread_over(machine, peak, trainer.model, planned.precision) for phase, peak in found.items()}
    if not machine.on_gpu:
        resident = psutil.Process().memory_info().rss  # weights and activations have no contents here
        spread = {phase: in_a_process(peak, resident) for phase, peak in spread.items()}
    print(shown(machine, planned, spread, tokens))


def planned_machine(args) -> Machine:
    """What `--plan_gpus` and `--plan_parallel` ask for, else what the launcher and this machine have."""
    if args.plan_gpus is not None:
        return Machine(args.plan_gpus, args.plan_parallel or "ddp", True, None)
    launched: Parallel = "ddp"
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        launched = "fsdp"
    elif os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        launched = "zero3" if os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3" else "zero2"
    on_gpu = pick_device() == "cuda"
    if on_gpu:
        import torch

        memory = torch.cuda.get_device_properties(0).total_memory
    else:
        memory = psutil.virtual_memory().total
    return Machine(process_count(), args.plan_parallel or launched, on_gpu, memory)


@contextmanager
def _alone() -> Iterator[None]:
    """Within this context, there is no launcher: a plan is made by one process, which would wait for the others."""
    kept = {name: os.environ.pop(name) for name in LAUNCHED if name in os.environ}
    try:
        yield
    finally:
        os.environ |= kept


def _on_gpus(args):
    """`args` with the number format that GPUs take, which are not here to be asked."""
    return replace(args, precision="bf16" if args.precision == "auto" else args.precision)


def without_contents_args(args):
    """`args` of a run whose memory is the same, and that needs no contents: F1 counts what is in the tensors."""
    changed: dict[str, Any] = {"precision": "bf16" if args.precision == "fp16" else args.precision, "compile": False}
    if hasattr(args, "beta"):
        changed |= {"beta": 0.0, "accuracy_reward": "jaccard", "use_vllm": "off"}
    return replace(args, **changed)


# --- counting ---------------------------------------------------------------------------------------------------------


def peaks(args, trainer) -> tuple[dict[str, Counter[str]], int]:
    """Bytes by phase and kind, and the tokens of the longest batch.

    Args:
        args: the stage's flags.
        trainer: on a weightless model.
    """
    import torch
    from peft.helpers import disable_input_dtype_casting

    from data.engine.live_memory import LiveMemory
    from data.engine.weightless import fused_attention, quantisation_state, without_contents

    model = trainer.model
    without_contents(model)
    learning = [p for p in model.parameters() if p.requires_grad]
    kinds = _Kinds(model, learning)
    memory = LiveMemory(kinds)
    memory.count_as(FROZEN, [*(p for p in model.parameters() if not p.requires_grad), *model.buffers()])
    memory.count_as(FROZEN, quantisation_state(model))
    memory.count_as(LEARNING, learning)
    trainer.current_gradient_accumulation_steps = 1
    if trainer.args.gradient_checkpointing:  # as the trainer does when it begins
        model.gradient_checkpointing_enable(dict(trainer.args.gradient_checkpointing_kwargs or {}) or None)
    batch = longest_batch(trainer)
    if hasattr(trainer, "answers"):  # of exact reinforcement; which they are, is known of a model with weights only
        trainer._found = lambda prompts, gold: [trainer.answers.most()] * len(prompts)
    casts_off = disable_input_dtype_casting(model, active=trainer.args.bf16 or trainer.args.fp16)
    found = {}
    with casts_off, fused_attention(planned=args.plan_gpus is not None or torch.cuda.is_available()):
        for weight in learning:
            weight.register_post_accumulate_grad_hook(lambda p: memory.count_as(GRADIENTS, [p.grad]))
        trainer.create_optimizer()
        for phase in ("", "update"):  # the first step makes the optimizer's states
            _with_gradients(learning, memory)
            with memory.watched() as found[phase]:
                trainer.accelerator.clip_grad_norm_(learning, trainer.args.max_grad_norm)
                trainer.optimizer.step()
            memory.count_as(STATES, _tensors_of(trainer.optimizer.state))
            model.zero_grad()
        del found[""]
        if trainer.args.gradient_accumulation_steps > 1:
            _with_gradients(learning, memory)
        if hasattr(trainer, "num_generations"):
            with kinds.drawing(), memory.watched() as found["drawing"]:
                batch = _drawn(trainer, batch)
        with memory.watched() as found["learning"]:
            trainer.training_step(model, batch, torch.tensor(1))
    for peak in found.values():
        peak[REFERENCE] = _reference(args, model, learning)
    return found, _tokens_of(batch)


class _Kinds:
    """What a new tensor is: see `LiveMemory`."""

    def __init__(self, model, learning: "Sequence[Tensor]"):
        config = model.config.get_text_config()
        self.vocabulary = getattr(config, "vocab_size", 0)
        self.heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        self.weights = {tuple(p.shape) for p in learning if p.dim() == 2}
        self._draws = False

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Within this context, tensors of the shape of keys are those that are kept."""
        self._draws = True
        try:
            yield
        finally:
            self._draws = False

    def __call__(self, tensor: "Tensor") -> str:
        from torch._subclasses.fake_tensor import FakeTensor

        if not isinstance(tensor, FakeTensor) or (tensor.dim() == 4 and tensor.shape[:2] == (1, 1)):
            return INPUTS
        if tensor.dim() > 1 and tensor.shape[-1] == self.vocabulary:
            return LOGITS
        if self._draws and tensor.dim() == 4 and tensor.shape[1] == self.heads:
            return KEYS
        if tuple(tensor.shape) in self.weights and tensor.element_size() < 4:
            return CAST
        return ACTIVATIONS


def _with_gradients(learning: "Sequence[Tensor]", memory: "LiveMemory") -> None:
    import torch

    for weight in learning:
        weight.grad = torch.zeros_like(weight)
    memory.count_as(GRADIENTS, [weight.grad for weight in learning])


def _tensors_of(state: Mapping[Any, Mapping[str, Any]]) -> "list[Tensor]":
    import torch

    return [value for each in state.values() for value in each.values() if isinstance(value, torch.Tensor)]


def _reference(args, model, learning: "Sequence[Tensor]") -> int:
    """Bytes of what `--beta` compares with: exact keeps what learns as it began, GRPO of all weights a second model."""
    if not getattr(args, "beta", 0.0):
        return 0
    kept = learning if args.expectation == "exact" else model.parameters() if args.tuning == "full" else []
    return sum(map(_bytes, kept))


# --- the longest batch ------------------------------------------------------------------------------------------------


def longest_batch(trainer) -> Any:
    """The batch with the most tokens among the first of an epoch; of GRPO, the rows that are drawn for at once."""
    return max(islice(trainer.get_train_dataloader(), MOST_BATCHES), key=lambda batch: _size(trainer, batch))


def _size(trainer, batch: Any) -> int:
    if isinstance(batch, list):  # of GRPO
        return sum(len(row["prompt"]) for row in batch)
    if "prompts" in batch:
        return sum(map(len, batch["prompts"]))
    return _tokens_of(batch)


def _tokens_of(batch: Mapping[str, Any]) -> int:
    """Tokens of a batch, padding included."""
    if "row" in batch:
        return len(batch["row"])
    if "rows" in batch:
        return sum(map(len, batch["rows"]))
    if "prompt_ids" in batch:
        return batch["prompt_ids"].numel() + batch["completion_ids"].numel()
    return batch["input_ids"].numel() if "input_ids" in batch else sum(map(len, batch["prompts"]))


def _drawn(trainer, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What GRPO learns from in one batch, of answers that are all as long as they may be, and all different.

    They are drawn by the trainer's own code, but for all tokens before the last: those are part of the prompts.
    """
    import torch

    from data.engine.padding import padded

    tokenizer, limit = trainer.encoder.tokenizer, trainer.args.max_completion_length
    prompts = trainer.encoder.prompt_ids([row["prompt"] for row in rows])
    trainer.args.max_completion_length = 1
    trainer._draw([prompt + [0] * (limit - 1) for prompt in prompts])
    trainer.args.max_completion_length = limit
    trainer._prepare_inputs = lambda inputs: inputs  # no further answers
    size = trainer.args.per_device_train_batch_size
    longest = max((prompts[i : i + size] for i in range(0, len(prompts), size)), key=lambda some: sum(map(len, some)))
    inputs = padded(longest, tokenizer.pad_token_id, "left")
    answers = torch.arange(len(longest))[:, None].expand(-1, limit).contiguous()
    return {
        "prompt_ids": inputs["input_ids"], "prompt_mask": inputs["attention_mask"],
        "completion_ids": answers, "completion_mask": torch.ones_like(answers),
        "advantages": torch.ones(len(longest)), "num_items_in_batch": torch.tensor(answers.numel()),
        "ids": [row["id"] for row in rows[: len(longest)]],
    }  # fmt: skip


# --- several devices --------------------------------------------------------------------------------------------------


def spread_over(machine: Machine, peak: Mapping[str, int], model, precision: str) -> Counter[str]:
    """Bytes on each of N devices, of those that one device would have.

    `ddp` has all on each, and a second copy of the gradients in the buckets that are exchanged. `fsdp` and `zero3` have
    an Nth of weights, gradients and states, and two whole layers at a time, that which is computed and the next one,
    with whatever stands outside of layers, in the format that is computed in; `zero2` has an Nth of gradients and
    states. DeepSpeed (`zero2`, `zero3`) has weights and gradients in that format, too, and with the optimizer's states
    the weights in fp32 (Rajbhandari et al., 2020, "ZeRO").

    Args:
        machine: the devices.
        peak: kind -> bytes on one device, whose weights that learn are in fp32.
        model: the model.
        precision: what is computed in.
    """
    n, found = machine.processes, Counter(peak)
    if n == 1:
        return found
    if machine.parallel == "ddp":
        found[COPIES] += sum(map(_bytes, (p for p in model.parameters() if p.requires_grad)))
        return found
    found[CAST] = 0  # what computes is in that format already
    if machine.parallel != "fsdp" and precision != "fp32":
        found[STATES] += found[LEARNING]
        found[LEARNING] //= 2
        found[GRADIENTS] //= 2
    if machine.parallel != "zero2":
        found[GATHERED] = _gathered(model, 4 if precision == "fp32" else 2)
    shared = [GRADIENTS, STATES] if machine.parallel == "zero2" else [FROZEN, LEARNING, GRADIENTS, STATES]
    for kind in shared:
        found[kind] = -(-found[kind] // n)
    return found


def in_a_process(peak: Mapping[str, int], resident: int) -> Counter[str]:
    """Bytes of a process on a CPU whose tensors have those of `peak`, and which has `resident` without them."""
    return Counter(peak) + Counter({GAPS: int(HEAP_GAPS * sum(peak.values())), LIBRARIES: resident})


def _bytes(tensor: "Tensor") -> int:
    return tensor.untyped_storage().nbytes()


def _gathered(model, most: int) -> int:
    """Bytes of two layers, and of what is in none, at `most` so many a weight."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    sizes = [sum(min(_bytes(p), most * p.numel()) for p in layer.parameters()) for layer in layers]
    return sum(min(_bytes(p), most * p.numel()) for p in model.parameters()) - sum(sizes) + 2 * max(sizes, default=0)


# --- in words ---------------------------------------------------------------------------------------------------------


def shown(machine: Machine, args, found: Mapping[str, Mapping[str, int]], tokens: int) -> str:
    """The plan as a table of GiB, a column for each phase, and whether it fits."""
    one, many = ("GPU", "GPUs") if machine.on_gpu else ("process", "processes")
    devices = f"{machine.processes} {many} ({machine.parallel})" if machine.processes > 1 else f"1 {one}"
    lines = [
        f"memory in GiB on {devices}: {args.tuning} in {args.precision}; the longest batch has {tokens} tokens",
        "".join([f"{'':26}", *(f"{phase:>10}" for phase in found)]),
    ]
    for kind in KINDS:
        if any(peak[kind] >= GIB / 200 for peak in found.values()):
            lines.append("".join([f"{kind:26}", *(f"{peak[kind] / GIB:10.2f}" for peak in found.values())]))
    sums = {phase: sum(peak.values()) for phase, peak in found.items()}
    lines.append("".join([f"{'together':26}", *(f"{each / GIB:10.2f}" for each in sums.values())]))
    return "\n".join([*lines, verdict(machine, max(sums.values()))])


def verdict(machine: Machine, most: int) -> str:
    """Whether `most` bytes on each device fit."""
    if machine.memory is None:
        return f"needs GPUs of more than {most / GIB:.1f} GiB each, whose own context takes about 0.5 GiB of it"
    all_here = most * (1 if machine.on_gpu else machine.processes)
    fits = "fits into" if all_here < machine.memory else "does NOT fit into"
    of = "each GPU" if machine.on_gpu else "this machine"
    return f"{all_here / GIB:.1f} GiB {fits} the {machine.memory / GIB:.1f} GiB of {of}"

"""GRPO over groups: what the answers to a text share, and what all texts share, is computed once.

`GroupTraining` is a mixin over TRL's GRPOTrainer. The methods it overrides are TRL's own seams: how prompts become
token ids, how answers are drawn, how log-probabilities are computed. main_grpo.py's docstring has the loss, and a table
of what is TRL's and what is ours.

Shapes: G answers to a text, B answers in all, P tokens of the longest prompt, C of the longest answer.
"""

import math
import os
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor

from data.engine.generation import sample_answers
from data.engine.packing import pack
from data.engine.tree_attention import computes_packed_rows, ordinary_attention, target_log_probs_and_entropies
from data.learning.f1_reward import F1Memory
from data.learning.label_evaluation import LabelEvaluationMixin


class GroupTraining(LabelEvaluationMixin):
    """Mixin over TRL's GRPOTrainer: our token ids, prefixes computed once, label metrics.

    Args:
        totals: (answers, their gold labels) -> the weighted reward of each.
        stop_ids: tokens that end an answer; by them TRL, too, tells answers that were cut off.
        dynamic_sampling_rounds: how often groups without a signal are replaced in a step; 0 = never.
        memory: what an F1 reward remembers of earlier texts, None without one.
        arguments: see `LabelEvaluationMixin`.
    """

    # prompts, answers and log-probabilities that were sampled ahead
    _ready: tuple[list[list[int]], list[list[list[int]]], Any] | None = None

    def __init__(
        self, *, totals: Callable[[Sequence[list[int]], Sequence[Sequence[str]]], list[float]],
        stop_ids: Sequence[int], dynamic_sampling_rounds: int, memory: F1Memory | None = None, **arguments: Any,
    ):  # fmt: skip
        self.totals, self.dynamic_sampling_rounds, self.memory = totals, dynamic_sampling_rounds, memory
        super().__init__(**arguments)
        self.eos_token_ids = stop_ids

    # -- drawing answers

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict]:
        """B texts -> B prompts as the Encoder spells them for every stage; no images, no fields of such."""
        return self.encoder.prompt_ids(prompts), None, {}

    def _generate_single_turn(
        self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False
    ) -> tuple[list[list[int]], list | None]:
        """B answers as token ids, one for each of B prompts, and their log-probabilities where vLLM gives them.

        Those that `_with_signal` has sampled ahead, else TRL's own with vLLM, else ours.
        """
        if self._ready is not None:
            prompts, answers, log_probs = self._ready
            assert prompts == prompt_ids, "answers were drawn for other prompts"
            self._ready = None
            return answers, log_probs
        if self.use_vllm:
            return super()._generate_single_turn(prompt_ids, images, multimodal_fields, num_generations)
        return self._draw(prompt_ids), None

    def _draw(self, prompt_ids: Sequence[list[int]]) -> list[list[int]]:
        """One answer for each prompt; the prompt of a group is computed once."""
        from trl.models import unwrap_model_for_generation

        size = self.num_generations
        if len(prompt_ids) % size or any(ids != prompt_ids[i - i % size] for i, ids in enumerate(prompt_ids)):
            size = 1  # groups that begin on another process
        with (
            unwrap_model_for_generation(
                self.model_wrapped, self.accelerator, gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as model,
            torch.no_grad(),
            self._dist.summon_full_params(self.model_wrapped, recurse=False),
            self.accelerator.autocast(),
            ordinary_attention(model),
            torch.compiler.set_stance("force_eager"),
        ):  # fmt: skip
            model.eval()  # answers are drawn from the policy itself, without dropout
            answers = sample_answers(
                model,
                prompt_ids[::size],
                size,
                self.eos_token_ids,
                self.args.max_completion_length,
                self.encoder.tokenizer.pad_token_id,
                self.args.temperature,
                self.args.top_p,
                self.args.top_k,
            )
            model.train()
        return answers

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's, on texts whose answers do not all earn the same, as far as `--dynamic_sampling` finds such.

        Also the rows' `ids`.
        """
        if self.dynamic_sampling_rounds:
            inputs = self._with_signal(inputs)
        return super()._generate_and_score_completions(inputs) | {"ids": [row["id"] for row in inputs]}

    def _with_signal(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """`inputs` with other texts for groups whose answers all earn the same; their answers are drawn already.

        All processes go through the same rounds with the same number of groups: drawing may need all of them.
        """
        size = self.num_generations
        # by the trainer's place, so that a run that was killed draws the same
        batch = self._step % self.args.gradient_accumulation_steps
        fresh = random.Random(f"{self.args.seed} {self.state.global_step} {batch} {self.args.process_index}")
        groups = [inputs[i : i + size] for i in range(0, len(inputs), size)]
        answers, log_probs = self._draw_groups(groups)
        replaced = 0
        for _ in range(self.dynamic_sampling_rounds):
            flat = [i for i, group in enumerate(groups) if self._is_flat(group, answers[i])]
            wanted = max(self.accelerator.gather(self._count(len(flat))).tolist())
            if wanted == 0:
                break
            rows = [self.train_dataset[i] for i in fresh.choices(range(len(self.train_dataset)), k=wanted)]
            new_answers, new_log_probs = self._draw_groups([[row] * size for row in rows])
            for new, place in enumerate(flat):
                groups[place], answers[place] = [rows[new]] * size, new_answers[new]
                log_probs[place] = new_log_probs[new]
            replaced += len(flat)
        self._metrics["train"]["groups_replaced"].append(self.accelerator.gather(self._count(replaced)).sum().item())
        inputs = [row for group in groups for row in group]
        prompts = self.encoder.prompt_ids([row["prompt"] for row in inputs])
        flat_log_probs = [p for group in log_probs for p in group] if self.use_vllm else None
        self._ready = (prompts, [ids for group in answers for ids in group], flat_log_probs)
        return inputs

    def _draw_groups(self, groups: Sequence[list[dict[str, Any]]]) -> tuple[list, list]:
        """Answers of each group, and their log-probabilities where the engine gives them (else None each)."""
        size = self.num_generations
        prompts = self.encoder.prompt_ids([row["prompt"] for group in groups for row in group])
        answers, log_probs = self._generate_single_turn(prompts, None, {}, size)
        log_probs = log_probs if log_probs is not None else [None] * len(answers)
        places = range(0, len(answers), size)
        return [answers[i : i + size] for i in places], [log_probs[i : i + size] for i in places]

    def _is_flat(self, group: list[dict[str, Any]], answers: list[list[int]]) -> bool:
        totals = self.totals(answers, [row["gold"] for row in group])
        return max(totals) - min(totals) < 1e-6

    def _count(self, number: int) -> Tensor:
        return torch.tensor([number], device=self.accelerator.device)

    # -- learning from them

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """TRL's, but groups stay together: it shuffles single answers, which then share fewer prefixes in a batch."""
        from trl.trainer.utils import split_tensor_dict

        if not self._is_learning_on() or self._buffered_inputs is None:
            drawn_batch = self._generate_and_score_completions(generation_batch)
            self._buffered_inputs = split_tensor_dict(drawn_batch, self.args.steps_per_generation)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _get_train_sampler(self, dataset=None):
        """TRL's, but the order of an epoch's texts follows from its number, not from the epochs drawn before it."""
        sampler = super()._get_train_sampler(dataset)
        sampler.set_epoch = lambda epoch: sampler.generator.manual_seed(self.args.seed + epoch)
        return sampler

    def _is_learning_on(self) -> bool:
        """Whether answers that were drawn are still to be learnt from (again), before others are drawn."""
        return self._step % (self.args.steps_per_generation * self.num_iterations) != 0

    def _save_rng_state(self, output_dir: str) -> None:
        """Transformers', and the answers that are still to be learnt from: a later model would draw others."""
        super()._save_rng_state(output_dir)
        if self.memory is not None:
            self.memory.save(output_dir, self.args.process_index)
        if self._is_learning_on():
            torch.save(self._buffered_inputs, self._answers_file(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Transformers', and how far the checkpoint is with the answers that were drawn; TRL begins with new ones."""
        super()._load_rng_state(checkpoint)
        if checkpoint is None:
            return
        if self.memory is not None:
            self.memory.load(checkpoint, self.args.process_index)
        batches = len(self.callback_handler.train_dataloader)
        epochs, steps = divmod(self.state.global_step, math.ceil(batches / self.args.gradient_accumulation_steps))
        self._step = epochs * batches + steps * self.args.gradient_accumulation_steps
        if not self._is_learning_on():
            return
        file = self._answers_file(checkpoint)
        if file.is_file():
            self._buffered_inputs = torch.load(file, map_location=self.accelerator.device, weights_only=True)
        else:
            print(f"{file}: is not there, so other answers are drawn than the run would have learnt from")

    def _answers_file(self, checkpoint: str) -> Path:
        return Path(checkpoint, f"answers_{self.args.process_index}.pt")

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False, **other
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Log-probabilities and entropies of the answers' tokens, (B, C) each, 0 where there is none.

        Args:
            model: the policy as the trainer wrapped it, or the reference model.
            input_ids: (B, P + C), prompts padded on the left, answers on the right.
            attention_mask: (B, P + C).
            logits_to_keep: C.
            batch_size: sequences computed at once.
            compute_entropy: whether entropies are wanted.
            other: what models that see pictures need.

        Returns:
            Log-probabilities, entropies in nats (None unless wanted), and the loss of experts' balance (None of packed
            rows), as TRL's does.
        """
        if not computes_packed_rows(self.model):
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **other
            )
        size = batch_size or len(input_ids)
        chunks = [
            self._packed_log_probs(model, ids, mask.bool(), logits_to_keep)
            for ids, mask in zip(input_ids.split(size), attention_mask.split(size), strict=True)
        ]
        log_probs, entropies = (torch.cat(parts) for parts in zip(*chunks, strict=True))
        return log_probs, entropies if compute_entropy else None, None

    def _packed_log_probs(self, model, input_ids: Tensor, mask: Tensor, answer_length: int) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies (B, C) of sequences that are packed into one row."""
        is_answer = mask.clone()
        is_answer[:, :-answer_length] = False  # (B, P + C)
        learnt = is_answer[:, -answer_length:]  # (B, C)
        if not learnt.any():  # all cut off, and those are masked: still the model has to be called, as the others do
            is_answer[0, -answer_length - 1] = True
        (row,) = pack(
            [ids[seen].tolist() for ids, seen in zip(input_ids, mask, strict=True)],
            [target[seen].tolist() for target, seen in zip(is_answer, mask, strict=True)],
        )
        with self.accelerator.autocast():
            values = target_log_probs_and_entropies(model, row.to(input_ids.device), self.temperature)
        # targets come by sequence, then by position: the order in which a mask is filled
        zeros = values[0].new_zeros(learnt.shape) + 0 * values[0].sum()
        return tuple(zeros.masked_scatter(learnt, value) for value in values)

    # -- watching

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's, with two of the answers on the console."""
        # not the same answers once more with the summary at the end, nor none where a run goes on between two drawings
        self.log_completions = "loss" in logs and bool(self._logs["prompt"])
        super().log(logs, start_time)
        if self.log_completions and self.accelerator.is_main_process:
            print("\n".join(self._shown_answers()))

    def _shown_answers(self) -> Iterator[str]:
        """A line each for the first answer of the first two texts drawn last."""
        for i in range(0, min(len(self._logs["prompt"]), 2 * self.num_generations), self.num_generations):
            rewards = ", ".join(f"{name} {values[i]:.2f}" for name, values in self._logs["rewards"].items())
            text, answer = shorten(self._logs["prompt"][i], 60), shorten(self._logs["completion"][i], 60)
            yield f"  {text!r} -> {answer!r}  ({rewards})"

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Label metrics of greedy answers to the validation rows: TRL's would sample, and score with the rewards."""
        from transformers import Trainer

        scores = self.label_scores()
        Trainer.log(self, dict(scores))  # TRL's would add, and clear, what is being gathered about the training
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, scores)
        return scores


# --- a vLLM server and a trainer without CUDA -----------------------------------------------------------------------


@contextmanager
def weights_through_a_folder() -> Iterator[None]:
    """Within this context, TRL's trainers talk to a vLLM server without NCCL, which CPUs do not have.

    The weights are written to a temporary folder, and the server is told to load them from there: it has to run on this
    machine, with `VLLM_SERVER_DEV_MODE=1`, as `scripts/serve_vllm.sh` starts it.
    """
    from safetensors.torch import save_file
    from trl.generation import vllm_generation

    class FolderClient(vllm_generation.VLLMClient):
        def init_communicator(self, device: Any = None) -> None:
            self.get_server_info()  # raises where the server does not take commands
            self.folder = tempfile.TemporaryDirectory(prefix="emotune-weights-")

        def update_named_params(self, metadata: list, named_params: Iterator[tuple[str, Tensor]]) -> None:
            path = Path(self.folder.name, "model.safetensors")
            # copies: the trainer takes the adapter out of the weights again behind the last one
            save_file({name: tensor.detach().clone().contiguous() for name, tensor in named_params}, f"{path}.new")
            os.replace(f"{path}.new", path)
            command = {"method": "reload_weights", "kwargs": {"weights_path": self.folder.name}}
            self._post(f"{self.base_url}/collective_rpc", json=command)

    usual, vllm_generation.VLLMClient = vllm_generation.VLLMClient, FolderClient
    try:
        yield
    finally:
        vllm_generation.VLLMClient = usual

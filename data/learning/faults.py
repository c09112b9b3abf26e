"""Training stops at the first loss, gradient, score or weight that is not a finite number, and says where it arose.

Transformers itself would go on: it leaves such losses out of its log, and saves the weights that come of them.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch
from accelerate.utils import gather_object
from torch import Tensor

from data.arguments import DivergedError, one_line
from data.learning.checkpoints import checkpoints_in

SHOWN_ROWS = 5  # of a batch, in a message


class StopAtFaults:
    """Mixin over a Transformers `Trainer`, in front of the one that computes the loss.

    Losses and the norm of the gradient are looked at together, once a step and before the optimizer uses them; in a
    distributed run all processes stop at the same step, whichever of them met the fault.
    """

    # row ids and loss () of each batch since the last step
    _batches: tuple[tuple[list[str], Tensor], ...] = ()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The trainer's own loss, which is remembered until the step."""
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if model.training:
            loss = result[0] if return_outputs else result
            self._batches += ((inputs["ids"], loss.detach().float()),)
        return result

    def _get_grad_norm(self, model, grad_norm=None) -> Tensor | float | None:
        """The norm of the gradient; None where fp16's loss scaling was too much, which skips the step by itself.

        Raises:
            DivergedError: a loss or the gradient is not finite. The optimizer has not seen it yet.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        batches, self._batches = self._batches, ()
        losses = torch.stack([loss for _, loss in batches])
        whole_norm = norm.full_tensor() if hasattr(norm, "full_tensor") else torch.as_tensor(norm)  # of FSDP's shards
        faults = torch.stack([~losses.isfinite().all(), ~whole_norm.to(losses.device).isfinite()])
        bad_loss, bad_gradient = self.accelerator.reduce(faults.int(), "sum").tolist()  # the only wait for a GPU
        if not bad_loss and bad_gradient and self._scaling_is_too_much():
            return None
        if bad_loss or bad_gradient:
            self._stop(batches, float(whole_norm), bool(bad_loss))
        return norm

    def _scaling_is_too_much(self) -> bool:
        """Whether fp16's loss scaling explains a gradient that is not finite: it has not been halved down to 1 yet."""
        scaler = getattr(self.accelerator, "scaler", None)
        return scaler is not None and scaler.is_enabled() and scaler.get_scale() > 1

    def _stop(self, batches: Sequence[tuple[list[str], Tensor]], norm: float, bad_loss: bool) -> NoReturn:
        faulty = [(ids, loss.item()) for ids, loss in batches if not bad_loss or not math.isfinite(loss.item())]
        faulty = gather_object(faulty)
        rows = list(dict.fromkeys(row for ids, _ in faulty for row in ids))
        what = f"the loss is {faulty[0][1]}" if bad_loss else f"the norm of the gradient is {norm}"
        shown = ", ".join(one_line(row, 40) for row in rows[:SHOWN_ROWS])
        more = f" and {len(rows) - SHOWN_ROWS} more" if len(rows) > SHOWN_ROWS else ""
        self._end(f"step {self.state.global_step + 1}: {what} on the training rows {shown}{more}")

    def _end(self, fault: str) -> NoReturn:
        """Stop with what is wrong, what is left of the run, and what can be done; all processes come here together."""
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()  # else some now and then wait for the others as they exit
        left = checkpoints_in(self.args.output_dir)
        kept = f"{left[0]} stays as it is" if left else "no checkpoint was written before"
        raise DivergedError(
            f"{fault}; training stopped, and {kept}. Other flags, such as a smaller --learning_rate, need another "
            f"--output_dir, or an empty {Path(self.args.output_dir)}"
        )

    def log(self, logs, start_time=None) -> None:
        """The trainer's own log of a step, or of scores of the validation rows.

        Raises:
            DivergedError: one of them is not finite.
        """
        for name, value in logs.items():
            if isinstance(value, float) and not math.isfinite(value):
                self._end(f"step {self.state.global_step}: {name} is {value}")
        super().log(logs, start_time)

    def save_model(self, output_dir=None, _internal_call=False) -> None:
        """Save the model; all processes come here.

        Raises:
            DivergedError: weights that were trained are not finite; nothing is written.
        """
        trained = {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad and p.numel()}
        norm = torch.nn.utils.get_total_norm(trained.values())  # fast; also infinite where only its squares are
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        if self.accelerator.reduce((~norm.isfinite()).int(), "sum").item():
            bad = [name for name, weight in trained.items() if not weight.isfinite().all()]
            if any(gather_object(bad)):
                name = (bad or ["a weight"])[0]
                self._end(f"step {self.state.global_step}: {name} is not finite")
        super().save_model(output_dir, _internal_call)

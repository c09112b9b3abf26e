"""A run that is told to end (SIGTERM, as cluster managers send before they kill) saves a checkpoint first."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from transformers import TrainerCallback

from data.arguments import TerminatedError


class SaveWhenTerminated(TrainerCallback):
    """Ends training behind the step in which a SIGTERM came, with a checkpoint of it.

    In a distributed run all processes end behind the same step, whichever of them was told. A second SIGTERM ends the
    process at once.

    Args:
        accelerator: the trainer's.
    """

    def __init__(self, accelerator):
        self._accelerator = accelerator
        self._told = self._ending = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within this context SIGTERM is a wish. Threads other than the main one cannot listen, and do not."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGTERM)

        def note(number: int, frame: FrameType | None) -> None:
            self._told = True
            signal.signal(number, before)

        signal.signal(signal.SIGTERM, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def on_step_end(self, args, state, control, **others) -> None:
        told = torch.tensor(int(self._told), device=self._accelerator.device)
        if self._accelerator.num_processes > 1:
            told = self._accelerator.reduce(told, "sum")
        if told:
            self._ending = control.should_save = True

    def on_save(self, args, state, control, **others) -> None:
        """
        Raises:
            TerminatedError: it was told to end, and the checkpoint is written.
        """
        if self._ending:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()  # else some now and then wait for the others as they exit
            checkpoint = Path(args.output_dir, f"checkpoint-{state.global_step}")
            raise TerminatedError(f"told to end (SIGTERM); the same command goes on from {checkpoint}")

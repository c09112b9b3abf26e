"""Predicting in several processes, each with the model: on the GPUs side by side, or sharing the cores of the CPU.

PyTorch's threads meet behind every operation and wait for the slowest, so that one process with all cores of a CPU is
slower than several with a few each.
"""

import multiprocessing
import signal
import threading
import traceback
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from data.arguments import UserError
from data.engine.backends import Backend, Prompts
from data.predictions import Prediction

BATCHES_AT_ONCE = 4  # of each process: the processes wait for one another behind so many


class Workers:
    """A `Backend` that hands batches to processes, and each the next one when it is done with one.

    Args:
        load: makes the backend of a process from the name of its device; has to be picklable.
        devices: a device for each process.
        batch_size: most prompts a process is given at once.
        name: the backend's name.

    Raises:
        UserError: what `load` raised in a process.
    """

    def __init__(self, load: Callable[[str], Backend], devices: Sequence[str], batch_size: int, name: str):
        self.name, self.window = name, batch_size * len(devices) * BATCHES_AT_ONCE
        self._batch_size = batch_size
        self._workers: dict[Connection, multiprocessing.process.BaseProcess] = {}
        self._end = weakref.finalize(self, _end, self._workers)  # at the latest when Python ends
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        for i, device in enumerate(devices):
            connection, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(theirs, load, device, len(devices), i == 0), daemon=True, name=f"worker {i + 1}"
            )
            process.start()
            theirs.close()  # so that the connection ends with the process
            self._workers[connection] = process
        try:
            for connection in self._workers:
                self._received(connection)  # its model is there
        except BaseException:
            self.close()
            raise

    def answers(self, prompts: Prompts) -> list[Prediction]:
        """See `Backend.answers`."""
        return self._spread("answers", prompts)

    def scores(self, prompts: Prompts) -> list[list[float]]:
        """See `Backend.scores`."""
        return self._spread("scores", prompts)

    def weighed(self, prompts: Prompts) -> list[Prediction]:
        """See `Backend.weighed`."""
        return self._spread("weighed", prompts)

    def close(self) -> None:
        """End the processes."""
        self._end()

    def _spread(self, method: str, prompts: Prompts) -> list:
        """What the processes' backends compute for these prompts, in the order of the prompts."""
        if not self._end.alive:
            raise RuntimeError(f"the {len(self._workers)} processes that predicted have ended; open a new Predictor")
        count, workers = len(prompts), len(self._workers)
        rounds = max(1, -(-count // (self._batch_size * workers)))
        share = max(1, -(-count // rounds))
        batches = [  # prompts come sorted by length: in a round, every process gets long ones and short ones
            rows
            for begin in range(0, count, share)
            for i in range(workers)
            if (rows := range(count)[begin : begin + share][i::workers])
        ]
        values: list = [None] * count
        todo, busy = iter(batches), {}  # busy: connection -> the rows it computes

        def give(connection: Connection) -> None:
            if rows := next(todo, None):
                busy[connection] = rows
                with suppress(OSError):  # the process has ended; `_received` says so
                    connection.send((method, [prompts[row] for row in rows]))

        try:
            for connection in self._workers:
                give(connection)
            while busy:
                for connection in wait(list(busy)):
                    for row, value in zip(busy.pop(connection), self._received(connection), strict=True):
                        values[row] = value
                    give(connection)
        except BaseException:
            self.close()  # what is still on its way would be taken for the answer to a later question
            raise
        return values

    def _received(self, connection: Connection) -> Any:
        try:
            result = connection.recv()
        except (EOFError, OSError) as error:
            process = self._workers[connection]
            process.join(timeout=5)
            raise UserError(
                f"--workers {len(self._workers)}: {process.name} ended with exit code {process.exitcode} (-9: killed, "
                "as systems do when memory runs out); what is written is kept, and the same command goes on"
            ) from error
        if isinstance(result, Exception):
            raise result
        return result


def _end(workers: dict[Connection, multiprocessing.process.BaseProcess]) -> None:
    for connection in workers:
        connection.close()  # upon which a process ends
    for process in workers.values():
        process.join(timeout=5)
        if process.is_alive():
            process.terminate()


def _work(connection: Connection, load: Callable[[str], Backend], device: str, workers: int, first: bool) -> None:
    """A process: computes what `connection` asks for until that ends, as it does with the process that asks."""
    import torch
    from tqdm import tqdm
    from transformers.utils import logging

    tqdm.set_lock(threading.RLock())  # its own is the system's, too, and a process that is killed would leave it behind
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    if not first:
        logging.disable_progress_bar()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # when nobody asks any more
        backend = _attempt(load, device)
        connection.send(backend if isinstance(backend, Exception) else None)
        while True:
            method, prompts = connection.recv()
            connection.send(_attempt(getattr(backend, method), prompts))


def _attempt(compute: Callable, argument) -> Any:
    """What `compute` gives, or the error it ends with, which is to be raised where it was asked for."""
    try:
        return compute(argument)
    except Exception as error:
        error.add_note(traceback.format_exc())
        return error

"""Labelling the parts of a corpus on Ray: processes that read, and actors that each hold a model and write parts.

Ray Data moves what is read to the actors, a part at a time and no more than a few ahead of them, so that neither corpus
nor predictions are ever whole in memory. It starts a process that has died again and gives it the same part. Everything
is done twice to the same end: a file is read to the same parts, a part written to the same content.

Ray's own vLLM stage (`ray.data.llm`, `build_processor`) is not used, though it writes constrained answers (tried: Ray
2.60 and vLLM 0.31 on a CPU, which takes `placement_group_config` and `log_engine_metrics=False`; else it waits for a
GPU, and ends for want of Ray Serve). Its unit is a row: rows come back in whatever order, and to write parts whole they
would have to be shuffled. It asks once a row, while probabilities of written labels are asked for in rounds
(`data.engine.answer_tree`), and an answer behind its reasoning. And the extra `ray[llm]` is tied to vLLM 0.29. So an
actor holds our `VllmBackend`, which answers as it does in inference.py.
"""

import logging
import os
import pickle
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.arguments import UserError, one_line
from data.contract import Format, Precision
from data.corpus import Corpus, CorpusFile, begin_part, look_at, write_part
from data.engine.models import pick_device
from data.engine.precision import pick_precision
from data.engine.predictor import Predictor
from data.labels import LabelTask
from data.prediction_files import Settings

PART_TRIES = 5  # of a part whose process died each time, and of processes that die loading the model: it may be why
STORE_BYTES = 512 << 20  # of what is read ahead, in a local Ray: a part has a megabyte or two
NEEDS_RAY = "needs Ray (pip install -r scripts/requirements-ray.txt)"


# --- Ray ------------------------------------------------------------------------------------------------------------


@contextmanager
def connected(address: str | None, processes: int) -> Iterator[dict[str, float]]:
    """Within this context Ray is there: the cluster at `address`, or one of this machine's own.

    The latter listens on the loopback interface only, without dashboard. No usage is reported to anyone.

    Args:
        address: as Ray takes it, such as "auto" or "ray-head:6379"; None = a Ray of this machine's own.
        processes: how many will compute; the local Ray has a CPU for each.

    Yields:
        What Ray has, by name: "CPU", "GPU".

    Raises:
        UserError: Ray is not installed, or nobody answers there.
    """
    if address is not None and address != "auto":
        check_answers(address)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its core writes into the progress bar
    if address is None:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray's own switch for "never beyond this machine"
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError(f"scripts.label_corpus: {NEEDS_RAY}") from error
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        if address is None:
            ray.init(
                "local", num_cpus=max(processes, cores()), include_dashboard=False, object_store_memory=STORE_BYTES,
                **quiet,
            )  # fmt: skip
        else:
            ray.init(address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(
            f"--address {address}: Ray does not connect ({one_line(error)}); if the cluster asks for a token, set "
            "RAY_AUTH_MODE=token here, too"
        ) from error
    try:
        yield ray.cluster_resources()
    finally:
        ray.shutdown()


def check_answers(address: str) -> None:
    """Raise a `UserError` where `address` is none of a Ray cluster, or nobody answers there: Ray itself would try for a
    minute, and then end the process."""
    host, _, port = address.rpartition(":")
    if not re.fullmatch(r"[\w.\-\[\]:]+", host) or not re.fullmatch(r"\d{1,5}", port):
        raise UserError(f"--address {address}: expected auto or host:port, from a machine of the cluster")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"--address {address}: no Ray cluster there ({reason})") from error


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Share:
    """What of the cluster each of the processes with a model has: whole cores, and GPUs."""

    processes: int
    cpus: int
    gpus: int

    @property
    def options(self) -> dict[str, int]:
        """The same as Ray names it."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus}


def share_out(
    resources: dict[str, float], workers: int, cpus_per_worker: int | None, gpus_per_worker: int | None
) -> Share:
    """What each of the workers gets.

    Args:
        resources: what there is, as `connected` yields it.
        workers: how many share it.
        cpus_per_worker: cores of each; None = the cores there are, shared out.
        gpus_per_worker: GPUs of each; None = one where there are any.

    Raises:
        UserError: there is not so much.
    """
    there = {"CPU": int(resources.get("CPU", 0)), "GPU": int(resources.get("GPU", 0))}
    cpus = cpus_per_worker or max(1, there["CPU"] // workers)
    gpus = min(1, there["GPU"]) if gpus_per_worker is None else gpus_per_worker
    for kind, each in (("CPU", cpus), ("GPU", gpus)):
        if workers * each > there[kind]:
            raise UserError(f"--workers {workers}: with {each} {kind}s each, the cluster has {there[kind]} of them")
    return Share(workers, cpus, gpus)


def _attempt(compute: Callable, *arguments: Any) -> tuple[Any, str]:
    """What `compute` gives, and ""; or None, and the line that says which mistake of the user's it met.

    Ray would wrap the error in its own, with the traceback in its text.
    """
    try:
        return compute(*arguments), ""
    except UserError as error:
        return None, str(error)


def _given(outcome: tuple[Any, str]) -> Any:
    value, problem = outcome
    if problem:
        raise UserError(problem)
    return value


def settled_precision(asked: Precision, model_path: str, share: Share) -> Format:
    """The number format in which all processes compute: what was asked for, or what one of them finds is faster.

    Raises:
        UserError: see `pick_precision`.
    """
    import ray

    def settle() -> Format:
        return pick_precision(asked, model_path, pick_device()).format

    return _given(ray.get(ray.remote(**share.options)(_attempt).remote(settle)))


def looked_at(
    paths: Sequence[Path], task: LabelTask, skip_bad_rows: bool, step: Callable[[int], Any]
) -> list[tuple[CorpusFile, list[dict[str, Any]]]]:
    """`look_at` of each file, side by side.

    Args:
        step: told that so many more files have been looked at.

    Raises:
        UserError: see `look_at`; of the first file, where it is of several.
    """
    import ray

    look = ray.remote(num_cpus=1)(_attempt)
    waiting = [look.remote(look_at, str(path), task, skip_bad_rows) for path in paths]
    found = []
    for each in waiting:
        found.append(_given(ray.get(each)))
        step(1)
    return found


# --- the parts ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Labelling:
    """What every process has to know.

    Attributes:
        directory: where the parts go, which all machines see.
        corpus: the rows.
        task: theirs.
        predictor: what a `Predictor` is made of.
        settings: what is to stand beside each part.
    """

    directory: str
    corpus: Corpus
    task: LabelTask
    predictor: dict[str, Any]
    settings: Settings


class Labeller:
    """An actor: holds the model, and labels one part after the other."""

    def __init__(self, labelling: Labelling):
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # else every engine takes the same cores
        self._labelling = labelling
        self._predictor, self._problem = _attempt(lambda: Predictor(**labelling.predictor))

    def __call__(self, batch: dict[str, Any]) -> dict[str, list]:
        """A row with a part's number and pickled examples -> one with the number of rows written, or the problem."""
        part, problem = int(batch["part"][0]), self._problem or str(batch["problem"][0])
        rows = None
        if not problem:
            rows, problem = _attempt(self._label, part, pickle.loads(batch["examples"][0]))
        return {"rows": [rows or 0], "problem": [problem]}

    def _label(self, part: int, examples: Sequence[Any]) -> int:
        task, job = self._predictor.task, self._labelling
        if (tries := begin_part(job.directory, job.corpus, part)) > PART_TRIES:
            raise UserError(
                f"part {part}: the process that labels it has ended {tries - 1} times (systems kill processes when "
                "memory runs out); what is written is kept, and the same command goes on"
            )
        predictions = self._predictor.predictions(example.asked for example in examples)
        rows = [task.result_row(e, p) for e, p in zip(examples, predictions, strict=True)]
        write_part(job.directory, job.corpus, part, rows, job.settings)
        return len(rows)


def read(batch: dict[str, Any], labelling: Labelling) -> Iterator[dict[str, list]]:
    """A row with a file's number, and the parts that begin in it -> a row for each of these parts.

    What a process that has died has read already is read again, and so must not depend on what is done meanwhile.
    """
    for number, parts in zip(batch["file"], batch["parts"], strict=True):
        try:
            for part, examples in labelling.corpus.examples(int(number), map(int, parts), labelling.task):
                yield {"part": [part], "examples": [pickle.dumps(examples)], "problem": [""]}
        except UserError as error:
            yield {"part": [0], "examples": [b""], "problem": [str(error)]}


def label_parts(labelling: Labelling, parts: Iterable[int], share: Share) -> Iterator[int]:
    """Label these parts.

    Yields:
        The number of rows of each part, as soon as it is written; in whatever order they are done.

    Raises:
        UserError: the model does not load, a file has changed, or processes die again and again.
    """
    import ray

    _set_up_data()
    files = [{"file": number, "parts": some} for number, some in labelling.corpus.readers(parts)]
    if not files:
        return
    read_rows = ray.data.from_items(files, override_num_blocks=len(files)).map_batches(
        read, fn_args=(labelling,), batch_size=1, num_cpus=0, compute=ray.data.TaskPoolStrategy(size=share.processes)
    )  # no core: one that is read from is most of the time waited for
    written = read_rows.map_batches(
        Labeller, fn_constructor_args=(labelling,), batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=share.processes), **share.options,
    )  # fmt: skip
    try:
        for row in written.iter_rows():
            yield _given((row["rows"], row["problem"]))
    except ray.exceptions.RayActorError as error:
        raise UserError(
            f"--workers {share.processes}: their processes end while they load the model (systems kill processes when "
            "memory runs out); what is written is kept, and the same command goes on"
        ) from error


def _set_up_data() -> None:
    """Ray Data without words, which gives processes that die a few tries, and has a part a block: what a process is
    given, and does again."""
    import ray

    context = ray.data.DataContext.get_current()
    context.target_max_block_size = 1  # byte: every row that is read is over it
    context.max_consecutive_actor_init_deaths = PART_TRIES
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)

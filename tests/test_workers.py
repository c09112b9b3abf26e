"""Processes that predict side by side: what they give, what ends them, and what is said when one ends too soon."""

import os
import signal
from functools import partial

import pytest

from data.arguments import UserError
from data.engine.models import worker_devices
from data.engine.workers import Workers
from inference import Args, Predictor

TEXTS = ["thanks a lot", "no", "what a terrible, terrible day that was for all of us", "ok then", "so proud!! 🎉"] * 5


class Echo:
    """An engine that says what it was given, and where."""

    name, window = "echo", 1

    def __init__(self, device: str):
        self.device = device

    def answers(self, prompts):
        if [13] in list(prompts):
            raise ValueError("13 is not for me")
        return [(self.device, *prompt) for prompt in prompts]

    def close(self):
        pass


class Victim(Echo):
    """One that is killed while it computes."""

    def answers(self, prompts):
        if self.device == "b":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().answers(prompts)


def victim(device: str):
    """A process that is killed while its model loads."""
    if device == "b":
        os.kill(os.getpid(), signal.SIGKILL)
    return Echo(device)


def refuse(device: str):
    raise UserError(f"nothing for {device}")


def test_several_processes_answer_as_one(tiny_model_dir):
    """Both what is written and how labels compare: the two questions a backend answers."""
    flags = dict(task="goemotions-original", precision="fp32", device="cpu", batch_size=4, probabilities=True)
    predictor = Predictor(str(tiny_model_dir), **flags)
    prompts = predictor.encoder.prompt_ids(TEXTS)
    alone, written = predictor.predict_batch(TEXTS), predictor.backend.answers(prompts)
    with Predictor(str(tiny_model_dir), workers=2, **flags) as predictor:
        together = predictor.predict_batch(TEXTS)
        assert predictor.predict_batch([]) == []
        assert [one.completion for one in predictor.backend.answers(prompts)] == [one.completion for one in written]
    assert len({one.completion for one in written}) > 1
    for one, other in zip(alone, together, strict=True):
        assert (one.labels, one.completion) == (other.labels, other.completion)
        assert one.confidence == pytest.approx(other.confidence, abs=1e-5)
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_every_process_has_its_share():
    workers = Workers(Echo, ["a", "b"], 4, "hf")
    for count in (0, 1, 2, 7, 8, 9):
        prompts = [[n] for n in range(count)]
        answers = workers.answers(prompts)
        assert [[n] for _, n in answers] == prompts
        assert len({device for device, _ in answers}) == min(count, 2)
    workers.close()


def test_a_process_that_is_killed_is_one_clear_error():
    workers = Workers(Echo, ["a", "b"], 4, "hf")
    process = list(workers._workers.values())[1]
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with pytest.raises(UserError, match=r"--workers 2: worker 2 ended with exit code -9"):
        workers.answers([[n] for n in range(20)])


def test_a_process_that_is_killed_at_work_ends_all(capfd):
    with pytest.raises(UserError, match=r"--workers 2: worker 2 ended with exit code -9 \(-9: killed, as systems do"):
        Workers(victim, ["a", "b"], 4, "hf")
    workers = Workers(Victim, ["a", "b"], 4, "hf")
    processes = list(workers._workers.values())
    with pytest.raises(UserError, match=r"--workers 2: worker 2 ended with exit code -9"):
        workers.answers([[n] for n in range(20, 40)])
    assert not any(process.is_alive() for process in processes)
    assert capfd.readouterr().err == ""


def test_errors_of_a_process_are_those_of_the_caller():
    with pytest.raises(UserError, match="nothing for b"):
        Workers(partial(refuse), ["b"], 4, "hf")
    workers = Workers(Echo, ["a", "b"], 4, "hf")
    processes = list(workers._workers.values())
    with pytest.raises(ValueError, match="13 is not for me") as raised:
        workers.answers([[n] for n in range(20)])
    assert "in answers" in raised.value.__notes__[0]  # where it happened, in the other process
    assert not any(process.is_alive() for process in processes)
    with pytest.raises(RuntimeError, match="the 2 processes that predicted have ended"):
        workers.answers([[1]])


def test_devices(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert worker_devices(3) == ["cuda:0", "cuda:1", "cuda:0"]
    assert worker_devices(2, "cpu") == ["cpu", "cpu"]


@pytest.mark.parametrize(("flags", "message"), [
    (dict(workers=0, test_data_path="a.tsv"), "--workers 0"),
    (dict(workers=2, text="fine"), "--workers 2: is for a file"),
    (dict(workers=2, test_data_path="a.tsv", backend="vllm"), "--workers 2: is for hf and bert"),
    (dict(compile=True, test_data_path="a.tsv", backend="vllm"), "--compile: is for hf and bert"),
])  # fmt: skip
def test_flags_that_do_not_go_together(flags, message):
    with pytest.raises(UserError, match=message):
        Args(model_path="anything", **flags)


@pytest.mark.parametrize("flags", [dict(constrained=False), dict(cot=True)])
def test_what_cannot_be_compiled(tiny_model_dir, flags):
    with pytest.raises(UserError, match="--compile: is for heads"):
        Predictor(str(tiny_model_dir), "goemotions-group", device="cpu", compile=True, **flags)

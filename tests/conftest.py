"""Tiny models made on the spot: random weights, a real tokenizer, no network."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"  # nobody answers: a test that reaches for the hub is a mistake

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "data" / "sample"
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def pytest_configure(config) -> None:
    """One thread for the fast tests: tiny models gain nothing from more, and lose much where cores are shared."""
    if "not real" in config.option.markexpr:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # PyTorch is not imported yet


def make_tokenizer(chat: bool = True):
    """A byte-level BPE tokenizer trained on the sample's comments."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(SAMPLE / "train.tsv"), str(SAMPLE / "labels.txt")], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>", model_max_length=2048
    )
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    return fast


@pytest.fixture(scope="module", autouse=True)
def _imported_is_no_garbage():
    """Trainers collect garbage often: a third of a second, unless the libraries' own objects are no longer looked at."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def environment(tmp_path_factory) -> dict[str, str]:
    """Settings under which the launchers use this very interpreter, as an environment that is set up already."""
    venv = tmp_path_factory.mktemp("venv")
    for entry in Path(sys.prefix).iterdir():
        if entry.name != "requirements.stamp":
            (venv / entry.name).symlink_to(entry)
    stamp = subprocess.run(["cksum", "requirements.txt"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (venv / "requirements.stamp").write_text(stamp)
    return os.environ | {"VENV": str(venv), "GPUS": "0", "PROCESSES": "1"}


NOTING_PYTHON = """#!/usr/bin/env bash
[[ "$1" != -c ]] || exit 1 # no vLLM here
[[ " $* " != *" --text - "* ]] || cat > /dev/null # else what writes to it is killed
printf '%s\\t' "$@" >> "$NOTES"
echo >> "$NOTES"
name="$1"
[[ "$1" != -m ]] || name="$2"
[[ "$name" != "${FAILING:-}" ]] || exit 7
"""


@pytest.fixture
def noted(tmp_path):
    """Run a launcher with a Python that notes what it is called with, and does nothing else.

    Returns how it ended, and the commands that it gave, as lists of words.
    """
    environment = tmp_path / "venv"
    (environment / "bin").mkdir(parents=True)
    python = environment / "bin" / "python"
    python.write_text(NOTING_PYTHON)
    python.chmod(0o755)
    stamp = subprocess.run(["cksum", "requirements.txt"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (environment / "requirements.stamp").write_text(stamp)
    notes = tmp_path / "notes"

    def start(
        launcher: str, *flags: str, cwd: Path = ROOT, **variables: str
    ) -> tuple[subprocess.CompletedProcess, list[list[str]]]:
        notes.write_text("")
        done = subprocess.run(
            ["bash", str(ROOT / "scripts" / launcher), *flags], cwd=cwd, capture_output=True, text=True, timeout=60,
            env=os.environ | {"VENV": str(environment), "NOTES": str(notes)} | variables,
        )  # fmt: skip
        return done, [line.removesuffix("\t").split("\t") for line in notes.read_text(encoding="utf-8").splitlines()]

    return start


def programs(commands: list[list[str]]) -> list[str]:
    """The stages and scripts that are called, in order."""
    return [" ".join(command[: 1 + (command[0] == "-m")]) for command in commands]


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def plain_tokenizer():
    return make_tokenizer(chat=False)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory, tokenizer) -> Path:
    """A two-layer Qwen2 with random weights, saved as a model directory."""
    directory = tmp_path_factory.mktemp("tiny-qwen2")
    save_tiny_model(tokenizer, directory)
    return directory


def save_tiny_model(tokenizer, directory: Path) -> None:
    """See `tiny_model_dir`."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=False,
        initializer_range=0.3,  # large enough that what is written depends on what was read
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)

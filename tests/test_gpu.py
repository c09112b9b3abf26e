"""What only a GPU computes, and the chain on one: bash scripts/test.sh -m gpu"""

import json
import subprocess
import sys

import pytest
import torch

from data.engine.packing import pack
from data.engine.span_attention import SPAN_ATTENTION
from data.engine.tree_attention import target_log_probs
from tests.conftest import ROOT, SAMPLE
from tests.test_tree_attention import gradients, make_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

HEAD = [7 + i % 40 for i in range(150)]  # longer than a block of FlexAttention's
ROWS = [[*HEAD, *(20 + (7 * i + k) % 30 for k in range(60 + 17 * i)), 3, 4, 2] for i in range(6)]
TARGETS = [[False] * (len(row) - 3) + [True] * 3 for row in ROWS]
WIDE = {"hidden_size": 256, "max_position_embeddings": 1024}  # heads of 64


def alone(model) -> torch.Tensor:
    """Log-probabilities of the targets, every sequence by itself."""
    found = []
    for row in ROWS:
        logits = model(input_ids=torch.tensor([row], device="cuda")).logits[0, :-1].float().log_softmax(-1)
        found.append(logits[torch.arange(len(row) - 4, len(row) - 1), torch.tensor(row[-3:])])
    return torch.cat(found)


@pytest.mark.parametrize("attention", ["sdpa", "flex_attention", SPAN_ATTENTION])
@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_packed_rows_give_what_each_sequence_gives_alone(kind, attention):
    model = make_model(kind, "sdpa", **WIDE).cuda()
    expected = alone(model)
    expected.mean().backward()
    wanted = gradients(model)
    (row,) = pack(ROWS, TARGETS)
    assert len(row) > 256
    model.set_attn_implementation(attention)
    found = target_log_probs(model, row.to("cuda"))
    found.mean().backward()
    # log-probabilities of about -15 and gradients of up to 8: fp32 itself is 7e-5 and, by norm, 2e-5 off fp64 here
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)
    for name, gradient in gradients(model).items():
        assert (gradient - wanted[name]).norm() < 1e-4 * wanted[name].norm(), name


@pytest.mark.parametrize("attention", ["sdpa", "flex_attention", SPAN_ATTENTION])
def test_packed_rows_in_bf16(attention):
    """As near to fp32 as each sequence by itself is."""
    model = make_model("qwen2", "sdpa", **WIDE).cuda()
    exact = alone(model).detach()
    model = model.bfloat16()
    apart = (alone(model).detach() - exact).abs().max()
    (row,) = pack(ROWS, TARGETS)
    model.set_attn_implementation(attention)
    with torch.no_grad():
        found = target_log_probs(model, row.to("cuda"))
    assert (found - exact).abs().max() < 3 * apart + 1e-3


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, tokenizer):
    """A small Qwen2 whose heads are wide enough for FlexAttention."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=2048, initializer_range=0.2,
    )  # fmt: skip
    directory = tmp_path_factory.mktemp("qwen2")
    Qwen2ForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def run(*words) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("tuning", ["lora", "qlora", "full"])
def test_the_chain(model_dir, tmp_path, tuning):
    """Fine-tuned, reinforced both ways, merged; what the GPU answers is what the CPU answers."""
    train, test = SAMPLE / "train.tsv", SAMPLE / "test.tsv"
    data = ("--train_data_path", train, "--max_steps", 4)
    run("main_SFT.py", "--task", "goemotions-original", *data, "--model_path", model_dir, "--tuning", tuning,
        "--eval_samples", 32, "--eval_steps", 4, "--output_dir", tmp_path / "sft")  # fmt: skip
    last = tmp_path / "sft"
    for expectation in ("sampled", "exact") if tuning != "qlora" else ():
        run("main_grpo.py", *data, "--model_path", tmp_path / "sft", "--expectation", expectation, "--eval_samples", 16,
            "--eval_steps", 4, "--output_dir", tmp_path / expectation)  # fmt: skip
        last = tmp_path / expectation
    if tuning != "full":
        run("merge_lora.py", "--training_output_dir", last, "--output_dir", tmp_path / "merged", "--device", "cuda")
        last = tmp_path / "merged"
    answers = {}
    for device in ("cuda", "cpu"):
        run("inference.py", "--model_path", last, "--test_data_path", test, "--limit", 40, "--precision", "fp32",
            "--device", device, "--output_dir", tmp_path / device)  # fmt: skip
        lines = (tmp_path / device / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        answers[device] = [json.loads(line) for line in lines]
    assert [row["labels"] for row in answers["cuda"]] == [row["labels"] for row in answers["cpu"]]
    for there, here in zip(answers["cuda"], answers["cpu"], strict=True):
        assert there["probabilities"] == pytest.approx(here["probabilities"], abs=1e-3)

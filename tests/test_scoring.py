"""Scores of labels as answers: the tree against one forward pass for each label."""

import pytest
import torch

from data.encoding import Encoder
from data.engine.models import load_model
from data.engine.scoring import candidate_batch, candidate_scores
from data.engine.span_attention import SPAN_ATTENTION
from data.loading import load_examples
from data.tasks import BUILT_IN_TASKS
from tests.conftest import SAMPLE

ORIGINAL = BUILT_IN_TASKS["goemotions-original"]
BEGIN_ALIKE = [[7, 8, 1], [7, 8, 9, 1], [7, 1], [5, 1]]  # one the beginning of another, but for its end


def one_by_one(model, prompts, candidates):
    """(B, K): one forward pass for each text and label."""
    scores = []
    for prompt in prompts:
        for answer in candidates:
            log_probs = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].float().log_softmax(-1)
            scores.append(sum(log_probs[len(prompt) + i - 1, token] for i, token in enumerate(answer)))
    return torch.stack(scores).view(len(prompts), len(candidates))


@pytest.fixture
def model(tiny_model_dir):
    return load_model(str(tiny_model_dir), "fp32", "cpu", attention="eager")


def scored(model, prompts, candidates, way):
    packed = way != "padded"
    if packed:
        model.set_attn_implementation(SPAN_ATTENTION)
    batch = candidate_batch(prompts, candidates, packed, 0, max_tokens=None if way == "one row" else 60)
    if way == "rows":
        assert len(batch["rows"]) > 1
    scores = candidate_scores(model, batch, len(candidates))
    model.set_attn_implementation("eager")
    return scores


@pytest.mark.parametrize("candidates", ["labels", "begin alike"])
def test_scores_and_gradients_are_those_of_one_pass_a_label(model, tokenizer, candidates):
    encoder = Encoder(ORIGINAL, tokenizer, objective="score")
    texts = [e.text for e in load_examples(SAMPLE / "dev.tsv", ORIGINAL)[:2]]
    prompts = encoder.prompt_ids([*texts, texts[0]])  # the same text twice
    answers = encoder.candidate_ids() if candidates == "labels" else BEGIN_ALIKE
    plain = one_by_one(model, prompts, answers)
    weights = torch.linspace(-0.1, 0.1, plain.numel()).view(plain.shape)
    (plain * weights).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    for way in ("one row", "rows", "padded"):
        model.zero_grad()
        scores = scored(model, prompts, answers, way)
        (scores * weights).sum().backward()
        # sums of up to six log-probabilities of about -10
        torch.testing.assert_close(scores, plain, atol=1e-4, rtol=1e-6, msg=way)
        for name, parameter in model.named_parameters():
            scale = gradients[name].abs().max().clamp(min=1)
            found, expected = parameter.grad / scale, gradients[name] / scale
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0, msg=f"{way}: {name}")


def test_the_end_counts():
    """Without it, a label that begins another would never score less."""
    encoder_like = [[7, 1], [7, 8, 1]]
    (row,) = candidate_batch([[3, 4]], encoder_like, True, 0)["rows"]
    assert row.target_ids.tolist() == [7, 1, 7, 8, 1]


def test_texts_and_labels_share_what_they_begin_with(tokenizer):
    encoder = Encoder(ORIGINAL, tokenizer, objective="score")
    prompts = encoder.prompt_ids(["thank you", "no"])
    (row,) = candidate_batch(prompts, encoder.candidate_ids(), True, 0)["rows"]
    whole = sum(len(p) + len(c) - 1 for p in prompts for c in encoder.candidate_ids())
    assert len(row) < whole / 20

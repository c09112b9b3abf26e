"""Writing freely: greedy or sampled continuations of prompts; what the prompts share is computed once."""

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Cache,
    GenerationConfig,
    LogitsProcessorList,
    StoppingCriteriaList,
    StopStringCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from data.engine.packing import common_prefix_length
from data.engine.padding import padded


def stop_token_ids(model, end_id: int) -> list[int]:
    """The answer's own end, and whatever else this model ends a text with."""
    own = model.generation_config.eos_token_id
    others = own if isinstance(own, list) else [] if own is None else [own]
    return list(dict.fromkeys([end_id, *others]))


def generate_greedy(
    model, prompts: Sequence[Sequence[int]], stop_ids: list[int], max_new_tokens: int, pad_id: int,
    stop_string: tuple[Any, str] | None = None,
) -> tuple[list[list[int]], Tensor]:  # fmt: skip
    """Continue each prompt with its most probable token until a stop token or `max_new_tokens`.

    What all prompts begin with is computed once; the rest of the shorter ones is padded on its left.

    Args:
        model: a causal language model.
        prompts: B lists of token ids.
        stop_ids: tokens that end an answer.
        max_new_tokens: length at which an answer is cut off.
        pad_id: the padding token.
        stop_string: tokenizer and a string that ends an answer, too; it stays in it.

    Returns:
        B lists of generated token ids (up to the stop token, without it), and log-probabilities (B,) of the
        answers, stop token included (behind a stop string, those of padding are counted with it).
    """
    watch = _GreedyLogProbs()
    stops = StoppingCriteriaList([StopStringCriteria(stop_string[0], [stop_string[1]])] if stop_string else [])
    output = generate(model, prompts, 1, stop_ids, max_new_tokens, pad_id, watch, stops)  # (B, new)
    steps = torch.stack(watch.steps, dim=1)  # (B, new)
    generated, log_probs = [], []
    for row, ids in enumerate(output.tolist()):
        length = next((i for i, token in enumerate(ids) if token in stop_ids), len(ids))
        generated.append(ids[:length])
        log_probs.append(steps[row, : length + 1].sum())
    return generated, torch.stack(log_probs)


def sample_answers(
    model, prompts: Sequence[Sequence[int]], samples: int, stop_ids: list[int], max_new_tokens: int, pad_id: int,
    temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0,
) -> list[list[int]]:  # fmt: skip
    """Draw several continuations of each prompt, with torch's random numbers.

    What all prompts begin with is computed once, the rest of a prompt once for its samples.

    Args:
        model, prompts, stop_ids, max_new_tokens, pad_id: see `generate_greedy`.
        samples: continuations of each prompt (G).
        temperature: divides the logits.
        top_p: draw from the smallest set of tokens with at least this probability.
        top_k: draw from the most probable `top_k` tokens; 0 = from all.

    Returns:
        B * G lists of token ids, those of a prompt one behind the other; each ends with its stop token unless it was
        cut off.
    """
    warpers = LogitsProcessorList()
    if temperature != 1:
        warpers.append(TemperatureLogitsWarper(temperature))
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))

    def draw(input_ids, scores) -> Tensor:
        """Scores (B, V) -> the same shape, in which the drawn token is the greatest.

        By the inverse of the cumulative distribution: one random number a row, where torch.multinomial takes one for
        each token of the vocabulary.
        """
        exact = torch.float32 if scores.device.type == "mps" else torch.float64  # MPS has no float64
        cumulative = warpers(input_ids, scores.float()).softmax(dim=-1).cumsum(dim=-1, dtype=exact)
        point = torch.rand(len(scores), 1, device=scores.device, dtype=exact) * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, point, right=True).clamp(max=scores.shape[-1] - 1)
        return torch.zeros_like(scores).scatter_(1, drawn, 1.0)

    rows = generate(model, prompts, samples, stop_ids, max_new_tokens, pad_id, draw).tolist()
    return [ids[: next((i for i, token in enumerate(ids, start=1) if token in stop_ids), len(ids))] for ids in rows]


# --- generation over a shared beginning -----------------------------------------------------------------------------


def generate(
    model, prompts: Sequence[Sequence[int]], samples: int, stop_ids: list[int], max_new_tokens: int, pad_id: int,
    process: Callable, stops: StoppingCriteriaList | None = None,
) -> Tensor:  # fmt: skip
    """`samples` continuations of each prompt, (B * samples, new), padded behind their stop tokens.

    Each token is the one with the greatest score that `process` (input ids, scores (B, V) -> scores) leaves.
    """
    shared = shared_length(prompts) if keeps_whole_cache(model) else 0
    rest = padded([p[shared:] for p in prompts], pad_id, "left")
    beginning = torch.tensor([prompts[0][:shared]], dtype=torch.long, device=model.device)  # (1, S)
    input_ids = torch.cat([beginning.expand(len(prompts), -1), rest["input_ids"].to(model.device)], dim=1)  # (B, T)
    mask = torch.cat([torch.ones_like(input_ids[:, :shared]), rest["attention_mask"].to(model.device)], dim=1)
    config = GenerationConfig(  # what a model's own generation_config would turn: greedy means greedy
        do_sample=False, num_beams=1, repetition_penalty=1.0, no_repeat_ngram_size=0, temperature=1.0, top_p=1.0,
        top_k=50, min_new_tokens=0, suppress_tokens=[], use_cache=True,
        max_new_tokens=max_new_tokens, eos_token_id=stop_ids, pad_token_id=pad_id,
    )  # fmt: skip
    with torch.inference_mode():
        cache = repeated(prefix_cache(model, beginning), len(prompts)) if shared else None
        if samples > 1:
            cache = _prompt_cache(model, input_ids, mask, shared, cache) if keeps_whole_cache(model) else None
            if cache is not None:
                cache.batch_repeat_interleave(samples)
            input_ids, mask = input_ids.repeat_interleave(samples, dim=0), mask.repeat_interleave(samples, dim=0)
        output = model.generate(
            input_ids=input_ids,
            attention_mask=mask,
            generation_config=config,
            logits_processor=LogitsProcessorList([process]),
            stopping_criteria=stops,
            past_key_values=cache,
        )
    return output[:, input_ids.shape[1] :]


def shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with; each keeps at least one of its own.

    >>> shared_length([[5, 6, 7, 8], [5, 6, 9]])
    2
    """
    # in sorted order, the first and the last are the two that differ soonest
    return min(common_prefix_length(min(prompts), max(prompts)), min(map(len, prompts)) - 1)


def keeps_whole_cache(model) -> bool:
    """Whether every layer attends to all earlier tokens, so that a computed prefix can be reused as it is."""
    config = model.config.get_text_config()
    layers = getattr(config, "layer_types", None)
    return set(layers) == {"full_attention"} if layers else getattr(config, "sliding_window", None) is None


def prefix_cache(model, prefix: Tensor) -> Cache:
    """Keys and values of `prefix` (1, S)."""
    return model(input_ids=prefix, use_cache=True, logits_to_keep=1).past_key_values


def repeated(cache, rows: int) -> Cache:
    """The cache of one row for `rows` rows, which share its memory; `cache` itself stays as it is."""
    cache = copy(cache)
    cache.layers = [copy(layer) for layer in cache.layers]
    for layer in cache.layers:
        layer.keys = layer.keys.expand(rows, -1, -1, -1)
        layer.values = layer.values.expand(rows, -1, -1, -1)
    return cache


def _prompt_cache(model, input_ids, mask, shared: int, cache) -> Cache:
    """Keys and values of all but the last token of prompts (B, T), of which `cache` holds the first `shared`."""
    if shared == input_ids.shape[1] - 1:
        return cache
    positions = mask.cumsum(dim=1) - 1
    positions = positions.masked_fill(mask == 0, 0)[:, shared:-1]
    return model(
        input_ids=input_ids[:, shared:-1], attention_mask=mask[:, :-1], position_ids=positions, past_key_values=cache,
        use_cache=True, logits_to_keep=1,
    ).past_key_values  # fmt: skip


class _GreedyLogProbs:
    """Notes the log-probability of each step's most probable token, without keeping the (B, vocabulary) scores."""

    def __init__(self):
        self.steps = []  # tensors (B,)

    def __call__(self, input_ids, scores):
        scores = scores.float()
        self.steps.append(scores.max(dim=-1).values - scores.logsumexp(dim=-1))
        return scores

"""Writing freely: greedy or sampled continuations of prompts; what the prompts share is computed once."""

import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import copy
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Cache,
    GenerationConfig,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteriaList,
    StopStringCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from data.engine.long_prompts import grouped, prompt_cache, reads_one_by_one
from data.engine.packing import common_prefix_length
from data.engine.padding import padded
from data.sampling import Sampling, seed_of


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
    temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, stop_string: tuple[Any, str] | None = None,
) -> list[list[int]]:  # fmt: skip
    """Draw several continuations of each prompt, with torch's random numbers.

    What all prompts begin with is computed once, the rest of a prompt once for its samples.

    Args:
        model, prompts, stop_ids, max_new_tokens, pad_id: see `generate_greedy`.
        samples: continuations of each prompt (G).
        temperature: divides the logits.
        top_p: draw from the smallest set of tokens with at least this probability.
        top_k: draw from the most probable `top_k` tokens; 0 = from all.
        stop_string: see `generate_greedy`; what is drawn behind it, while others are written on, stays, too.

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
        """Scores (B, V) -> the same shape, in which the drawn token is the greatest."""
        numbers = torch.rand(len(scores), 1, device=scores.device, dtype=_exact(scores))
        drawn = drawn_tokens(warpers(input_ids, scores.float()), numbers)
        return torch.zeros_like(scores).scatter_(1, drawn, 1.0)

    stops = StoppingCriteriaList([StopStringCriteria(stop_string[0], [stop_string[1]])] if stop_string else [])
    rows = generate(model, prompts, samples, stop_ids, max_new_tokens, pad_id, draw, stops).tolist()
    return [ids[: next((i for i, token in enumerate(ids, start=1) if token in stop_ids), len(ids))] for ids in rows]


def drawn_tokens(scores: Tensor, numbers: Tensor) -> Tensor:
    """A token of each row, (B, 1), by the inverse of the cumulative distribution: one random number a row, where
    torch.multinomial takes one for each token of the vocabulary.

    Args:
        scores: (B, V) in fp32.
        numbers: (B, 1) from 0 to 1.
    """
    cumulative = scores.softmax(dim=-1).cumsum(dim=-1, dtype=_exact(scores))
    found = torch.searchsorted(cumulative, numbers * cumulative[:, -1:], right=True)
    return found.clamp(max=scores.shape[-1] - 1)


def _exact(scores: Tensor) -> torch.dtype:
    return torch.float32 if scores.device.type == "mps" else torch.float64  # MPS has no float64


def draw_texts(
    model, prompts: Sequence[Sequence[int]], sampling: Sampling, stop_ids: list[int], pad_id: int, seed: int
) -> list[tuple[list[int], float, bool]]:
    """Continue each prompt with free text.

    What is drawn behind a prompt depends on the seed and the prompt, and (but for rounding) on nothing else: not on the
    other prompts, nor on where a run was stopped and went on.

    Args:
        model, prompts, stop_ids, pad_id: see `generate_greedy`.
        sampling: how a token is drawn.
        seed: of the random numbers.

    Returns:
        Of each prompt the token ids (up to the stop token, without it), their log-probability under the model in nats
        (stop token included; before temperature and penalty), and whether a stop token came.
    """
    draw = _Draw(sampling, prompts, seed)
    one_by_one = reads_one_by_one(model, max(map(len, prompts)) + sampling.max_new_tokens)
    with grouped(model) if one_by_one else nullcontext():
        rows = generate(
            model, prompts, 1, stop_ids, sampling.max_new_tokens, pad_id, draw, one_by_one=one_by_one
        ).tolist()
    steps = torch.stack(draw.log_probs, dim=1).tolist()  # (B, new)
    texts = []
    for ids, log_probs in zip(rows, steps, strict=True):
        length = next((i for i, token in enumerate(ids) if token in stop_ids), None)
        texts.append((ids[:length], sum(log_probs[: None if length is None else length + 1]), length is not None))
    return texts


class _Draw:
    """A logits processor that leaves the drawn token the greatest score; see `draw_texts`."""

    def __init__(self, sampling: Sampling, prompts: Sequence[Sequence[int]], seed: int):
        self._greedy = sampling.temperature == 0
        longest = max(map(len, prompts))
        self._prompts = torch.tensor([[prompt[0]] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        self._generators = [random.Random(seed_of(prompt, seed)) for prompt in prompts]
        self.log_probs: list[Tensor] = []  # of each step, (B,)
        self._repetition = None
        if sampling.repetition_penalty != 1:
            self._repetition = RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty))
        self._warpers = LogitsProcessorList()
        if not self._greedy and sampling.temperature != 1:
            self._warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if not self._greedy and sampling.top_k:
            self._warpers.append(TopKLogitsWarper(sampling.top_k))
        if not self._greedy and sampling.top_p < 1:
            self._warpers.append(TopPLogitsWarper(sampling.top_p))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids (B, T), scores (B, V) -> scores (B, V)."""
        scores = scores.float()
        plain = scores.log_softmax(dim=-1)
        if self._repetition is not None:
            scores = self._repetition(self._without_padding(input_ids), scores.clone())
        drawn = scores.argmax(dim=-1, keepdim=True) if self._greedy else self._drawn(self._warpers(input_ids, scores))
        self.log_probs.append(plain.gather(-1, drawn)[:, 0])
        return torch.zeros_like(scores).scatter_(1, drawn, 1.0)

    def _drawn(self, scores: Tensor) -> Tensor:
        numbers = [[each.random()] for each in self._generators]
        return drawn_tokens(scores, torch.tensor(numbers, dtype=_exact(scores), device=scores.device))

    def _without_padding(self, input_ids: Tensor) -> Tensor:
        """The same with a token of the prompt in the place of padding, which is no repetition (it may be the end)."""
        self._prompts = self._prompts.to(input_ids.device)
        return torch.cat([self._prompts, input_ids[:, self._prompts.shape[1] :]], dim=1)


# --- generation over a shared beginning -----------------------------------------------------------------------------


def generate(
    model, prompts: Sequence[Sequence[int]], samples: int, stop_ids: list[int], max_new_tokens: int, pad_id: int,
    process: Callable, stops: StoppingCriteriaList | None = None, one_by_one: bool = False,
) -> Tensor:  # fmt: skip
    """`samples` continuations of each prompt, (B * samples, new), padded behind their stop tokens.

    With `one_by_one`, prompts are read each by itself (`long_prompts.py`), instead of together behind what they share.

    Each token is the one with the greatest score that `process` (input ids, scores (B, V) -> scores) leaves.
    """
    shared = shared_length(prompts) if keeps_whole_cache(model) and not one_by_one else 0
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
        if one_by_one and min(map(len, prompts)) > 1:
            cache = prompt_cache(model, prompts)
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

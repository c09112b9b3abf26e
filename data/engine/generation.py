"""Writing answers: greedy, constrained or drawn continuations of prompts; what the prompts share is computed once."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from data.answers import AnswerTrie, Node
from data.engine.packing import common_prefix_length, further_spans, pack, paths, spans
from data.engine.tree_attention import KeptRow, computes_spans, ordinary_attention, read_on

LONGEST_ANSWER = 4096  # tokens; a trie ends every answer long before
LOOK_AHEAD = 64  # tokens a pass over a few texts computes at little more than the cost of reading the weights


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
    output = _generate(model, prompts, 1, stop_ids, max_new_tokens, pad_id, watch, stops)  # (B, new)
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

    def draw(input_ids, scores):
        """Scores (B, V) -> the same shape, in which the drawn token is the greatest.

        By the inverse of the cumulative distribution: one random number a row, where torch.multinomial takes one for
        each token of the vocabulary.
        """
        exact = torch.float32 if scores.device.type == "mps" else torch.float64  # MPS has no float64
        cumulative = warpers(input_ids, scores.float()).softmax(dim=-1).cumsum(dim=-1, dtype=exact)
        point = torch.rand(len(scores), 1, device=scores.device, dtype=exact) * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, point, right=True).clamp(max=scores.shape[-1] - 1)
        return torch.zeros_like(scores).scatter_(1, drawn, 1.0)

    rows = _generate(model, prompts, samples, stop_ids, max_new_tokens, pad_id, draw).tolist()
    return [ids[: next((i for i, token in enumerate(ids, start=1) if token in stop_ids), len(ids))] for ids in rows]


# --- answers of a trie ----------------------------------------------------------------------------------------------


class ConstrainedWriter:
    """Writes the most probable valid answers, token by token.

    A token that leaves no choice is not asked for: the model is called once for the prompts, and again only for
    answers that come to a choice behind it. What all prompts begin with is computed once for all batches.

    Args:
        model: a causal language model.
        trie: the valid answers.
        beginning: token ids that all prompts begin with.
        pad_id: the padding token.
    """

    def __init__(self, model, trie: AnswerTrie, beginning: Sequence[int], pad_id: int):
        self.model, self.trie, self.pad_id = model, trie, pad_id
        self._column = {token: i for i, token in enumerate(trie.token_ids)}
        self._tokens = torch.tensor(trie.token_ids, device=model.device)
        self._narrow = self._rows_of_vocabulary()
        self.beginning: list[int] = []
        self._reader: _TreeReader | _CacheReader | None = None
        if computes_spans(model):
            self.beginning, self._reader = list(beginning), _TreeReader(model, beginning)
        elif keeps_whole_cache(model):
            self.beginning, self._reader = list(beginning), _CacheReader(model, beginning, pad_id)

    def _rows_of_vocabulary(self) -> torch.nn.Linear | None:
        """The output layer for the trie's tokens alone; None where it is more than a matrix (an adapter, shards)."""
        whole = self.model.get_output_embeddings()
        if type(whole) is not torch.nn.Linear or type(whole.weight.data) is not torch.Tensor:
            return None
        narrow = torch.nn.Linear(whole.in_features, len(self._tokens), whole.bias is not None, device="meta")
        for name, parameter in whole.named_parameters():
            rows = parameter.detach()[self._tokens]
            setattr(narrow, name, torch.nn.Parameter(rows, requires_grad=False))
        return narrow

    def write(self, prompts: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[float]]:
        """The answers to B prompts: token ids with the end token, and log-probabilities.

        The probability of an answer is that of its tokens where only valid ones may follow.
        """
        if self._reader is None:
            return self._write_step_by_step(prompts)
        count, begin = len(prompts), len(self.beginning)
        assert all(list(prompt[:begin]) == self.beginning for prompt in prompts), "prompts of another beginning"
        answers: list[list[int]] = [[] for _ in prompts]
        log_probs = [0.0] * count
        places: list[Node] = [self.trie.root] * count
        new = [prompt[begin:] for prompt in prompts]  # of each answer in work, what the model has not read yet
        reader, rows = self._reader.fork(count), list(range(count))  # rows: those in work
        guesses = reader.guesses(self.trie.root, count)
        with torch.inference_mode(), self._narrow_vocabulary():
            while rows:
                logits = reader.read(new, guesses)
                logits = (logits if self._narrow is not None else logits[..., self._tokens]).float().cpu()
                column = {guess: i for i, guess in enumerate(guesses)}
                left, new, came_true = [], [], []
                for i, row in enumerate(rows):
                    written: list[int] = []  # as far as logits reach
                    while places[row].children and (at := column.get(tuple(written))) is not None:
                        tokens, log_prob, places[row] = self._choice(places[row], logits[i, at])
                        written += tokens
                        log_probs[row] += log_prob
                    answers[row] += written
                    if places[row].children:  # the model has yet to read what stands behind the last guess
                        read = max(n for n in range(len(written)) if tuple(written[:n]) in column)
                        left.append(i)
                        came_true.append(column[tuple(written[:read])])
                        new.append(written[read:])
                reader.keep(left, came_true)
                rows, guesses = [rows[i] for i in left], [()]
        return answers, log_probs

    @contextmanager
    def _narrow_vocabulary(self) -> Iterator[None]:
        """Within this context the model gives logits of the trie's tokens alone: no pass reads the whole vocabulary."""
        whole = self.model.get_output_embeddings()
        if self._narrow is None:
            yield
            return
        self.model.set_output_embeddings(self._narrow)
        try:
            yield
        finally:
            self.model.set_output_embeddings(whole)

    def _choice(self, place: Node, logits: Tensor, jump: bool = True) -> tuple[list[int], float, Node]:
        """The most probable token at `place`, and with `jump` those behind it that leave no choice.

        Args:
            place: where the answer has got to; not its end.
            logits: (tokens of the trie,) behind the last token.

        Returns:
            The tokens, their log-probability among what may follow, and the place behind them.
        """
        tokens = list(place.children)
        log_probs = logits[[self._column[token] for token in tokens]].log_softmax(dim=0)
        best = int(log_probs.argmax())
        written, place = [tokens[best]], place.children[tokens[best]]
        while jump and len(place.children) == 1:
            ((token, place),) = place.children.items()
            written.append(token)
        return written, float(log_probs[best]), place

    def _write_step_by_step(self, prompts: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[float]]:
        """`write` for models that carry more than keys and values from token to token."""
        answers = [[] for _ in prompts]
        log_probs = [0.0] * len(prompts)
        places = [self.trie.root] * len(prompts)

        def allow(_, scores: Tensor) -> Tensor:
            """Scores (B, V) in which the token to be written is the greatest."""
            chosen = torch.zeros_like(scores)
            logits = scores[:, self._tokens].float().cpu()
            for row, place in enumerate(places):
                if place.children:
                    (token,), log_prob, places[row] = self._choice(place, logits[row], jump=False)
                    answers[row].append(token)
                    log_probs[row] += log_prob
                    chosen[row, token] = 1
                else:
                    chosen[row, self.pad_id] = 1
            return chosen

        ends = StoppingCriteriaList([_EndOfTrie(places)])
        with ordinary_attention(self.model):
            _generate(self.model, prompts, 1, [], LONGEST_ANSWER, self.pad_id, allow, ends)
        return answers, log_probs


class _TreeReader:
    """Has a model read B texts on, piece by piece, as one packed row without padding; for attention in spans.

    Args:
        model: a causal language model that is set up for it.
        beginning: token ids that all texts begin with.
    """

    def __init__(self, model, beginning: Sequence[int]):
        self._model, self._beginning = model, list(beginning)
        self._kept, self._length = KeptRow(), len(self._beginning)
        self._paths: list[list[Tensor]] | None = None  # where in the row each text's tokens stand, by guess
        if self._beginning:
            with torch.inference_mode():
                ids = torch.tensor(self._beginning, device=model.device)
                positions = torch.arange(len(ids), device=model.device)
                cut = spans(torch.full_like(ids, len(ids)), model.dtype)
                read_on(model, self._kept, ids, positions, positions[-1:], cut)

    def fork(self, count: int) -> "_TreeReader":
        """A reader of texts of which nothing but the beginning is read yet."""
        reader = copy(self)
        reader._kept = self._kept.copy()
        return reader

    def guesses(self, root: Node, count: int) -> list[tuple[int, ...]]:
        """How the answers to `count` texts may begin, shortest first, the empty beginning among them: what the first
        `read` may as well compute. A pass over few tokens takes the time the weights need to come from memory."""
        found: list[tuple[int, ...]] = [()]
        nodes = [root]
        for place, node in zip(nodes, found, strict=True):  # both grow
            inner = [(token, child) for token, child in place.children.items() if child.children]
            if (len(found) - 1 + len(inner)) * count > LOOK_AHEAD:
                break
            found += [(*node, token) for token, _ in inner]
            nodes += [child for _, child in inner]
        return found

    def read(self, new: Sequence[Sequence[int]], guesses: Sequence[tuple[int, ...]]) -> Tensor:
        """Read what is new of each text.

        Args:
            new: B lists of token ids.
            guesses: G beginnings of what may be written behind; in later calls than the first, only the empty one.

        Returns:
            Logits (B, G, V) behind each text and guess.
        """
        first, device = self._length, self._model.device
        if self._paths is None:
            texts = [[*self._beginning, *ids, *guess] for ids in new for guess in guesses]
            # `pack` wants something to predict: a token that is not read
            (row,) = pack([[*ids, 0] for ids in texts], [[False] * len(ids) + [True] for ids in texts])
            row = row.to(device)
            found = paths(row)
            self._paths = [found[i : i + len(guesses)] for i in range(0, len(found), len(guesses))]
            self._length = len(row)
            cut = spans(row.subtree_end, self._model.dtype, first=first)
            positions = row.position_ids[first:].clone()  # a compiled layer knows a part from a whole
            logits = read_on(self._model, self._kept, row.input_ids[first:], positions, row.logit_index - first, cut)
            return logits[row.target_logit].unflatten(0, (len(new), -1))
        assert list(guesses) == [()], "guesses are for the first piece"
        so_far = [path for (path,) in self._paths]
        counts = [len(ids) for ids in new]
        ends = torch.tensor(counts, device=device).cumsum(0)
        cut = further_spans(so_far, counts, first, self._model.dtype)
        own = [torch.arange(end - count, end, device=device) for count, end in zip(counts, ends.tolist(), strict=True)]
        positions = [len(path) + torch.arange(len(o), device=device) for path, o in zip(so_far, own, strict=True)]
        ids = torch.tensor([token for ids in new for token in ids], device=device)
        logits = read_on(self._model, self._kept, ids, torch.cat(positions), ends - 1, cut)
        self._paths = [[torch.cat([path, first + o])] for path, o in zip(so_far, own, strict=True)]
        self._length += len(ids)
        return logits[:, None]

    def keep(self, rows: Sequence[int], came_true: Sequence[int]) -> None:
        """Go on with these texts only, each behind the guess that came true."""
        self._paths = [[self._paths[row][guess]] for row, guess in zip(rows, came_true, strict=True)]


class _CacheReader:
    """Has a model read B texts on, padded on their left, with Transformers' cache.

    Args:
        model: a causal language model with plain attention.
        beginning: token ids that all texts begin with.
        pad_id: the padding token.
    """

    def __init__(self, model, beginning: Sequence[int], pad_id: int):
        self._model, self._pad_id = model, pad_id
        self._mask = torch.ones(1, len(beginning), dtype=torch.long, device=model.device)  # (B, what the cache holds)
        with torch.inference_mode(), ordinary_attention(model):
            ids = torch.tensor([list(beginning)], device=model.device)
            self._cache = prefix_cache(model, ids) if len(beginning) else None

    def fork(self, count: int) -> "_CacheReader":
        """A reader of `count` texts of which nothing but the beginning is read yet."""
        reader = copy(self)
        reader._cache = repeated(self._cache, count) if self._cache is not None else None
        reader._mask = self._mask.expand(count, -1)
        return reader

    def guesses(self, root: Node, count: int) -> list[tuple[int, ...]]:
        """None but the empty one: a cache holds no branches."""
        return [()]

    def read(self, new: Sequence[Sequence[int]], guesses: Sequence[tuple[int, ...]]) -> Tensor:
        """Read what is new of each text; returns logits (B, 1, V) behind it."""
        ids, seen = _padded(new, self._pad_id, self._mask.device)
        self._mask = torch.cat([self._mask, seen], dim=1)
        positions = (self._mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        with ordinary_attention(self._model):
            output = self._model(
                input_ids=ids, attention_mask=self._mask, position_ids=positions, past_key_values=self._cache,
                use_cache=True, logits_to_keep=1,
            )  # fmt: skip
        self._cache = output.past_key_values
        return output.logits[:, -1:]

    def keep(self, rows: Sequence[int], came_true: Sequence[int]) -> None:
        """Go on with these texts only."""
        if len(rows) == len(self._mask):
            return
        kept = torch.tensor(rows, dtype=torch.long, device=self._mask.device)
        self._cache.batch_select_indices(kept)
        self._mask = self._mask[kept]


class _EndOfTrie(StoppingCriteria):
    """Ends generation when all answers are written."""

    def __init__(self, places: list[Node]):
        self.places = places

    def __call__(self, input_ids: Tensor, scores, **kwargs) -> Tensor:
        return torch.tensor([not place.children for place in self.places], device=input_ids.device)


# --- generation over a shared beginning -----------------------------------------------------------------------------


def _generate(
    model, prompts: Sequence[Sequence[int]], samples: int, stop_ids: list[int], max_new_tokens: int, pad_id: int,
    process: Callable, stops: StoppingCriteriaList | None = None,
) -> Tensor:  # fmt: skip
    """`samples` continuations of each prompt, (B * samples, new), padded behind their stop tokens.

    Each token is the one with the greatest score that `process` (input ids, scores (B, V) -> scores) leaves.
    """
    shared = shared_length(prompts) if keeps_whole_cache(model) else 0
    rest, rest_mask = _padded([p[shared:] for p in prompts], pad_id, model.device)
    beginning = torch.tensor([prompts[0][:shared]], dtype=torch.long, device=model.device)  # (1, S)
    input_ids = torch.cat([beginning.expand(len(prompts), -1), rest], dim=1)  # (B, T)
    mask = torch.cat([torch.ones_like(input_ids[:, :shared]), rest_mask], dim=1)  # (B, T)
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


def _padded(rows: Sequence[Sequence[int]], pad_id: int, device) -> tuple[Tensor, Tensor]:
    """Token ids padded on their left, and 1 where a token is one of the row's own: (B, T) each."""
    width = max(map(len, rows))
    ids = [[pad_id] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


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


def prefix_cache(model, prefix: Tensor):
    """Keys and values of `prefix` (1, S)."""
    return model(input_ids=prefix, use_cache=True, logits_to_keep=1).past_key_values


def repeated(cache, rows: int):
    """The cache of one row for `rows` rows, which share its memory; `cache` itself stays as it is."""
    cache = copy(cache)
    cache.layers = [copy(layer) for layer in cache.layers]
    for layer in cache.layers:
        layer.keys = layer.keys.expand(rows, -1, -1, -1)
        layer.values = layer.values.expand(rows, -1, -1, -1)
    return cache


def _prompt_cache(model, input_ids, mask, shared: int, cache):
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

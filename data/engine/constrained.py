"""Writing valid answers only: the most probable path through the trie of a task's answers.

What the model is asked, and what not. Labels `joy`, `love` and `sad ness` (two tokens), `,` between them, `$` at the
end; a text T behind an instruction P:

    trie    root ── joy ──┬─ $                      after `sad` only `ness` may come: no choice, so no question
             ├─ love ─ …  └─ , ─┬─ love ─ …
             └─ sad ─ ness ─ …  └─ sad ─ ness ─ …

    before  P is read, once for all texts
    pass 1  reads T, and as guesses what an answer may begin with, which costs little in so short a pass:

                T ┬──────── logits here choose  joy | love | sad                       -> say joy
                  ├─ joy ── logits here choose  $ | ,       (the guess that came true) -> say ,
                  ├─ love
                  └─ sad
            `joy ,` is written; the model has read `joy` of it, so `,` is unread
    pass 2  reads the unread tokens of the answers that are not whole yet, here `,`; no guesses any more:

                T ─ joy ─ , ── logits here choose  love | sad                          -> say sad, and `ness` with it
            `joy , sad ness` is written, `sad ness` unread
    pass 3  … until every answer has come to its `$`

The probability of an answer is the product of its choices', each among what was valid there.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from data.answers import AnswerTrie, Node
from data.engine.generation import generate, keeps_whole_cache, prefix_cache, repeated
from data.engine.packing import further_spans, last_token_row, paths, spans
from data.engine.padding import padded
from data.engine.span_attention import KeptRow
from data.engine.tree_attention import computes_spans, ordinary_attention, read_on

LONGEST_ANSWER = 4096  # tokens; a trie ends every answer long before
LOOK_AHEAD = 64  # tokens a pass over a few texts computes at little more than the cost of reading the weights
Guess = tuple[int, ...]  # how an answer may begin; () = not at all


@dataclass
class _Draft:
    """An answer being written: where in the trie it has got to, its tokens, and their log-probability in nats."""

    place: Node
    tokens: list[int] = field(default_factory=list)
    log_prob: float = 0.0

    @property
    def is_whole(self) -> bool:
        return not self.place.children


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
        self._reader: TreeReader | CacheReader | None = None
        if computes_spans(model):
            self.beginning, self._reader = list(beginning), TreeReader(model, beginning)
        elif keeps_whole_cache(model):
            self.beginning, self._reader = list(beginning), CacheReader(model, beginning, pad_id)

    def write(self, prompts: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[float]]:
        """The answers to B prompts: token ids with the end token, and log-probabilities in nats.

        The probability of an answer is that of its tokens where only valid ones may follow.
        """
        drafts = [_Draft(self.trie.root) for _ in prompts]
        if self._reader is None:
            self._write_step_by_step(prompts, drafts)
        else:
            self._write_in_passes(prompts, drafts)
        return [draft.tokens for draft in drafts], [draft.log_prob for draft in drafts]

    def _write_in_passes(self, prompts: Sequence[Sequence[int]], drafts: list[_Draft]) -> None:
        begin = len(self.beginning)
        assert all(list(prompt[:begin]) == self.beginning for prompt in prompts), "prompts of another beginning"
        reader = self._reader.fork(len(prompts))
        guesses = reader.guesses(self.trie.root, len(prompts))
        unread = [prompt[begin:] for prompt in prompts]  # of each draft that is not whole
        with torch.inference_mode(), self._narrow_vocabulary():
            while drafts:
                logits = self._logits_of_trie(reader.read(unread, guesses))  # (B, G, tokens of the trie)
                read = [self._write_on(draft, guesses, rows) for draft, rows in zip(drafts, logits, strict=True)]
                left = [i for i, draft in enumerate(drafts) if not draft.is_whole]
                reader.keep(left, [guesses.index(read[i][0]) for i in left])
                drafts, unread, guesses = [drafts[i] for i in left], [read[i][1] for i in left], [()]

    def _write_on(self, draft: _Draft, guesses: list[Guess], logits: Tensor) -> tuple[Guess, list[int]]:
        """Write as far as the logits reach.

        Args:
            draft: goes on.
            guesses: what the model has read behind the draft so far, in G ways.
            logits: (G, tokens of the trie) behind each of them.

        Returns:
            The longest guess that came true, and what is written behind it, which the model has yet to read.
        """
        begin, row_of = len(draft.tokens), {guess: i for i, guess in enumerate(guesses)}
        while not draft.is_whole and (row := row_of.get(tuple(draft.tokens[begin:]))) is not None:
            self._choose(draft, logits[row])
        written = draft.tokens[begin:]
        read = max(n for n in range(len(written)) if tuple(written[:n]) in row_of)
        return tuple(written[:read]), written[read:]

    def _choose(self, draft: _Draft, logits: Tensor, jump: bool = True) -> None:
        """Write the most probable valid token, and with `jump` those behind it that leave no choice.

        Args:
            draft: goes on; it is not whole.
            logits: (tokens of the trie,) behind its last token.
            jump: False writes one token.
        """
        tokens = list(draft.place.children)
        log_probs = logits[[self._column[token] for token in tokens]].log_softmax(dim=0)
        best = int(log_probs.argmax())
        draft.log_prob += float(log_probs[best])
        draft.tokens.append(tokens[best])
        draft.place = draft.place.children[tokens[best]]
        while jump and len(draft.place.children) == 1:
            ((token, draft.place),) = draft.place.children.items()
            draft.tokens.append(token)

    def _write_step_by_step(self, prompts: Sequence[Sequence[int]], drafts: list[_Draft]) -> None:
        """For models that carry more than keys and values from token to token."""

        def allow(_, scores: Tensor) -> Tensor:
            """Scores (B, V) in which the token to be written is the greatest."""
            chosen = torch.zeros_like(scores)
            logits = scores[:, self._tokens].float().cpu()
            for row, draft in enumerate(drafts):
                if draft.is_whole:
                    chosen[row, self.pad_id] = 1
                else:
                    self._choose(draft, logits[row], jump=False)
                    chosen[row, draft.tokens[-1]] = 1
            return chosen

        ends = StoppingCriteriaList([_AllWhole(drafts)])
        with ordinary_attention(self.model):
            generate(self.model, prompts, 1, [], LONGEST_ANSWER, self.pad_id, allow, ends)

    # -- logits of the trie's tokens alone

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

    def _logits_of_trie(self, logits: Tensor) -> Tensor:
        """What the model gave within `_narrow_vocabulary`, (..., tokens of the trie) in fp32 on the CPU."""
        return (logits if self._narrow is not None else logits[..., self._tokens]).float().cpu()


class _AllWhole(StoppingCriteria):
    """Ends generation when all answers are written."""

    def __init__(self, drafts: Sequence[_Draft]):
        self.drafts = drafts

    def __call__(self, input_ids: Tensor, scores, **kwargs) -> Tensor:
        return torch.tensor([draft.is_whole for draft in self.drafts], device=input_ids.device)


# --- reading on -----------------------------------------------------------------------------------------------------


class TreeReader:
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

    def fork(self, count: int) -> "TreeReader":
        """A reader of texts of which nothing but the beginning is read yet."""
        reader = copy(self)
        reader._kept = self._kept.copy()
        return reader

    def guesses(self, root: Node, count: int) -> list[Guess]:
        """How the answers to `count` texts may begin, shortest first, the empty beginning among them: what the first
        `read` may as well compute. A pass over few tokens takes the time the weights need to come from memory."""
        found: list[Guess] = [()]
        nodes = [root]
        for place, node in zip(nodes, found, strict=True):  # both grow
            inner = [(token, child) for token, child in place.children.items() if child.children]
            if (len(found) - 1 + len(inner)) * count > LOOK_AHEAD:
                break
            found += [(*node, token) for token, _ in inner]
            nodes += [child for _, child in inner]
        return found

    def read(self, new: Sequence[Sequence[int]], guesses: Sequence[Guess]) -> Tensor:
        """Read what is new of each text.

        Args:
            new: B lists of token ids.
            guesses: G beginnings of what may be written behind; in later calls than the first, only the empty one.

        Returns:
            Logits (B, G, V) behind each text and guess.
        """
        if self._paths is None:
            return self._read_first(new, guesses)
        assert list(guesses) == [()], "guesses are for the first piece"
        return self._read_further(new)[:, None]

    def _read_first(self, new: Sequence[Sequence[int]], guesses: Sequence[Guess]) -> Tensor:
        """Logits (B, G, V): the row is one tree of the beginning, the texts, and the guesses behind each."""
        row = last_token_row([[*self._beginning, *ids, *guess] for ids in new for guess in guesses])
        row, first = row.to(self._model.device), self._length
        found = paths(row)
        self._paths = [found[i : i + len(guesses)] for i in range(0, len(found), len(guesses))]
        self._length = len(row)
        cut = spans(row.subtree_end, self._model.dtype, first=first)
        positions = row.position_ids[first:].clone()  # a compiled layer knows a part from a whole
        logits = read_on(self._model, self._kept, row.input_ids[first:], positions, row.logit_index - first, cut)
        return logits[row.target_logit].unflatten(0, (len(new), -1))

    def _read_further(self, new: Sequence[Sequence[int]]) -> Tensor:
        """Logits (B, V): what is new of each text stands behind the row, and sees the text's own path in it."""
        first, device = self._length, self._model.device
        so_far, counts = [path for (path,) in self._paths], [len(ids) for ids in new]
        ends = torch.tensor(counts, device=device).cumsum(0)
        own = [torch.arange(end - count, end, device=device) for count, end in zip(counts, ends.tolist(), strict=True)]
        positions = [len(path) + torch.arange(len(o), device=device) for path, o in zip(so_far, own, strict=True)]
        ids = torch.tensor([token for ids in new for token in ids], device=device)
        cut = further_spans(so_far, counts, first, self._model.dtype)
        logits = read_on(self._model, self._kept, ids, torch.cat(positions), ends - 1, cut)
        self._paths = [[torch.cat([path, first + o])] for path, o in zip(so_far, own, strict=True)]
        self._length += len(ids)
        return logits

    def keep(self, rows: Sequence[int], came_true: Sequence[int]) -> None:
        """Go on with these texts only, each behind the guess that came true."""
        self._paths = [[self._paths[row][guess]] for row, guess in zip(rows, came_true, strict=True)]


class CacheReader:
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

    def fork(self, count: int) -> "CacheReader":
        """A reader of `count` texts of which nothing but the beginning is read yet."""
        reader = copy(self)
        reader._cache = repeated(self._cache, count) if self._cache is not None else None
        reader._mask = self._mask.expand(count, -1)
        return reader

    def guesses(self, root: Node, count: int) -> list[Guess]:
        """None but the empty one: a cache holds no branches."""
        return [()]

    def read(self, new: Sequence[Sequence[int]], guesses: Sequence[Guess]) -> Tensor:
        """Read what is new of each text; returns logits (B, 1, V) behind it."""
        batch = padded(new, self._pad_id, "left")
        ids, seen = batch["input_ids"].to(self._mask.device), batch["attention_mask"].to(self._mask.device)
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

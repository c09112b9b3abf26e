"""Having a model read B texts on, piece by piece, and branching where a text is to go on in several ways: a row that is
kept more than once. What all texts begin with is read once, and each piece once, where the model allows it.

`TrieModel` is what writes valid answers: a model that reads on, and gives the logits of a trie's tokens alone.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy

import torch
from torch import Tensor

from data.answers import AnswerTrie, Node
from data.engine.generation import keeps_whole_cache, prefix_cache, repeated
from data.engine.packing import further_spans, last_token_row, paths, spans
from data.engine.padding import padded
from data.engine.span_attention import KeptRow
from data.engine.tree_attention import computed_in, computes_spans, ordinary_attention, read_on

LOOK_AHEAD = 64  # tokens a pass over a few texts computes at little more than the cost of reading the weights
Guess = tuple[int, ...]  # how an answer may begin; () = not at all


class Choices:
    """What may come at the places of a trie, and how probable it is.

    Args:
        trie: the valid answers.
    """

    def __init__(self, trie: AnswerTrie):
        self._column = {token: i for i, token in enumerate(trie.token_ids)}
        self._columns: dict[Node, Tensor] = {}

    def choices(self, place: Node, logits: Tensor) -> Tensor:
        """Log-probabilities (children,) of what may come at `place`, in nats, among that alone.

        Args:
            place: a node with children.
            logits: (tokens of the trie,) there, or anything that differs from them by a common summand.
        """
        columns = self._columns.get(place)
        if columns is None:
            columns = self._columns[place] = torch.tensor([self._column[token] for token in place.children])
        return logits[columns].log_softmax(dim=0)


class TrieModel(Choices):
    """A model that is asked for nothing but the tokens of a trie.

    Args:
        model: a causal language model, without what distributes it.
        trie: the valid answers.
        beginning: token ids that all prompts begin with.
        pad_id: the padding token.

    Attributes:
        reader: has read `beginning`; see `reader_of`. None where only reading everything anew would do.
        beginning: what it has read; nothing where there is no reader.
    """

    def __init__(self, model, trie: AnswerTrie, beginning: Sequence[int], pad_id: int):
        super().__init__(trie)
        self.model = model
        self.tokens = torch.tensor(trie.token_ids, device=model.device)
        self._narrow = self._rows_of_vocabulary()
        self.beginning: list[int] = []
        self.reader: TreeReader | CacheReader | None = None
        if computes_spans(model):
            self.beginning, self.reader = list(beginning), TreeReader(model, beginning)
        elif keeps_whole_cache(model):
            self.beginning, self.reader = list(beginning), CacheReader(model, beginning, pad_id)

    def unread(self, prompts: Sequence[Sequence[int]]) -> list[Sequence[int]]:
        """What of the prompts stands behind the beginning."""
        begin = len(self.beginning)
        assert all(list(prompt[:begin]) == self.beginning for prompt in prompts), "prompts of another beginning"
        return [prompt[begin:] for prompt in prompts]

    def _rows_of_vocabulary(self) -> torch.nn.Linear | None:
        """The output layer for the trie's tokens alone; None where it is more than a matrix (an adapter, shards)."""
        whole = self.model.get_output_embeddings()
        if type(whole) is not torch.nn.Linear or type(whole.weight.data) is not torch.Tensor:
            return None
        narrow = torch.nn.Linear(whole.in_features, len(self.tokens), whole.bias is not None, device="meta")
        for name, parameter in whole.named_parameters():
            rows = parameter.detach()[self.tokens]
            setattr(narrow, name, torch.nn.Parameter(rows, requires_grad=False))
        return narrow

    @contextmanager
    def narrow_vocabulary(self) -> Iterator[None]:
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

    def logits_of_trie(self, logits: Tensor) -> Tensor:
        """What the model gave within `narrow_vocabulary`, (..., tokens of the trie) in fp32 on the CPU."""
        return (logits if self._narrow is not None else logits[..., self.tokens]).float().cpu()


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
                cut = spans(torch.full_like(ids, len(ids)), computed_in(model))
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
        cut = spans(row.subtree_end, computed_in(self._model), first=first)
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
        cut = further_spans(so_far, counts, first, computed_in(self._model))
        logits = read_on(self._model, self._kept, ids, torch.cat(positions), ends - 1, cut)
        self._paths = [[torch.cat([path, first + o])] for path, o in zip(so_far, own, strict=True)]
        self._length += len(ids)
        return logits

    def keep(self, rows: Sequence[int], came_true: Sequence[int]) -> None:
        """Go on with these texts only, each behind the guess that came true; a text that is named twice goes on in two
        ways."""
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
        """Go on with these texts only; one that is named twice goes on in two ways."""
        if list(rows) == list(range(len(self._mask))):
            return
        kept = torch.tensor(rows, dtype=torch.long, device=self._mask.device)
        self._cache.batch_select_indices(kept)
        self._mask = self._mask[kept]


class AnewReader:
    """Has a model read B texts on, each time from their beginnings: for models that keep no cache that could branch.

    Args:
        model: a causal language model.
        pad_id: the padding token.
    """

    def __init__(self, model, pad_id: int):
        self._model, self._pad_id = model, pad_id
        accepted = inspect.signature(model.forward).parameters
        self._counts, self._last_only = "position_ids" in accepted, "logits_to_keep" in accepted
        self._at_once = 1
        self._read: list[list[int]] = []

    def fork(self, count: int) -> "AnewReader":
        """A reader of `count` texts of which nothing is read yet, which reads at most so many at once."""
        reader = copy(self)
        reader._at_once, reader._read = count, [[] for _ in range(count)]
        return reader

    def guesses(self, root: Node, count: int) -> list[Guess]:
        """None but the empty one."""
        return [()]

    def read(self, new: Sequence[Sequence[int]], guesses: Sequence[Guess]) -> Tensor:
        """Read what is new of each text; returns logits (B, 1, V) behind it."""
        self._read = [[*so_far, *ids] for so_far, ids in zip(self._read, new, strict=True)]
        parts = [self._read[i : i + self._at_once] for i in range(0, len(self._read), self._at_once)]
        with ordinary_attention(self._model):
            return torch.cat([self._logits(part) for part in parts])

    def _logits(self, rows: Sequence[Sequence[int]]) -> Tensor:
        batch = {name: tensor.to(self._model.device) for name, tensor in padded(rows, self._pad_id, "left").items()}
        if self._counts:
            batch["position_ids"] = (batch["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
        keep = {"logits_to_keep": 1} if self._last_only else {}
        return self._model(**batch, **keep, use_cache=False).logits[:, -1:]

    def keep(self, rows: Sequence[int], came_true: Sequence[int]) -> None:
        """Go on with these texts."""
        self._read = [self._read[row] for row in rows]

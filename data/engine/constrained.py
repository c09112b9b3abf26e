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

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from data.answers import AnswerTrie, Node
from data.engine.generation import generate
from data.engine.readers import Guess, TrieModel
from data.engine.tree_attention import ordinary_attention

LONGEST_ANSWER = 4096  # tokens; a trie ends every answer long before


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
        self.trie, self.pad_id = trie, pad_id
        self._asked = TrieModel(model, trie, beginning, pad_id)

    def write(self, prompts: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[float]]:
        """The answers to B prompts: token ids with the end token, and log-probabilities in nats.

        The probability of an answer is that of its tokens where only valid ones may follow.
        """
        drafts = [_Draft(self.trie.root) for _ in prompts]
        if self._asked.reader is None:
            self._write_step_by_step(prompts, drafts)
        else:
            self._write_in_passes(prompts, drafts)
        return [draft.tokens for draft in drafts], [draft.log_prob for draft in drafts]

    def _write_in_passes(self, prompts: Sequence[Sequence[int]], drafts: list[_Draft]) -> None:
        asked = self._asked
        reader = asked.reader.fork(len(prompts))
        guesses = reader.guesses(self.trie.root, len(prompts))
        unread = asked.unread(prompts)  # of each draft that is not whole
        with torch.inference_mode(), asked.narrow_vocabulary():
            while drafts:
                logits = asked.logits_of_trie(reader.read(unread, guesses))  # (B, G, tokens of the trie)
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
        log_probs = self._asked.choices(draft.place, logits)
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
            logits = scores[:, self._asked.tokens].float().cpu()
            for row, draft in enumerate(drafts):
                if draft.is_whole:
                    chosen[row, self.pad_id] = 1
                else:
                    self._choose(draft, logits[row], jump=False)
                    chosen[row, draft.tokens[-1]] = 1
            return chosen

        ends = StoppingCriteriaList([_AllWhole(drafts)])
        with ordinary_attention(self._asked.model):
            generate(self._asked.model, prompts, 1, [], LONGEST_ANSWER, self.pad_id, allow, ends)


class _AllWhole(StoppingCriteria):
    """Ends generation when all answers are written."""

    def __init__(self, drafts: Sequence[_Draft]):
        self.drafts = drafts

    def __call__(self, input_ids: Tensor, scores, **kwargs) -> Tensor:
        return torch.tensor([draft.is_whole for draft in self.drafts], device=input_ids.device)

"""Exact reinforcement of answers with reasoning: rationales are drawn, the answers behind each of them are weighed.

A rationale cannot be listed, so G of them are drawn for each text, as GRPO does. Behind a rationale z, all answers are
weighed (data/learning/exact.py): its reward is the expected reward E(z) of the answers behind it, instead of that of
one answer drawn with it, which has the same mean and more variance. The gradient has two parts:

    the answers' tokens      the exact gradient of E(z)
    the rationale's tokens   E(z) - mean of E over the text's rationales, times the gradient of log p(z|x)

In both, the accuracy reward is divided by a number, one for each text (`--scale_rewards`): the mean of the Jaccard
index over all answers behind all of its rationales, or its standard deviation, + 1e-4. With a mean for each rationale,
one that speaks for a wrong label, behind which the right one is next to impossible, would outweigh all others, and the
model would learn to contradict what it has just written. The rewards for form and length are not divided: where hardly
an answer is right, what a cut-off rationale costs would be all that counts, and a model learns to write short
rationales and no valid answer behind them.

As in inference, the opening tag is given, and what is drawn up to `</think>` is spelt anew in the form that is learnt
from (`Encoder.reasoned_ids`): where a tokenizer would split it in another way than the model wrote it, log p is that of
the new spelling. A rationale that does not end within its room has no answer: its reward is that of a cut-off answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.encoding import RATIONALE_TOKENS
from data.engine.generation import sample_answers
from data.engine.packing import common_prefix_length
from data.engine.tree_attention import ordinary_attention
from data.labels import THINK, rationale_in
from data.learning.exact import ExactTraining

END = "</think>"


@dataclass(frozen=True)
class Thought:
    """A rationale that was drawn.

    Attributes:
        opened: token ids of the prompt and of what opens the reasoning.
        token_ids: what stands behind, up to where the answer begins, or where it was cut off.
        finished: whether it came to its end.
    """

    opened: list[int]
    token_ids: list[int]
    finished: bool


class ReasonedTraining(ExactTraining):
    """`ExactTraining` for `--cot`; see above.

    Args:
        num_generations: rationales drawn for each text (G).
        stop_ids: tokens that end a text.
        arguments: see `ExactTraining`.
    """

    def __init__(self, *, num_generations: int, stop_ids: Sequence[int], **arguments: Any):
        super().__init__(**arguments)
        self.num_generations, self.stop_ids = num_generations, list(stop_ids)

    def losses(self, model, inputs) -> tuple[Tensor, Tensor]:
        """Losses (B,) of the texts, and their places (B,) in the batch."""
        texts, each = len(inputs["prompts"]), self.num_generations
        thoughts = self._draw(inputs["prompts"])  # B * G, those of a text one behind the other
        finished = [i for i, thought in enumerate(thoughts) if thought.finished] or [0]
        text_of = torch.tensor([i // each for i in finished], device=inputs["gold"].device)
        weighed = self._weigh(
            model,
            [thoughts[i].opened + thoughts[i].token_ids for i in finished],
            inputs["gold"][text_of],
            [(thought.opened, thought.token_ids) for thought in thoughts],
            text_of,
            share=1 / each,
        )
        values = weighed.values.new_full((texts * each,), self._reward_of_cut_off())
        places = torch.tensor([i for i in finished if thoughts[i].finished], device=values.device, dtype=torch.long)
        values[places] = weighed.values[: len(places)]
        values = values.view(texts, each)
        advantages = values - values.mean(dim=1, keepdim=True)
        losses = -(advantages.flatten() * weighed.others)  # (B * G,)
        losses = losses.index_add(0, places, weighed.losses[: len(places)])
        losses = losses + 0 * weighed.losses.sum()  # where none is finished, the model is called as others do
        if len(places):
            of_thoughts = {"texts": [inputs["texts"][i] for i in text_of.tolist()], "gold": inputs["gold"][text_of]}
            self._note(inputs | of_thoughts, weighed)
        self._note_cut_off(len(thoughts) - len(places))
        return losses.view(texts, each).mean(dim=1), torch.arange(texts, device=losses.device)

    def _worth(self, parts: dict[str, Tensor], divisors: Tensor) -> Tensor:
        """See `ExactTraining._worth`; here, the accuracy reward alone is divided."""
        of_accuracy = self.rewards.accuracy
        return self._weighted({name: each / divisors if name == of_accuracy else each for name, each in parts.items()})

    def _reward_of_cut_off(self) -> float:
        return -self.rewards.weights["length"]

    def _note_cut_off(self, thoughts: int) -> None:
        """Add up what is logged of rationales without an answer."""
        for name, value in (
            ("texts", 1), ("completions/clipped_ratio", 1), ("invalid_mass", 1), ("rewards/length/mean", -1),
            ("reward", self._reward_of_cut_off()),
        ):  # fmt: skip
            self._sums[name] += thoughts * value

    def _draw(self, prompts: Sequence[list[int]]) -> list[Thought]:
        """G rationales behind each of B prompts."""
        model = self.accelerator.unwrap_model(self.model)
        opened = [[*prompt, *self.encoder.token_ids(THINK)] for prompt in prompts]
        training = model.training
        model.eval()
        with torch.no_grad(), ordinary_attention(model), torch.compiler.set_stance("force_eager"):
            drawn = sample_answers(
                model, opened, self.num_generations, self.stop_ids, min(RATIONALE_TOKENS, self.rewards.limit),
                self.encoder.tokenizer.pad_token_id, stop_string=(self.encoder.tokenizer, END),
            )  # fmt: skip
        model.train(training)
        return [self._thought(prompts[i // self.num_generations], ids) for i, ids in enumerate(drawn)]

    def _thought(self, prompt: list[int], ids: list[int]) -> Thought:
        text = self.encoder.tokenizer.decode(ids, skip_special_tokens=False)
        opening = len(self.encoder.token_ids(THINK))
        if END not in text:
            return Thought([*prompt, *self.encoder.token_ids(THINK)], ids, finished=False)
        whole = self.encoder.reasoned_ids(prompt, rationale_in(text[: text.index(END)]))
        begin = common_prefix_length(whole, [*prompt, *self.encoder.token_ids(THINK)])
        return Thought(whole[: min(begin, len(prompt) + opening)], whole[begin:], finished=True)

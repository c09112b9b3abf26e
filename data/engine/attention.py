"""Which words a model attends to, and which move its score, where it decides on a label.

Attention is not an explanation: other weights may give the same answer (Jain & Wallace, 2019), and what they show
depends on what one asks of them (Wiegreffe & Pinter, 2019). So beside them stand gradient × input, which says how the
score would change, to first order, were a token's embedding scaled down, and deletion: what the score does when a word
is left out (Li, Monroe & Jurafsky, 2016, "Understanding Neural Networks through Representation Erasure").

Where a label is decided:
- written answers: at the position that predicts the label's own first token, behind prompt, reasoning and the labels
  before it;
- labels that are compared as answers: there as well, each behind the prompt alone, so that labels which begin at once
  have the same attention;
- a decoder's head: at the last token; an encoder's: at the first, or all of them, as it pools.

What is differentiated: the log-probability of the label's own tokens where it is written; of the whole answer, end
token included, where labels are compared; the label's logit where a head reads.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy
import torch
from torch import Tensor

from data.arguments import UserError
from data.encoding import Encoder, is_bidirectional
from data.engine.tree_attention import bare_model
from data.predictions import Prediction
from data.words import Span, word_shares, word_spans

if TYPE_CHECKING:
    from data.engine.predictor import Predictor

OF_TOKENS = ("attention", "rollout", "gradient_x_input")
METHODS = (*OF_TOKENS, "deletion")


@dataclass(frozen=True)
class Explanation:
    """The weights of a text's W words for one label, as they are: not scaled to add up to 1.

    Attributes:
        attention: (W,) mean over layers and heads; the rest of 1 went to instruction, labels and special tokens.
        rollout: (W,) see `rollout_rows`; likewise.
        gradient_x_input: (W,) signed, in nats or logits; above 0 speaks for the label.
        deletion: (W,) signed, see `deletions`; None where it was not asked for, or answers stand behind reasoning.
        by_head: (L, H, W) attention of each layer and head.
        share_on_text: of `OF_TOKENS` -> how much of it went to the text's tokens, 0 to 1; of gradient × input, by size.
    """

    attention: numpy.ndarray
    rollout: numpy.ndarray
    gradient_x_input: numpy.ndarray
    deletion: numpy.ndarray | None
    by_head: numpy.ndarray
    share_on_text: dict[str, float]


@dataclass(frozen=True)
class ReadText:
    """A text as a model reads it.

    Attributes:
        prompt: token ids.
        begin: where in the prompt the text's tokens begin.
        words: where in the text its W words stand, as far as the model gets to read them.
        shares: (T, W) which share of each of the text's tokens belongs to each word.
    """

    prompt: list[int]
    begin: int
    words: list[Span]
    shares: numpy.ndarray

    def of_words(self, weights: numpy.ndarray) -> numpy.ndarray:
        """Weights of all tokens (…, N) -> of the words (…, W)."""
        return self._of_text(weights) @ self.shares

    def share(self, weights: numpy.ndarray) -> float:
        """How much of the weights (N,), by size, is the text's."""
        whole = float(numpy.abs(weights).sum())
        return float(numpy.abs(self._of_text(weights)).sum()) / whole if whole else 0.0

    def _of_text(self, weights: numpy.ndarray) -> numpy.ndarray:
        return weights[..., self.begin : self.begin + len(self.shares)]


@dataclass(frozen=True)
class Decision:
    """Where a model decides on a label.

    Attributes:
        token_ids: (N,) what it reads: the prompt, and for written labels the answer up to this label's end.
        rows: the positions whose attention counts, averaged.
        score: logits, of the positions that `kept` names where they are the vocabulary's -> the label's score.
        kept: positions whose logits the score is made of; None for heads.
    """

    token_ids: list[int]
    rows: list[int]
    score: Callable[[Tensor], Tensor]
    kept: list[int] | None = None


# --- a text and its labels -> what to compute ------------------------------------------------------------------------


def read_text(encoder: Encoder, text: str) -> ReadText:
    """A text's prompt, and which of its tokens are which words.

    Raises:
        UserError: a tokenizer that does not say where its tokens stand in a text.
    """
    tokens = encoder.text_spans(text)
    end = max((end for _, end in tokens), default=0)
    words = [span for span in word_spans(text) if span[0] < end]
    [prompt] = encoder.prompt_ids([text])
    return ReadText(prompt, len(encoder.head_ids), words, word_shares(tokens, words))


def decisions(model, encoder: Encoder, prompt: Sequence[int], prediction: Prediction) -> dict[str, Decision]:
    """Label -> where the model decides on it, for each predicted label.

    Args:
        model: what `prediction` is of.
        encoder: that of its contract.
        prompt: token ids.
        prediction: of the text in the prompt.
    """
    task = encoder.task
    if encoder.objective == "classify":
        rows = _head_rows(model, len(prompt))
        return {
            label: Decision(list(prompt), rows, lambda logits, label=label: logits[task.ids[label]])
            for label in prediction.labels
        }
    if encoder.objective == "score":
        answers = {label: encoder.answer_ids((label,)) for label in prediction.labels}
        return {label: _written(prompt, ids, _own_token(encoder, ids, label), 0) for label, ids in answers.items()}
    before = encoder.reasoned_ids(prompt, prediction.rationale or "") if encoder.cot else list(prompt)
    found = {}
    for place, label in enumerate(prediction.labels):
        pieces = encoder.pieces.later if place else encoder.pieces.first
        piece = pieces[task.ids[label]]
        own = _own_token(encoder, piece, label)
        found[label] = _written(before, piece, own, own)
        before = [*before, *piece]
    return found


def _written(before: Sequence[int], answer: Sequence[int], own: int, counted: int) -> Decision:
    """A label in `answer`, whose own first token is number `own`; its score is that of the tokens from `counted` on."""
    kept = [len(before) + place - 1 for place in range(counted, len(answer))]
    targets = torch.tensor(answer[counted:])

    def score(logits: Tensor) -> Tensor:
        return logits.log_softmax(dim=-1).gather(-1, targets.to(logits.device)[:, None]).sum()

    return Decision([*before, *answer], [len(before) + own - 1], score, kept)


def _own_token(encoder: Encoder, ids: Sequence[int], label: str) -> int:
    """Number of the token that a label begins with: behind a separator, a tag, a space of its own."""
    return max((k for k in range(len(ids)) if label in encoder.decode(ids[k:])), default=0)


def _head_rows(model, length: int) -> list[int]:
    """The positions that a head reads."""
    config = bare_model(model).config
    if not is_bidirectional(config.model_type):
        return [length - 1]
    return list(range(length)) if getattr(config, "classifier_pooling", "cls") == "mean" else [0]


# --- what to compute -> weights of tokens ----------------------------------------------------------------------------


@contextmanager
def weights_shown(model) -> Iterator[None]:
    """Within this context a model computes its attention weights: the fused and packed ways never hold them."""
    model = bare_model(model)
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def weights_of(model, decision: Decision) -> tuple[Tensor, Tensor]:
    """One pass forwards and one back, within `weights_shown`.

    Args:
        model: the model; it may have an adapter.
        decision: where it decides on a label.

    Returns:
        The attention (L, H, N, N) of each layer and head, each row over all tokens that its position sees, and gradient
        × input (N,), signed: each token's embedding times the gradient of the label's score, summed over dimensions.

    Raises:
        UserError: a model that has no such weights in each of its layers.
    """
    from captum.attr import LayerGradientXActivation

    model, found = bare_model(model), []  # what PEFT puts around it does not hand everything on

    def forward(input_ids: Tensor) -> Tensor:
        score, attention = score_and_attention(model, decision, input_ids)
        found.append(attention)
        return score[None]

    input_ids = torch.tensor([decision.token_ids], device=model.device)
    attributed = LayerGradientXActivation(forward, model.get_input_embeddings()).attribute(input_ids)
    return found[0], attributed.detach()[0].float().sum(dim=-1)


def score_and_attention(model, decision: Decision, input_ids: Tensor) -> tuple[Tensor, Tensor]:
    """The label's score, a number in fp32 with a gradient, and the attention (L, H, N, N) without; see `weights_of`.

    Args:
        model: without what PEFT puts around it.
        decision: where it decides on the label.
        input_ids: (1, N) what it reads.
    """
    options = {}
    if decision.kept is not None:
        options = {"logits_to_keep": torch.tensor(decision.kept, device=model.device), "use_cache": False}
    output = model(input_ids=input_ids, output_attentions=True, **options)
    layers, config = output.attentions or (), model.config.get_text_config()
    if len(layers) != config.num_hidden_layers or any(layer is None or layer.dim() != 4 for layer in layers):
        raise UserError(f"--model_path: {config.model_type} models do not give attention weights of all their layers")
    return decision.score(output.logits[0].float()), torch.stack([layer[0].detach() for layer in layers]).float()


def rollout_rows(attention: Tensor, rows: Sequence[int]) -> Tensor:
    """Attention rollout (Abnar & Zuidema, 2020): how much of each input token reaches these positions at the top.

    Each layer passes on half of what a position holds (the residual connection), and half of what it attends to; the
    layers are multiplied. Only the rows that are asked for are multiplied, from the top down.

    Args:
        attention: (L, N, N) mean over heads.
        rows: R positions.

    Returns:
        (R, N); each row adds up to 1.
    """
    found = torch.eye(attention.shape[-1], device=attention.device)[list(rows)]
    for layer in attention.flip(0):
        passed = layer / 2 + torch.eye(len(layer), device=layer.device) / 2
        found = found @ (passed / passed.sum(dim=-1, keepdim=True))
    return found


# --- all together ----------------------------------------------------------------------------------------------------


def explain(
    predictor: "Predictor", text: str, prediction: Prediction, delete: bool = True
) -> tuple[ReadText, dict[str, Explanation]]:
    """The words that count for each predicted label of a text.

    Args:
        predictor: with a model of Transformers in this process. In fp32: in bf16, gradients are mostly rounding.
        text: the text.
        prediction: what `predictor` said of it.
        delete: also score the text without each of its words, which takes as many more passes.

    Raises:
        UserError: a tokenizer that does not say where its tokens stand, or a model without attention weights.
    """
    model, read = predictor.backend.model, read_text(predictor.encoder, text)
    found = decisions(model, predictor.encoder, read.prompt, prediction)
    falls = deletions(predictor, text, read.words) if found and delete and not predictor.encoder.cot else None
    explanations = {}
    with weights_shown(model):
        for label, decision in found.items():
            fall = None if falls is None else falls[:, predictor.task.ids[label]]
            explanations[label] = _explanation(model, read, decision, fall)
    return read, explanations


def deletions(predictor: "Predictor", text: str, words: Sequence[Span]) -> numpy.ndarray:
    """How far each label's score falls when a word is left out of the text: (W, K), above 0 speaks for the label.

    The scores are those of `Predictor.label_scores`: logits of a head, else log-probabilities of the labels as answers
    of their own, in nats.
    """
    texts = [text, *(text[:begin] + text[end:] for begin, end in words)]
    prompts, scores = predictor.encoder.prompt_ids(texts), []
    for start in range(0, len(prompts), predictor.backend.window):
        scores += predictor.backend.scores(prompts[start : start + predictor.backend.window])
    whole, *without = numpy.array(scores).reshape(len(texts), -1)
    return whole - numpy.array(without).reshape(len(words), -1)


def _explanation(model, read: ReadText, decision: Decision, fall: numpy.ndarray | None) -> Explanation:
    attention, gradient = weights_of(model, decision)  # (L, H, N, N), (N,)
    by_head = attention[:, :, decision.rows].mean(dim=2).cpu().numpy()  # (L, H, N)
    rollout = rollout_rows(attention.mean(dim=1), decision.rows).mean(dim=0).cpu().numpy()  # (N,)
    of_tokens = dict(zip(OF_TOKENS, (by_head.mean(axis=(0, 1)), rollout, gradient.cpu().numpy()), strict=True))
    return Explanation(
        **{method: read.of_words(weights) for method, weights in of_tokens.items()},
        deletion=fall,
        by_head=read.of_words(by_head),
        share_on_text={method: read.share(weights) for method, weights in of_tokens.items()},
    )

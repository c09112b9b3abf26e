"""Texts -> logits of a classifier head, on decoders (Qwen, Llama) and encoders (BERT).

Transformers' own `...ForSequenceClassification` classes, with two differences. A decoder's head reads the last real
token, found by the attention mask: Transformers looks for the last token that is not the padding token, which is the
wrong one where a text ends with the token that also pads. And the head may be an MLP.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from data.arguments import UserError
from data.encoding import is_bidirectional

MLP_WIDTHS = (512, 256)
MLP_DROPOUT = 0.1
HEAD_INSIDE = "pooler"  # the part of a head that encoders keep in their base model


class HeadLayer(nn.Linear):
    """A linear layer of `MLPHead`: Xavier-uniform weights, no bias to begin with."""

    def initialize(self) -> None:
        """Draw new weights; those read from a file are left alone."""
        init.xavier_uniform_(self.weight)
        init.zeros_(self.bias)


class MLPHead(nn.Module):
    """hidden -> 512 -> 256 -> classes, ReLU and dropout between them.

    Args:
        width: hidden size of the model.
        classes: number of labels.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(HeadLayer(a, b) for a, b in pairwise((width, *MLP_WIDTHS)))
        self.out = HeadLayer(MLP_WIDTHS[-1], classes)
        self.dropout = nn.Dropout(MLP_DROPOUT)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., width) -> (..., classes)."""
        for layer in self.hidden:
            hidden = self.dropout(layer(hidden).relu())
        return self.out(hidden)


class LastTokenClassifier:
    """Mixin over Transformers' sequence classifiers for decoders: the head reads the last real token of each text."""

    _keep_in_fp32_modules_strict = (
        "score",
    )  # few weights, whose rounding would be the logits' own; as read from files

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,  # in their places, Transformers' own has others
        logits_to_keep: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast:
        """Logits of the head.

        Args:
            input_ids: (B, T) texts padded on either side, or (1, N) a packed row.
            attention_mask: (B, T), 0 where padded; None = nothing is. Of a packed row: its own mask.
            position_ids: as the backbone takes them.
            logits_to_keep: (K,) positions of a packed row that the head reads.
            inputs_embeds, labels: what PEFT hands on; None.
            kwargs: for the backbone.

        Returns:
            `logits` (B, C), or (1, K, C) of a packed row; `attentions` where the backbone was asked for them.
        """
        backbone = getattr(self, self.base_model_prefix)
        output = backbone(
            input_ids, attention_mask=attention_mask, position_ids=position_ids, inputs_embeds=inputs_embeds, **kwargs
        )
        hidden = output.last_hidden_state  # (B, T, H)
        if logits_to_keep is not None:
            hidden = hidden[:, logits_to_keep]  # (1, K, H)
        elif attention_mask is None:
            hidden = hidden[:, -1]  # (B, H)
        else:
            place = torch.arange(attention_mask.shape[1], device=attention_mask.device)
            hidden = hidden[torch.arange(len(hidden), device=hidden.device), (place * attention_mask).argmax(dim=1)]
        with torch.autocast(hidden.device.type, enabled=False):
            logits = self.score(hidden.to(next(self.score.parameters()).dtype))
        return SequenceClassifierOutputWithPast(logits=logits, attentions=output.attentions)


def classifier_class(config, head: str) -> type:
    """The model class for this architecture: Transformers' own, pooled as above, with the head asked for.

    Args:
        config: the model's configuration.
        head: "linear" or "mlp".

    Raises:
        UserError: Transformers has no sequence classifier for it, or its head is no linear layer to be replaced.
    """
    stock = AutoModelForSequenceClassification._model_mapping.get(type(config), None)
    if stock is None:
        raise UserError(f"--objective classify: Transformers has no sequence classifier for {config.model_type} models")

    class WithHead(stock):
        def __init__(self, config) -> None:
            super().__init__(config)
            if head == "mlp":
                name = head_name(self)
                if not isinstance(getattr(self, name), nn.Linear):
                    raise UserError(f"--head mlp: {config.model_type} models have a head of their own; use linear")
                setattr(self, name, MLPHead(getattr(self, name).in_features, config.num_labels))
                self.post_init()

        def _init_weights(self, module) -> None:
            if isinstance(module, HeadLayer):
                module.initialize()
            else:
                super()._init_weights(module)

    bases = (WithHead,) if is_bidirectional(config.model_type) else (LastTokenClassifier, WithHead)
    # saved as `architectures`: a linear head is what Transformers itself loads under this name, an MLP is not
    return type(stock.__name__ + ("" if head == "linear" else "WithMLPHead"), bases, {})


def head_name(model) -> str:
    """The attribute whose outputs are the logits: `score` of decoders, `classifier` of encoders."""
    return "score" if hasattr(model, "score") else "classifier"


def head_names(model) -> list[str]:
    """The modules of a sequence classifier that have to be trained whole, since no pretraining has seen to them.

    These are all that its base model does not have, and what `load_model` had to draw inside it.
    """
    children = ((name, child) for name, child in model.named_children() if name != model.base_model_prefix)
    heads = [name for name, child in children if any(True for _ in child.parameters())]
    return heads + [name for name in getattr(model, "new_modules", ()) if name not in heads]


def init_bias_from_priors(model, priors: Sequence[float], weights: Sequence[float] | None = None) -> None:
    """Let a new head that says yes or no to each label begin with the label's prior probability, whatever the text.

    From zero, where every label has a probability of a half, small models first learn to say no to everything, and at a
    learning rate that is good afterwards stay there (Lin et al., 2017, section 3.3). A head that has learnt already, or
    has no bias, is left as it is.

    Args:
        model: a model of `classifier_class`.
        priors: (K,) share of the training rows that have each label.
        weights: (K,) how much these rows count against the others (`balanced_weights`).
    """
    layers = [layer for layer in getattr(model, head_name(model)).modules() if isinstance(layer, nn.Linear)]
    bias = layers[-1].bias
    if bias is None or bias.any():
        return
    likely = torch.tensor(priors, dtype=torch.float64).clamp(1e-4, 1 - 1e-4)
    odds = likely / (1 - likely) * (1.0 if weights is None else torch.tensor(weights, dtype=torch.float64))
    with torch.no_grad():
        bias.copy_(odds.log())

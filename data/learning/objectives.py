"""What main_SFT.py can have a model learn: the rows, batches and losses of each objective.

generate            the model writes the labels: cross-entropy of the answer's tokens
classify            a head on the model tells the labels apart: cross-entropy, or a yes or no for each label
score               labels are compared as answers, learnt like `generate`, one row for each gold label
score, contrastive  the same comparison is what is learnt: cross-entropy over the candidates' scores
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Sampler

from data.arguments import UserError, is_first_process, one_line
from data.encoding import Encoder, PromptEncoder
from data.engine.packing import pack
from data.engine.padding import padded, padded_rows
from data.engine.scoring import BatchForm, candidate_batch, candidate_scores, text_batch, text_logits
from data.engine.tree_attention import target_log_probs
from data.learning.label_evaluation import LabelEvaluationMixin
from data.loading import Example, TaskRow

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import EvalPrediction

MAX_POSITIVE_WEIGHT = 10.0  # of a rare label in a multi-label task: more makes every text have it


# --- losses ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LossSettings:
    """What is done to a plain cross-entropy.

    Attributes:
        label_weights: (K,) how much texts of each label count (`--class_weights balanced`), None = all the same. In a
            multi-label `classify` task, how much each label's positive texts count against its negative ones.
        focal_gamma: a term with probability p counts (1 - p)^gamma, so what is known already counts little (Lin et
            al., 2017, "Focal Loss for Dense Object Detection"); 0 = plain cross-entropy.
        label_smoothing: share of the target that is spread evenly over all labels.
    """

    label_weights: tuple[float, ...] | None = None
    focal_gamma: float = 0.0
    label_smoothing: float = 0.0


def balanced_weights(examples: Sequence[Example], labels: Sequence[str], yes_or_no: bool) -> tuple[float, ...]:
    """Weights that let each label count the same.

    Args:
        examples: the training rows; n of them, n_c with label c.
        labels: the task's K labels.
        yes_or_no: weigh each label's positive rows against its negative ones: (n - n_c) / n_c, at most
            `MAX_POSITIVE_WEIGHT`. Else weigh rows by label: n / (K n_c), as scikit-learn's "balanced" does; to have
            no label then counts as one more.

    Returns:
        (K,) weights; 1 for a label without a row. Where rows are weighed and some have no label, (K + 1,): theirs is
        the last.
    """
    weights, frequencies = [], label_frequencies(examples, labels)
    if not yes_or_no and (without := sum(not example.labels for example in examples)):
        frequencies.append(without / len(examples))
    for frequency in frequencies:
        if not frequency:
            weights.append(1.0)
        elif yes_or_no:
            weights.append(min((1 - frequency) / frequency, MAX_POSITIVE_WEIGHT))
        else:
            weights.append(1 / (len(frequencies) * frequency))
    return tuple(weights)


def label_frequencies(examples: Sequence[Example], labels: Sequence[str]) -> list[float]:
    """Share of the rows that have each label, (K,)."""
    counts = Counter(label for example in examples for label in example.labels)
    return [counts[label] / len(examples) for label in labels]


def row_weight(labels: Sequence[str], task_labels: Sequence[str], weights: Sequence[float] | None) -> float:
    """How much a row counts: the mean weight of its labels, without any the one behind those, if there is one."""
    if weights is None:
        return 1.0
    if not labels:
        return weights[-1] if len(weights) > len(task_labels) else 1.0
    return sum(weights[task_labels.index(label)] for label in labels) / len(labels)


def answer_losses(log_probs: Tensor, weights: Tensor, settings: LossSettings) -> Tensor:
    """Losses (T,) of an answer's tokens, from their log-probabilities (T,) and their rows' weights (T,)."""
    losses = -log_probs * weights
    return losses * (1 - log_probs.detach().exp()) ** settings.focal_gamma if settings.focal_gamma else losses


def choice_losses(logits: Tensor, gold: Tensor, weights: Tensor, settings: LossSettings) -> Tensor:
    """Losses (B,) of a choice between labels.

    Args:
        logits: (B, K).
        gold: (B, K), 1 for each gold label; several share the target evenly.
        weights: (B,) of the rows.
        settings: see `LossSettings`.
    """
    target = gold / gold.sum(dim=1, keepdim=True)
    losses = functional.cross_entropy(logits, target, reduction="none", label_smoothing=settings.label_smoothing)
    if settings.focal_gamma:
        known = (logits.detach().softmax(dim=1) * target).sum(dim=1)
        losses = losses * (1 - known) ** settings.focal_gamma
    return losses * weights


def yes_or_no_losses(logits: Tensor, gold: Tensor, settings: LossSettings) -> Tensor:
    """Losses (B,) of a yes or no for each label: the mean binary cross-entropy over the labels.

    Args:
        logits, gold: (B, K); see `choice_losses`.
        settings: see `LossSettings`.
    """
    target = gold * (1 - settings.label_smoothing) + settings.label_smoothing / 2
    weights = None if settings.label_weights is None else logits.new_tensor(settings.label_weights)
    losses = functional.binary_cross_entropy_with_logits(logits, target, reduction="none", pos_weight=weights)
    if settings.focal_gamma:
        probability = logits.detach().sigmoid()
        known = torch.where(gold > 0, probability, 1 - probability)
        losses = losses * (1 - known) ** settings.focal_gamma
    return losses.mean(dim=1)


# --- rows -----------------------------------------------------------------------------------------------------------


def answer_rows(
    examples: Sequence[TaskRow], encoder: PromptEncoder, weights: Sequence[float] | None = None
) -> "Dataset":
    """Examples -> a data set of `input_ids` (prompt + answer + end), `labels` (-100 on the prompt), `weight` and
    `id` (the row's).

    Under the `score` objective a row with several labels becomes one row for each of them.

    Raises:
        UserError: an answer longer than inference would let it be.
    """
    from datasets import Dataset

    if encoder.objective == "score":
        examples = [replace(example, labels=(label,)) for example in examples for label in example.labels]
    targets = [encoder.target_ids(e.gold, e.rationale if encoder.cot else None) for e in examples]
    for example, target in zip(examples, targets, strict=True):
        if len(target) > encoder.answer_tokens:
            raise UserError(
                f"row {one_line(example.id, 40)}: its answer takes {len(target)} tokens, while inference gives an "
                f"answer {encoder.answer_tokens} ({encoder.room_in_words}); its text is {one_line(example.text, 60)!r}"
            )
    prompts = prompt_ids(examples, encoder)
    return Dataset.from_dict(
        {
            "input_ids": [p + t for p, t in zip(prompts, targets, strict=True)],
            "labels": [[-100] * len(p) + t for p, t in zip(prompts, targets, strict=True)],
            "weight": [row_weight(e.gold, encoder.task.labels, weights) for e in examples],
            "id": [e.id for e in examples],
        }
    )


def text_rows(examples: Sequence[Example], encoder: Encoder, weights: Sequence[float] | None = None) -> "Dataset":
    """Examples -> a data set of `input_ids` (the prompt), `labels` (id of the first one; 0 where there is none, for
    rows are counted by it), `gold` (K,), `weight` and `id` (the row's)."""
    from datasets import Dataset

    task = encoder.task
    return Dataset.from_dict(
        {
            "input_ids": prompt_ids(examples, encoder),
            "labels": [task.ids[e.labels[0]] if e.labels else 0 for e in examples],
            "gold": [[float(label in e.labels) for label in task.labels] for e in examples],
            "weight": [row_weight(e.labels, task.labels, weights) for e in examples],
            "id": [e.id for e in examples],
        }
    )


def prompt_ids(examples: Sequence[TaskRow], encoder: PromptEncoder) -> list[list[int]]:
    """Prompts of examples; says on the console how many texts do not fit."""
    prompts, cuts = encoder.prompts_and_cuts([example.asked for example in examples])
    if any(cuts) and is_first_process():
        print(f"{sum(cuts)} of {len(examples)} texts are longer than --max_length {encoder.max_length} allows and lose "
              f"{encoder.task.what_is_lost}")  # fmt: skip
    return prompts


# --- batches --------------------------------------------------------------------------------------------------------


class AnswerCollator:
    """`answer_rows` -> a batch padded on the left, so that all answers end in the last column.

    Args:
        pad_id: the padding token.
    """

    def __init__(self, pad_id: int):
        self.pad_id = pad_id

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Returns `input_ids`, `attention_mask` and `labels`, each (B, T), `weight` (B,), and the rows' `ids`."""
        return padded([example["input_ids"] for example in examples], self.pad_id, "left") | {
            "labels": padded_rows([example["labels"] for example in examples], -100, "left"),
            "weight": torch.tensor([example["weight"] for example in examples]),
            "ids": [example["id"] for example in examples],
        }


class PackingCollator:
    """`answer_rows` -> one packed row that holds what they share once, `labels` (B, T), by which targets are counted,
    `weight` (B,), and the rows' `ids`."""

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        is_target = [[label != -100 for label in example["labels"]] for example in examples]
        (row,) = pack([e["input_ids"] for e in examples], is_target)
        weights = torch.tensor([example["weight"] for example in examples])
        labels = padded_rows([example["labels"] for example in examples], -100, "left")
        return {"labels": labels, "row": row, "weight": weights, "ids": [example["id"] for example in examples]}


class TextCollator:
    """`text_rows` -> a batch for the head, or with `candidates` for their comparison; `labels`, `weight` (B,),
    `gold` (B, K), and the rows' `ids`.

    Args:
        form: what the model takes, see `data.engine.scoring.batch_form`.
        pad_id: the padding token.
        candidates: token ids of the K labels as answers; None = the head reads the text.
    """

    def __init__(self, form: BatchForm, pad_id: int, candidates: Sequence[Sequence[int]] | None = None):
        self.form, self.pad_id, self.candidates = form, pad_id, candidates

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        prompts = [example["input_ids"] for example in examples]
        if self.candidates is None:
            batch = text_batch(prompts, self.form, self.pad_id)
        else:
            batch = candidate_batch(prompts, self.candidates, self.form == "packed", self.pad_id)
        batch |= {name: torch.tensor([e[name] for e in examples]) for name in ("labels", "gold", "weight")}
        # what Transformers counts a batch by; it would skip the first
        return batch | {"shift_labels": batch["labels"], "ids": [example["id"] for example in examples]}


def packed_log_probs(model, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Log-probabilities (targets,) of a `PackingCollator`'s batch, and which of its rows (targets,) each is of."""
    row = inputs["row"]
    return target_log_probs(model, row), row.target_sequence


def padded_log_probs(model, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The same of an `AnswerCollator`'s batch."""
    labels = inputs["labels"]  # (B, T)
    answer_length = int((labels != -100).sum(dim=1).max())
    targets = labels[:, -answer_length:]  # (B, A)
    is_target = targets != -100
    logits = model(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        use_cache=False,
        logits_to_keep=answer_length + 1,
    ).logits[:, :-1]  # (B, A, V): each column predicts the next
    log_probs = logits[is_target].float().log_softmax(dim=-1)
    return log_probs.gather(-1, targets[is_target][:, None])[:, 0], is_target.nonzero()[:, 0]


# --- trainers -------------------------------------------------------------------------------------------------------


def mean_loss(evaluated: "EvalPrediction") -> dict[str, float]:
    """Mean over all answer tokens, or all texts, of what `LabelTraining.prediction_step` found of every row."""
    sums, counts = evaluated.predictions, evaluated.label_ids
    return {"loss": float(sums.sum(dtype="float64") / counts.sum())}


class LabelTraining(LabelEvaluationMixin):
    """Mixin over a Transformers `Trainer`: the loss of `generate` and `score`, and label metrics at each evaluation.

    Args:
        loss_settings: see `LossSettings`.
        order: of the training rows; None = at random.
        arguments: see `LabelEvaluationMixin`.
    """

    def __init__(self, *, loss_settings: LossSettings, order: Sampler | None = None, **arguments: Any):
        self.loss_settings, self.order = loss_settings, order
        super().__init__(compute_metrics=mean_loss, **arguments)

    def _get_train_sampler(self, train_dataset=None) -> Sampler | None:
        return self.order or super()._get_train_sampler(train_dataset)

    def compute_loss(
        self, model, inputs, return_outputs=False, num_items_in_batch=None
    ) -> Tensor | tuple[Tensor, dict]:
        """Mean loss over the whole (accumulated, distributed) batch: over answer tokens, or over texts."""
        with self.accelerator.autocast():  # by which `row_inputs` sees the number format
            losses, _ = self.losses(model, inputs)
        if num_items_in_batch is None:
            loss = losses.mean()
        else:
            loss = losses.sum() / torch.as_tensor(num_items_in_batch, device=losses.device)
            if self.args.average_tokens_across_devices:
                loss = loss * self.accelerator.num_processes  # DDP takes the mean of the gradients, not their sum
        return (loss, {}) if return_outputs else loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None) -> tuple[None, Tensor, Tensor]:
        """The sum (B,) of each row's losses, and how many they are (B,), for `mean_loss`.

        Transformers would take the mean of a batch, and then the mean of batches: with answers of unequal length, and
        rows that fill up the last batch of several processes, another figure for each batch size.
        """
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.accelerator.autocast():
            losses, rows = self.losses(model, inputs)
        sums = losses.new_zeros(len(inputs["weight"])).index_add(0, rows, losses)
        return None, sums, rows.bincount(minlength=len(sums))

    def losses(self, model, inputs) -> tuple[Tensor, Tensor]:
        """Losses (targets,) of the answers' tokens, and which row of the batch (targets,) each is of.

        TRL's own projects every position onto the vocabulary; here only those that predict an answer's token are,
        about one in twenty.
        """
        packed = "row" in inputs
        log_probs, rows = (packed_log_probs if packed else padded_log_probs)(model, inputs)
        return answer_losses(log_probs, inputs["weight"][rows], self.loss_settings), rows

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """The loss and the metrics of the validation rows, logged and named `eval_…`."""
        metrics = super().evaluate(*args, **kwargs)  # the loss on the validation rows
        scores = self.label_scores() if self.scores_answers else {}
        if scores:
            self.log(dict(scores))
        return metrics | scores


class ClassifierTraining(LabelTraining):
    """Mixin over a Transformers `Trainer`: the loss of `classify`."""

    def losses(self, model, inputs) -> tuple[Tensor, Tensor]:
        """Losses (B,) of the texts, and their places (B,) in the batch."""
        logits = text_logits(model, inputs)
        rows = torch.arange(len(logits), device=logits.device)
        if self.contract.activation == "sigmoid":
            return yes_or_no_losses(logits, inputs["gold"], self.loss_settings), rows
        return choice_losses(logits, inputs["gold"], inputs["weight"], self.loss_settings), rows


class ContrastiveTraining(LabelTraining):
    """Mixin over a Transformers `Trainer`: the loss of `score` with `--score_loss contrastive`."""

    def losses(self, model, inputs) -> tuple[Tensor, Tensor]:
        """Losses (B,) of the texts, and their places (B,) in the batch."""
        scores = candidate_scores(model, inputs, len(self.contract.task.labels))
        rows = torch.arange(len(scores), device=scores.device)
        return choice_losses(scores, inputs["gold"], inputs["weight"], self.loss_settings), rows

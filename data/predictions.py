"""Prediction: what a model says of one text. (no torch)"""

from dataclasses import dataclass, fields
from typing import Any

NONE = "none"  # the answer that no label applies


@dataclass(frozen=True)
class Prediction:
    """What one completion says.

    Attributes:
        labels: labels of the task, in the task's order, without repeats. Empty when none could be read, and (`valid`
            then) when the answer is that none applies.
        valid: the completion is an answer to the letter: only known labels, each once, nothing around them. Free text
            is one if it came to its end.
        rationale: the reasoning between `<think>` tags, if there is any.
        completion: the text the model wrote.
        confidence: probability of the whole answer under the model, 0 to 1, where the backend measured it; where only
            valid answers may be written, among those (and given the reasoning, if there is any). Of free text, the
            geometric mean of its tokens' probabilities, before temperature and penalties.
        probabilities: label -> probability, where the backend measured them.
        pruned_mass: where labels are written, and have probabilities: how probable the answers are that were not looked
            at. Before a temperature, a label's probability is at least what is given, and at most that much more.
        truncated: the text was longer than `max_length` allows and was cut.
        label_set: the labels of which a promised share is right (`data.conformal`), in the task's order; None where
            nothing was promised.
        abstained: the set has more labels than were allowed, so that `labels` are not to be relied on.
    """

    labels: tuple[str, ...]
    valid: bool
    rationale: str | None = None
    completion: str = ""
    confidence: float | None = None
    probabilities: dict[str, float] | None = None
    truncated: bool = False
    pruned_mass: float | None = None
    label_set: tuple[str, ...] | None = None
    abstained: bool = False

    @property
    def label(self) -> str | None:
        """The first label, or None: the one that counts in a single-label task."""
        return self.labels[0] if self.labels else None

    @property
    def unread(self) -> bool:
        """Nothing could be read of the answer, which is another thing than that no label applies."""
        return not self.labels and not self.valid

    def in_words(self, unread: str) -> str:
        """The labels as a person reads them; `unread` stands for an answer in which there was nothing to read."""
        return ", ".join(self.labels) or (NONE if self.valid else unread)

    @property
    def promised(self) -> dict[str, Any]:
        """The last two fields, where something was promised: files and output without `--coverage` lack them."""
        return {} if self.label_set is None else {"label_set": self.label_set, "abstained": self.abstained}

    @property
    def set_in_words(self) -> str:
        """The set of labels that is promised, or that it has too many to be an answer; "" where there is none."""
        found = ", ".join(self.label_set or ())
        return f"abstains, {len(self.label_set)} labels may be right: {found}" if self.abstained else found

    def as_dict(self) -> dict[str, Any]:
        """All fields by name, but for the last two where nothing was promised."""
        kept = {each.name: getattr(self, each.name) for each in fields(self)[:-2]}
        return kept | self.promised

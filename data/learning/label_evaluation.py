"""Label metrics of the validation rows while a model is trained."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from data.contract import Contract
from data.encoding import PromptEncoder
from data.engine.predictor import Predictor
from data.loading import TaskRow


class LabelEvaluationMixin:
    """Mixin over a Transformers `Trainer`: label metrics of the validation rows, and the best checkpoint kept by them.

    Written labels are greedy and free here, while inference lets a model write valid ones only: so `invalid_rate` says
    whether the form of an answer has been learnt, too. Summaries are written and scored where the best checkpoint is
    chosen by their scores, and only there: it takes minutes.

    A mixin, since importing a trainer takes seconds that a mistyped flag should not cost.

    Args:
        contract: written into each checkpoint, which so becomes a directory to predict from.
        encoder: texts -> the prompts' token ids.
        dev: validation rows.
        predict_batch_size: of them, predicted at once.
        trainer_arguments: the trainer's own.
    """

    def __init__(
        self, *, contract: Contract, encoder: PromptEncoder, dev: Sequence[TaskRow], predict_batch_size: int,
        **trainer_arguments: Any,
    ):  # fmt: skip
        self.contract, self.encoder, self.dev, self.predict_batch_size = contract, encoder, dev, predict_batch_size
        super().__init__(**trainer_arguments)

    @property
    def scores_answers(self) -> bool:
        """Whether answers to the validation rows are written, or their labels told apart, at each evaluation."""
        chosen_by = self.args.metric_for_best_model
        return self.contract.task.sampling is None or chosen_by in self.contract.task.metrics

    def label_scores(self) -> dict[str, float]:
        """Metrics of the validation rows, named `eval_…`; each process answers its share of them.

        Where the weights are spread (FSDP, ZeRO-3), a layer is put together anew for each pass, by all processes: so
        they have to make the same passes, and each answers all rows.
        """
        import torch
        from accelerate.utils import gather_object

        from data.engine.tree_attention import ordinary_attention

        spread = self.is_fsdp_enabled or (
            self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.zero_stage == 3
        )
        mine = self.dev if spread else self.dev[self.args.process_index :: self.args.world_size]
        model = self.accelerator.unwrap_model(self.model)
        training = model.training
        model.eval()
        predictor = Predictor.from_model(model, self.encoder, self.contract, self.predict_batch_size)
        attention = ordinary_attention(model) if self.contract.objective == "generate" else nullcontext()
        # compiled layers would be compiled anew without gradients, which takes longer than it saves
        with self.accelerator.autocast(), attention, torch.compiler.set_stance("force_eager"):
            predictions = predictor.predict_batch([e.asked for e in mine], progress=self.is_world_process_zero())
        model.train(training)
        pairs = list(zip(mine, predictions, strict=True))
        pairs = pairs if spread else gather_object(pairs)
        scores = self.contract.task.score(*zip(*pairs, strict=True))
        return {f"eval_{name}": value for name, value in scores.items() if isinstance(value, float)}

    def _determine_best_metric(self, metrics, trial) -> bool:
        is_best = super()._determine_best_metric(metrics, trial)
        self.control.should_save |= is_best  # Transformers keeps the best only if a checkpoint happens to be due
        return is_best

    def create_model_card(self, *args, **kwargs) -> None:
        """Nothing: TRL's card of a local model links to a model named None and asks it about time machines."""

    def _save(self, output_dir=None, state_dict=None) -> None:
        super()._save(output_dir, state_dict)
        Path(output_dir or self.args.output_dir, "README.md").unlink(missing_ok=True)  # PEFT's card is a blank form
        self.contract.save(output_dir or self.args.output_dir)

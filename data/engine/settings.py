"""How to predict."""

from dataclasses import dataclass, fields
from typing import Literal

from data.arguments import UserError
from data.calibration import Decision
from data.contract import Contract, Precision
from data.encoding import Objective
from data.sampling import Sampling

BackendName = Literal["hf", "vllm", "bert"]


@dataclass(frozen=True)
class PredictionSettings:
    """How to predict: each field is the flag of inference.py of that name.

    Attributes:
        model_path: hub id or directory (see `data.engine.models.load_model`).
        task, label_path, cot, max_length, objective, allow_none: only for an untuned model; a trained one knows
            (`contract_for`).
        backend: see `data.engine.predictor.pick_backend`.
        constrained: let a model that writes its answers write valid ones only.
        probabilities: give those of every label also where (valid) answers are written; None = see
            `weighs_answers`.
        pruned_mass: probability of the answers that need not be looked at for them; None = see
            `data.marginals.bounds`.
        decide: what the labels of written answers are (`Contract.decide`); None = as task.json says.
        batch_size: texts a batch.
        precision: number format of the weights; "auto" = see `data.engine.precision`.
        device: where to put them; None = the first GPU, else the CPU.
        load_in_4bit: keep the weights in 4 bits; not in vLLM.
        compile: compile the model's layers; not in vLLM.
        workers: processes that predict side by side; not in vLLM.
        tensor_parallel_size: GPUs that vLLM spreads a model over.
        seed: of what is drawn, where free text is written.
        max_new_tokens, temperature, top_p, top_k, repetition_penalty: how free text is drawn (`data.sampling`); None =
            as task.json says.
    """

    model_path: str
    task: str | None = None
    label_path: str | None = None
    cot: bool | None = None
    allow_none: bool | None = None
    max_length: int | None = None
    objective: Objective | None = None
    backend: BackendName | None = None
    constrained: bool = True
    probabilities: bool | None = None
    pruned_mass: float | None = None
    decide: Decision | None = None
    batch_size: int = 64
    precision: Precision = "auto"
    device: str | None = None
    load_in_4bit: bool = False
    compile: bool = False
    workers: int = 1
    tensor_parallel_size: int = 1
    seed: int = 42
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None

    @property
    def sampling(self) -> dict[str, float | None]:
        """The fields of `Sampling` among these."""
        return {each.name: getattr(self, each.name) for each in fields(Sampling)}


def weighs_answers(settings: PredictionSettings, contract: Contract) -> bool:
    """Whether to give the labels of written answers probabilities. They cost time, in vLLM several times that of the
    answers alone: there they are given where they are asked for, or decide.

    Raises:
        UserError: they are needed or asked for, but there are none.
    """
    if contract.objective != "generate":
        return False  # labels that are not written have probabilities anyway
    without = None
    if contract.sampling is not None:
        without = f"task {contract.task.name} has no labels"
    elif contract.cot:
        without = "not of answers with reasoning (--cot)"
    elif not settings.constrained:
        without = "are those of valid answers, and --constrained off writes others, too"
    if settings.probabilities and without is not None:
        raise UserError(f"--probabilities: {without}")
    if contract.decide == "thresholds" and (without is not None or settings.probabilities is False):
        off = "--constrained" if settings.probabilities is not False else "--probabilities"
        raise UserError(
            f"{off} off: there are then no probabilities, but thresholds of them decide; give --decide answer"
        )
    if settings.probabilities is None:
        return without is None and (settings.backend != "vllm" or contract.decide == "thresholds")
    return settings.probabilities

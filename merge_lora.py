"""Fold a trained adapter into its base model: a plain model directory that any tool can load.

    # the adapter names its base model; the result goes to outputs/sft-merged
    python merge_lora.py --training_output_dir outputs/sft

    # another copy of the base model, another place, another number format
    python merge_lora.py --training_output_dir outputs/sft --base_model_path models/Qwen2.5-7B-Instruct \\
        --output_dir models/emotions --dtype fp16

Also for adapters of --tuning qlora (folded into the full weights, not into their 4-bit copy), with a classifier head,
and over other adapters. Before the result takes its place it is loaded again and compared with base and adapter on a
few texts, by the scores of their labels, or of the tokens that a summary may begin with; the figures are in
merge_report.json. It keeps the task.json that inference.py obeys.

Hu et al., 2021, "LoRA: Low-Rank Adaptation of Large Language Models": W + alpha / r * B A.
"""

import gc
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy

from data.arguments import UserError, check_output_dir, flag, one_line, run
from data.contract import Contract, contract_for
from data.encoding import PromptEncoder
from data.engine.fingerprints import check_fingerprint
from data.engine.model_files import loading
from data.engine.models import (
    adapter_stack,
    check_model_path,
    load_model,
    load_tokenizer,
    with_adapters,
)
from data.engine.precision import in_fp32, pick_precision
from data.engine.predictor import Predictor
from data.files import (
    ADAPTER_FILE,
    CALIBRATION_FILE,
    TASK_FILE,
    check_free_disk,
    file_hash,
    read_json,
    sample_hash,
    write_json,
)
from data.loading import load_examples
from data.replacing import alone_beside, check_place, file_sizes, is_whole, settle, staging_folder, take_place

if TYPE_CHECKING:
    from peft import PeftModel

REPORT = "merge_report.json"
REPORT_FIELDS = {"base_model": str, "adapters": list, "dtype": str, "samples": int}
SAMPLES = 32  # rows of --test_data_path that are compared
MOST_PROBABLE = 100  # tokens whose log-probabilities are compared where answers are free text
# how far scores may move in the mean: what rounding W + B A to this format does to them, and room
TOLERANCE = {"fp32": 1e-3, "fp16": 0.1, "bf16": 0.5}


@dataclass
class Args:
    training_output_dir: str | None = flag(None, "the run whose adapter is merged, or one of its checkpoints")
    base_model_path: str | None = flag(None, "its base model, hub id or directory (default: the one it names)")
    output_dir: str | None = flag(None, "where the merged model goes (default: <training_output_dir>-merged)")
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = flag("auto", "number format; auto = that of the base model")
    test_data_path: str | None = flag(
        None, f"file whose first {SAMPLES} texts are compared before and after (default: a few texts of ours)"
    )
    from_quantized: bool = flag(
        False, "merge a qlora adapter into the base as it was trained on: rounded to 4 bits, and back"
    )
    overwrite: bool = flag(False, "replace the merged model in --output_dir")
    device: str = flag("cpu", "where to merge: cpu, cuda, cuda:1 ...")

    def __post_init__(self):
        if self.training_output_dir is None:
            raise UserError("--training_output_dir is needed: the run whose adapter is to be merged")
        if self.output_dir is None:
            run_dir = Path(self.training_output_dir)
            self.output_dir = f"{run_dir if run_dir.name not in ('', '..') else run_dir.resolve()}-merged"
        check_output_dir(self.output_dir)


def check_paths(args: Args) -> None:
    """Raise a `UserError` naming the first path that cannot be used."""
    run_dir, target = Path(args.training_output_dir), Path(args.output_dir).resolve()
    if not run_dir.is_dir():
        raise UserError(f"--training_output_dir {run_dir}: no such directory")
    if not (run_dir / ADAPTER_FILE).is_file():
        what = "holds a whole model: nothing to merge" if (run_dir / "config.json").is_file() else "holds no adapter"
        raise UserError(f"--training_output_dir {run_dir}: {what}")
    check_place(target)
    if args.base_model_path is not None:
        try:
            check_model_path(args.base_model_path)
        except UserError as error:
            raise UserError(str(error).replace("--model_path", "--base_model_path")) from error
    for part in model_stack(args):
        for folder in (target, staging_folder(target)):
            if Path(part).exists() and Path(part).resolve().is_relative_to(folder):
                raise UserError(f"--output_dir {args.output_dir}: holds what is to be merged ({part})")


def check_target(target: Path, overwrite: bool) -> None:
    """Raise a `UserError` where something stands in `target` that is not to be replaced.

    That is anything without `--overwrite`, and with it all but what a merge left there and predictions of that model.
    """
    if not target.exists() or not any(target.iterdir()):
        return
    if not overwrite:
        raise UserError(f"--output_dir {target}: is not empty; choose another, or replace it with --overwrite")
    refused = "--overwrite replaces merged models only; choose another folder, or remove this one first"
    if not (target / REPORT).is_file():
        held = ", ".join(sorted(path.name for path in target.iterdir())[:4])
        raise UserError(f"--output_dir {target}: holds no {REPORT} but {one_line(held)}; {refused}")
    try:
        report = read_merge_report(target)
    except UserError as error:
        raise UserError(f"--output_dir {target}: {error}; {refused}") from error
    ours = (
        {REPORT, CALIBRATION_FILE, *report["files"]}
        if "files" in report
        else {path.name for path in target.iterdir() if path.is_file()}
    )
    for path in sorted(target.iterdir()):
        predictions = any(path.glob("predictions*.jsonl")) and not any(path.rglob(TASK_FILE))
        if path.name not in ours and not predictions and not (path.name.startswith(".") and path.suffix == ".lock"):
            raise UserError(f"--output_dir {target}: holds {one_line(path.name)!r}, which no merge wrote; {refused}")


def read_merge_report(directory: Path) -> dict[str, Any]:
    """The report that a merge left in `directory`.

    Raises:
        UserError: it is not whole.
    """
    report = read_json(directory / REPORT, fields=REPORT_FIELDS | {"files": dict})
    if missing := [name for name in REPORT_FIELDS if name not in report]:
        raise UserError(f"{directory / REPORT}: has no {missing[0]}")
    return report


def model_stack(args: Args) -> list[str]:
    """The whole model, and the adapters over it from the lowest."""
    if args.base_model_path is None:
        return adapter_stack(args.training_output_dir)
    return [*adapter_stack(args.base_model_path), args.training_output_dir]


def number_format(args: Args, base: str) -> str:
    """`--dtype`, or that of the base model: "bf16", "fp16" or "fp32"."""
    if args.dtype != "auto":
        return args.dtype
    import torch
    from transformers import AutoConfig

    names = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
    with loading(f"{base}: no configuration"):
        return names.get(AutoConfig.from_pretrained(base, trust_remote_code=False).dtype, "bf16")


def merge_of(args: Args, precision: str) -> dict[str, Any]:
    """What decides the merged weights: models, their files' hashes, number formats."""
    base, *adapters = stack = model_stack(args)
    small = [Path(part) / name for part in adapters for name in (ADAPTER_FILE, TASK_FILE, "adapter_model.safetensors")]
    hashes = {str(path): file_hash(path) for path in small if path.is_file()}
    hashes |= {str(path): sample_hash(path) for path in sorted(Path(base).glob("*.safetensors"))}
    return {"base_model": stack[0], "adapters": adapters, "dtype": precision, "from_quantized": args.from_quantized,
            "inputs": hashes}  # fmt: skip


def load_stack(args: Args, contract: Contract, precision: str, pad_token_id: int) -> "PeftModel":
    """The base model with the adapters over it, the last one not folded in yet.

    Args:
        args: the flags.
        contract: that of the last adapter.
        precision: "bf16", "fp16" or "fp32".
        pad_token_id: written into the model's settings, since plain Transformers needs it for batches of a classifier.
    """
    base, *adapters = model_stack(args)
    model = load_model(base, precision, args.device, contract=contract, load_in_4bit=args.from_quantized, new_head=True)
    if contract.objective == "classify":
        model.config.pad_token_id = pad_token_id
    if not args.from_quantized:
        return with_adapters(model, base, adapters, contract)
    if len(adapters) == 1:
        other = f"{args.training_output_dir}: was trained on another base model than {base}"
        check_fingerprint(contract.base_fingerprint, model, other)
    # rounded to 4 bits and back, its matrices are no longer those of the fingerprint
    return with_adapters(model.dequantize(), base, adapters)


def sample_texts(args: Args, contract: Contract) -> list[Any]:
    """The texts on which the model is compared before and after."""
    if args.test_data_path is None:
        return list(contract.task.demo)
    examples = load_examples(args.test_data_path, contract.task, "--test_data_path", labels_required=False)
    return [example.asked for example in examples[:SAMPLES]]


def read_samples(
    model, encoder: PromptEncoder, contract: Contract, texts: Sequence[Any], wide: bool
) -> tuple[numpy.ndarray, list[tuple]]:
    """Scores and what is predicted from them; `wide`: computed in fp32.

    Returns:
        Scores of every label (texts, labels), and the labels predicted. Where answers are free text, log-probabilities
        of an answer's first token (texts, vocabulary), and the most probable one.
    """
    from data.engine.tree_attention import enable_packing

    if contract.sampling is not None:
        with in_fp32(model) if wide else nullcontext():
            scores = first_tokens(model, encoder.prompt_ids(texts))
        return scores, [(token,) for token in scores.argmax(axis=1).tolist()]
    enable_packing(model, contract.max_length)
    predictor = Predictor.from_model(model, encoder, contract, constrained=True)
    with in_fp32(model) if wide else nullcontext():
        return predictor.label_scores(texts), [prediction.labels for prediction in predictor.predict_batch(texts)]


def first_tokens(model, prompts: Sequence[Sequence[int]]) -> numpy.ndarray:
    """Log-probabilities (B, vocabulary) of the token behind each of B prompts, which are computed one by one."""
    import torch

    rows = []
    with torch.inference_mode():
        for prompt in prompts:
            ids = torch.tensor([prompt], device=model.device)
            rows.append(model(input_ids=ids, logits_to_keep=1).logits[0, -1].float().log_softmax(dim=-1).cpu())
    return torch.stack(rows).numpy()


def most_probable(before, after) -> list[tuple[numpy.ndarray, list[tuple]]]:
    """Both with the scores of those tokens alone that were the most probable before: the others are never written."""
    tokens = numpy.argsort(-before[0], axis=1)[:, :MOST_PROBABLE]
    return [(numpy.take_along_axis(scores, tokens, axis=1), predicted) for scores, predicted in (before, after)]


def compare(before, after, precision: str) -> dict[str, Any]:
    """What merging changed.

    Args:
        before, after: scores (texts, labels or tokens) and predictions, see `read_samples`.
        precision: number format of the merged weights.

    Raises:
        UserError: more than rounding explains.
    """
    if not numpy.isfinite(before[0]).all():
        raise UserError("base and adapter give scores that are not finite numbers; nothing was written")
    difference = abs(before[0] - after[0])
    report = {
        "samples": len(before[1]),
        "max_score_difference": float(difference.max()),
        "mean_score_difference": float(difference.mean()),
        "tolerance": TOLERANCE[precision],
        "equal_predictions": sum(a == b for a, b in zip(before[1], after[1], strict=True)),
    }
    if not report["mean_score_difference"] <= TOLERANCE[precision]:  # "not <=" also catches nan
        raise UserError(
            f"the merged model is another than base and adapter: its scores differ by "
            f"{report['mean_score_difference']:.3g} in the mean, rounding to {precision} explains "
            f"{TOLERANCE[precision]}; nothing was written"
        )
    return report


def write_model(model, tokenizer, contract: Contract, folder: Path) -> None:
    """A model directory that needs no adapter, in `folder`.

    Raises:
        UserError: it does not fit on the disk.
    """
    from safetensors import SafetensorError

    needed = sum(weight.numel() * weight.element_size() for weight in model.state_dict().values())
    check_free_disk(folder, needed)
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except SafetensorError as error:  # which hides the system's errors
        raise UserError(f"{folder}: cannot be written ({one_line(error)})") from error
    contract.save(folder)


def merge(args: Args, folder: Path) -> dict[str, Any]:
    """Write the merged model to `folder`, with its report at the very end.

    Returns:
        The report.
    """
    from data.engine.load_checks import check_finite

    begin = time.perf_counter()
    contract = contract_for(args.training_output_dir)
    plain = replace(contract, base_fingerprint=None)  # which is of the model below an adapter
    texts = sample_texts(args, contract)
    stack = model_stack(args)
    precision = number_format(args, stack[0])
    report = merge_of(args, precision)
    tokenizer = load_tokenizer(args.training_output_dir)
    encoder = contract.encoder(tokenizer)
    print(f"merging {' + '.join(stack)} in {precision}")
    model = load_stack(args, contract, precision, tokenizer.pad_token_id)
    wide = precision != "fp32" and pick_precision("auto", stack[0], args.device).format == "fp32"
    before = read_samples(model, encoder, contract, texts, wide)
    model = model.merge_and_unload(progressbar=True)
    weights = {name: weight for name, weight in model.state_dict().items() if weight.is_floating_point()}
    check_finite({name: weight for name, weight in weights.items() if weight.numel()}, "the merged model")
    write_model(model, tokenizer, plain, folder)
    del model
    gc.collect()  # two models may not fit
    merged = load_model(str(folder), precision, args.device, contract=plain)
    after = read_samples(merged, encoder, plain, texts, wide)
    if contract.sampling is not None:
        before, after = most_probable(before, after)
    report |= compare(before, after, precision)
    report |= {"seconds": round(time.perf_counter() - begin, 1), "files": file_sizes(folder)}
    write_json(folder / REPORT, report)
    return report


def is_same_merge(args: Args, directory: Path) -> bool:
    """Whether the merged model in `directory` is what these flags ask for."""
    report = read_merge_report(directory)
    asked = merge_of(args, number_format(args, model_stack(args)[0]))
    return all(report.get(name) == value for name, value in asked.items())


def main(args: Args) -> None:
    check_paths(args)
    target = Path(args.output_dir).resolve()  # where it is a link, what it leads to is replaced
    with alone_beside(target) as staging:
        settle(target, REPORT)
        if not args.overwrite and is_whole(target, REPORT) and is_same_merge(args, target):
            print(f"{args.output_dir}: holds this merged model already")
            return
        check_target(target, args.overwrite)
        (staging / "model").mkdir()
        report = merge(args, staging / "model")
        take_place(staging, target, REPORT)
    print(
        f"before and after: {report['equal_predictions']} of {report['samples']} predictions equal, scores differ by "
        f"{report['mean_score_difference']:.3g} in the mean, {report['max_score_difference']:.3g} at most"
    )
    print(f"written to {args.output_dir}")


if __name__ == "__main__":
    # Edit here, or pass the same names as flags: a flag wins.
    settings = dict(
        # base_model_path="models/Qwen2.5-7B-Instruct",
        # training_output_dir="outputs/sft",
    )
    run(main, Args, settings)

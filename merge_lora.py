"""Fold a trained adapter into its base model: a plain model directory that any tool can load.

    # the adapter names its base model; the result goes to outputs/sft-merged
    python merge_lora.py --training_output_dir outputs/sft

    # another copy of the base model, another place, another number format
    python merge_lora.py --training_output_dir outputs/sft --base_model_path models/Qwen2.5-7B-Instruct \\
        --output_dir models/emotions --dtype fp16

Also for adapters of --tuning qlora (folded into the full weights, not into their 4-bit copy), with a classifier head,
and over other adapters. Before the result takes its place it is loaded again and compared with base and adapter on a
few texts; the figures are in merge_report.json. It keeps the task.json that inference.py obeys.

Hu et al., 2021, "LoRA: Low-Rank Adaptation of Large Language Models": W + alpha / r * B A.
"""

import gc
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy

from data.arguments import UserError, check_output_dir, flag, run
from data.contract import Contract, contract_for
from data.encoding import Encoder
from data.engine.fingerprints import check_fingerprint
from data.engine.model_files import loading
from data.engine.models import (
    adapter_stack,
    check_model_path,
    load_model,
    load_tokenizer,
    with_adapters,
)
from data.engine.predictor import DEMO_TEXTS, Predictor
from data.files import ADAPTER_FILE, write_json
from data.loading import load_examples

if TYPE_CHECKING:
    from peft import PeftModel

REPORT = "merge_report.json"
SAMPLES = 32  # rows of --test_data_path that are compared
# how far the scores of labels may move in the mean: what rounding W + B A to this format does to them, and room
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
    overwrite: bool = flag(False, "replace what is in --output_dir")
    device: str = flag("cpu", "where to merge: cpu, cuda, cuda:1 ...")

    def __post_init__(self):
        if self.training_output_dir is None:
            raise UserError("--training_output_dir is needed: the run whose adapter is to be merged")
        self.output_dir = self.output_dir or str(Path(self.training_output_dir)) + "-merged"
        check_output_dir(self.output_dir)


def check_paths(args: Args) -> None:
    """Raise a `UserError` naming the first path that cannot be used."""
    run_dir, target = Path(args.training_output_dir), Path(args.output_dir)
    if not run_dir.is_dir():
        raise UserError(f"--training_output_dir {run_dir}: no such directory")
    if not (run_dir / ADAPTER_FILE).is_file():
        what = "holds a whole model: nothing to merge" if (run_dir / "config.json").is_file() else "holds no adapter"
        raise UserError(f"--training_output_dir {run_dir}: {what}")
    if args.base_model_path is not None:
        try:
            check_model_path(args.base_model_path)
        except UserError as error:
            raise UserError(str(error).replace("--model_path", "--base_model_path")) from error
    stack = model_stack(args)
    if target.exists() and any(target.iterdir()) and not args.overwrite:
        raise UserError(f"--output_dir {target}: is not empty; choose another, or replace it with --overwrite")
    for part in stack:
        if Path(part).exists() and Path(part).resolve().is_relative_to(target.resolve()):
            raise UserError(f"--output_dir {target}: holds what is to be merged ({part})")


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


def sample_texts(args: Args, contract: Contract) -> list[str]:
    """The texts on which the model is compared before and after."""
    if args.test_data_path is None:
        return list(DEMO_TEXTS)
    examples = load_examples(args.test_data_path, contract.task, "--test_data_path", labels_required=False)
    return [example.text for example in examples[:SAMPLES]]


def read_samples(
    model, encoder: Encoder, contract: Contract, texts: Sequence[str]
) -> tuple[numpy.ndarray, list[tuple[str, ...]]]:
    """Scores of every label (texts, labels), and the labels predicted."""
    from data.engine.tree_attention import enable_packing

    enable_packing(model, contract.max_length)
    predictor = Predictor.from_model(model, encoder, contract, constrained=True)
    return predictor.label_scores(texts), [prediction.labels for prediction in predictor.predict_batch(texts)]


def compare(before, after, precision: str) -> dict[str, Any]:
    """What merging changed.

    Args:
        before, after: scores (texts, labels) and labels, see `read_samples`.
        precision: number format of the merged weights.

    Raises:
        UserError: more than rounding explains.
    """
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
            f"the merged model is another than base and adapter: scores of labels differ by "
            f"{report['mean_score_difference']:.3g} in the mean, rounding to {precision} explains "
            f"{TOLERANCE[precision]}; nothing was written"
        )
    return report


@contextmanager
def folder_in_the_making(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its place when the block ends without an error, else vanishes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.", ignore_cleanup_errors=True) as made:
        folder = Path(made) / "model"
        folder.mkdir()
        yield folder
        if target.exists():
            target.rename(Path(made) / "replaced")
        os.replace(folder, target)


def main(args: Args) -> None:
    check_paths(args)
    begin = time.perf_counter()
    contract = contract_for(args.training_output_dir)
    texts = sample_texts(args, contract)
    stack = model_stack(args)
    precision = number_format(args, stack[0])
    tokenizer = load_tokenizer(args.training_output_dir)
    encoder = contract.encoder(tokenizer)
    print(f"merging {' + '.join(stack)} in {precision}")
    model = load_stack(args, contract, precision, tokenizer.pad_token_id)
    before = read_samples(model, encoder, contract, texts)
    model = model.merge_and_unload(progressbar=True)
    with folder_in_the_making(Path(args.output_dir)) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        contract = replace(contract, base_fingerprint=None)
        contract.save(folder)
        del model
        gc.collect()  # two models may not fit
        merged = load_model(str(folder), precision, args.device, contract=contract)
        report = compare(before, read_samples(merged, encoder, contract, texts), precision)
        report = {"base_model": stack[0], "adapters": stack[1:], "dtype": precision} | report
        write_json(folder / REPORT, report | {"seconds": round(time.perf_counter() - begin, 1)})
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

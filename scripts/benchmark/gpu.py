"""Models of real sizes with random weights: training steps, reinforcement and answers, as a GPU computes them."""

import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

from data.arguments import check_at_least, flag
from data.encoding import Encoder
from data.engine.models import dtype_of, load_tokenizer, pick_device
from data.files import read_json, write_json
from data.loading import load_examples
from data.tasks import BUILT_IN_TASKS
from scripts.benchmark.grpo import GrpoArgs, grpo
from scripts.benchmark.predict import InferenceArgs, inference
from scripts.benchmark.race import CASES, Case, TrainingRaceArgs, check_known, checked, train_file
from scripts.benchmark.sft import CONTESTANTS, SftArgs, sft

ROOT = Path(__file__).parents[2]
SIZES = {  # of Qwen2Config; the figures of the published configurations
    "qwen2.5-1.5b": {
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
        "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
    },
    "qwen2.5-7b": {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
    },
    "tiny": {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 0, "tie_word_embeddings": True,
    },
}  # fmt: skip
LONGER = {  # texts of so many tokens with the instruction before them, and texts a step
    "512-tokens": (512, 8),
    "2048-tokens": (2048, 2),
}
SHORT = ("28-labels", "4-labels")
PARTS = ("sft", "qlora", "grpo", "inference")


@dataclass
class GpuArgs(TrainingRaceArgs):
    model_path: str | None = flag(None, "whose tokenizer: hub id or directory")
    contestants: list[str] = flag(["trl", "plain", "flex", "dense", "spans"], "who takes part in training steps")
    sizes: list[str] = flag(["qwen2.5-1.5b"], f"which of {', '.join(SIZES)}")
    parts: list[str] = flag(list(PARTS), f"which of {', '.join(PARTS)}")
    cases: list[str] = flag([*SHORT, *LONGER], f"which of {', '.join([*SHORT, *LONGER])}")
    batch_size: int = flag(32, "short texts of a training step")
    start_steps: int = flag(100, "steps that teach the form of an answer, before reinforcement and inference")
    rows: int = flag(1024, "texts that are answered")

    def __post_init__(self):
        super().__post_init__()
        check_known(self, contestants=CONTESTANTS, sizes=SIZES, parts=PARTS, cases=[*SHORT, *LONGER])
        check_at_least(self, batch_size=1, start_steps=1, rows=8)


def random_model(size: str, tokenizer_path: str, folder: Path, seed: int) -> None:
    """Write a model with the configuration of `size`, random weights and the tokenizer of another into `folder`."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    tokenizer = load_tokenizer(tokenizer_path)
    sizes = SIZES[size] | {"vocab_size": max(SIZES[size]["vocab_size"], len(tokenizer))}
    config = Qwen2Config(
        **sizes, max_position_embeddings=32768, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(seed)
    with torch.device(pick_device()):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype_of("bf16"), trust_remote_code=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def longer_texts(args: GpuArgs, name: str, folder: Path) -> Case:
    """Write training rows whose prompts have as many tokens as `LONGER` says: texts behind each other."""
    tokens, texts = LONGER[name]
    case = replace(CASES["4-labels"], what=f"texts of {tokens} tokens", folder=name, batch_size=texts)
    task, tokenizer = BUILT_IN_TASKS[case.task], load_tokenizer(args.model_path)
    examples = load_examples(train_file(args.data_dir, CASES["4-labels"]), task)
    room = tokens - len(Encoder(task, tokenizer, max_length=tokens).prompt_ids([""])[0])
    rows, ids = [], []
    for example in cycle(examples):
        ids += tokenizer(example.text + " ", add_special_tokens=False)["input_ids"]
        if len(ids) >= room:
            text = " ".join(tokenizer.decode(ids[:room]).split())
            rows.append(f"{text}\t{','.join(str(task.labels.index(label)) for label in example.labels)}\t{len(rows)}")
            ids = []
        if len(rows) == 16 * texts:
            break
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "train.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return case


def stage(*words: Any) -> None:
    """Run a stage as users do.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True)


def start_on(args: GpuArgs, model: Path, case: str, folder: Path) -> tuple[Path, Path]:
    """The model after `--start_steps` of main_SFT.py, and merged: random weights know no form of an answer."""
    run, merged = folder / "start", folder / "start-merged"
    stage(
        "main_SFT.py", "--task", CASES[case].task, "--train_data_path", train_file(args.data_dir, CASES[case]),
        "--model_path", model, "--output_dir", run, "--tuning", "lora", "--objective", "generate", "--val_ratio", 0,
        "--max_steps", args.start_steps, "--batch_size", 32, "--learning_rate", 1e-3, "--seed", args.seed,
        "--precision", args.precision,
    )  # fmt: skip
    stage("merge_lora.py", "--training_output_dir", run, "--output_dir", merged, "--device", pick_device())
    return run, merged


def shared(args: GpuArgs, **others: Any) -> dict[str, Any]:
    """The flags that all benchmarks have."""
    names = ("data_dir", "rounds", "warmup", "precision", "peer_precision")
    return {name: getattr(args, name) for name in names} | others


def measured(args: GpuArgs, size: str) -> dict[str, Any]:
    """All parts on a model of one size; what each of them wrote."""
    folder = Path(args.output_dir) / size
    model, results = folder / "model", {}
    if not model.is_dir():
        random_model(size, args.model_path, folder / "half", args.seed)
        (folder / "half").rename(model)  # a run that is killed leaves no half model in its place
    short = {n: replace(CASES[n], batch_size=args.batch_size) for n in args.cases if n in SHORT}
    longer = {name: longer_texts(args, name, folder / "data") for name in args.cases if name in LONGER}
    training = shared(args, model_path=str(model), seed=args.seed, lora_r=args.lora_r)
    for part in [part for part in ("sft", "qlora") if part in args.parts]:
        settings = {"contestants": args.contestants, "tuning": "lora" if part == "sft" else "qlora"}
        for kind, cases in (("short", short), ("longer", longer)):
            if not cases:
                continue
            data = {"data_dir": str(folder / "data")} if cases is longer else {}
            out = {"output_dir": str(folder / part / kind), "max_length": 512 if kind == "short" else 4096}
            sft(SftArgs(**training | settings | data | out), cases)
            results[f"{part} {kind}"] = read_json(Path(out["output_dir"]) / "benchmark_sft.json")
    for case in short if {"grpo", "inference"} & set(args.parts) else ():
        out = folder / case
        run, merged = start_on(args, model, case, out)
        if "grpo" in args.parts:
            grpo(GrpoArgs(**training | {"model_path": str(run), "output_dir": str(out), "case": case}))
            results[f"grpo {case}"] = read_json(out / "benchmark_grpo.json")
        if "inference" in args.parts:
            flags = shared(args, model_path=str(merged), output_dir=str(out), case=case, rows=args.rows)
            inference(InferenceArgs(**flags, contestants=["generate", "free", "bare", "ours"], batch_size=128))
            results[f"inference {case}"] = read_json(out / f"benchmark_inference_{case}.json")
    return results


def gpu(args: GpuArgs) -> None:
    import torch

    args = checked(args)
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "none: on the CPU"
    print(f"GPU: {card}, PyTorch {torch.__version__}", flush=True)
    results = {"gpu": card, "torch": torch.__version__, "sizes": {}}
    for size in args.sizes:
        results["sizes"][size] = measured(args, size)
        write_json(Path(args.output_dir) / "benchmark_gpu.json", results)
    print(f"written to {Path(args.output_dir) / 'benchmark_gpu.json'}")

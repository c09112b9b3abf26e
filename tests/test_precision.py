"""--precision auto: bf16 where this machine multiplies it faster, and one choice for all of a run."""

import json
import os
import platform
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertModel, Qwen2Config, Qwen2ForCausalLM

import main_SFT
from data.arguments import UserError
from data.contract import Contract
from data.engine import precision
from data.engine.models import dtype_of, load_model
from data.engine.precision import Choice, in_fp32, pick_precision
from data.engine.predictor import Predictor
from data.learning import trainers
from data.prediction_files import PredictionFile
from data.tasks import BUILT_IN_TASKS
from inference import Args, main
from tests.conftest import ROOT, SAMPLE
from tests.test_checkpoints import KillAfterSave, run_until, sft_args

LAPTOP = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}


@pytest.fixture
def measured(monkeypatch):
    """Has the machine multiply at given rates."""

    def set_rates(**rates: float) -> None:
        precision._faster.cache_clear()
        monkeypatch.setattr(precision, "_rates", lambda *sizes: rates)

    yield set_rates
    precision._faster.cache_clear()


@pytest.mark.parametrize(
    ("rates", "chosen"),
    [
        (dict(fp32=145, bf16=38), "fp32"),  # a processor with AVX2
        (dict(fp32=100, bf16=110), "fp32"),  # not worth its rounding
        (dict(fp32=190, bf16=430), "bf16"),  # AVX-512 with its bf16 instructions
        (dict(fp32=190), "fp32"),  # no bf16 at all
    ],
)
def test_auto_takes_the_faster_format(tiny_model_dir, measured, rates, chosen):
    measured(**rates)
    choice = pick_precision("auto", str(tiny_model_dir), "cpu")
    assert choice.format == chosen
    assert all(f"{rate} " in choice.reason for rate in rates.values() if len(rates) > 1)


def test_a_format_that_is_asked_for_is_taken(tiny_model_dir):
    for asked in ("bf16", "fp16", "fp32"):
        assert pick_precision(asked, str(tiny_model_dir), "cpu") == Choice(asked)
    with pytest.raises(UserError, match="--precision fp16: needs a GPU to train; use auto, bf16 or fp32"):
        pick_precision("fp16", str(tiny_model_dir), "cpu", trains=True)
    with pytest.raises(UserError, match="--precision half: must be auto, bf16, fp16, fp32"):
        Predictor(str(tiny_model_dir), "emotion", precision="half")


def test_sizes_are_those_of_the_model_below_an_adapter(tiny_model_dir, tmp_path):
    hidden, intermediate, parameters = precision._sizes(str(tiny_model_dir))
    assert (hidden, intermediate) == (32, 64)
    model = load_model(str(tiny_model_dir), "fp32", "cpu")
    assert parameters == sum(p.numel() for p in model.parameters())
    get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"])).save_pretrained(tmp_path)
    assert precision._sizes(str(tmp_path)) == (hidden, intermediate, parameters)
    BertModel(BertConfig(vocab_size=20, hidden_size=12, num_attention_heads=2, intermediate_size=36)).save_pretrained(
        tmp_path / "bert"
    )
    assert precision._sizes(str(tmp_path / "bert"))[:2] == (12, 36)


def test_weights_that_would_fill_the_memory_stay_in_bf16(tiny_model_dir, measured, monkeypatch):
    measured(fp32=145, bf16=38)
    _, _, parameters = precision._sizes(str(tiny_model_dir))
    enough = 4 * parameters / precision.MOST_WEIGHTS + 1
    memory = precision.psutil.virtual_memory()
    monkeypatch.setattr(precision.psutil, "virtual_memory", lambda: memory._replace(total=enough))
    assert pick_precision("auto", str(tiny_model_dir), "cpu").format == "fp32"
    monkeypatch.setattr(precision.psutil, "virtual_memory", lambda: memory._replace(total=enough - 2))
    assert pick_precision("auto", str(tiny_model_dir), "cpu").format == "bf16"


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="caps x86's instructions")
def test_a_laptop_without_avx512_takes_fp32(tmp_path):
    """Really measured: AVX2 has no bf16, whatever the processor under the cap is."""
    config = dict(model_type="llama", hidden_size=576, intermediate_size=1536)  # SmolLM2's
    (tmp_path / "config.json").write_text(json.dumps(config))
    code = f"from data.engine.precision import pick_precision; pick_precision('auto', {str(tmp_path)!r}, 'cpu').say()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | LAPTOP, capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"precision fp32: this processor multiplies \d+ GFLOP/s in it, \d+ in bf16\n", done.stdout)


def test_a_format_is_measured_once_in_a_process(tiny_model_dir, measured, monkeypatch):
    calls = []
    measured(fp32=1, bf16=2)
    monkeypatch.setattr(precision, "_rates", lambda *sizes: calls.append(sizes) or dict(fp32=1, bf16=2))
    for _ in range(3):
        pick_precision("auto", str(tiny_model_dir), "cpu")
    assert calls == [(32, 64, "cpu")]


def test_a_resumed_run_keeps_its_format(tiny_model_dir, tmp_path, measured, capsys):
    measured(fp32=145, bf16=38)
    args = replace(sft_args(tiny_model_dir, tmp_path), precision="auto")
    run_until(2, args, KillAfterSave)
    assert capsys.readouterr().out.count("precision fp32: this processor multiplies 145 GFLOP/s in it, 38 in bf16") == 1
    assert json.loads((tmp_path / "run/args.json").read_text())["precision"] == "fp32"
    measured(fp32=190, bf16=430)  # another machine
    with pytest.raises(UserError, match=r"--precision bf16: the run in .* began with fp32"):
        main_SFT.main(replace(args, precision="bf16"))
    main_SFT.main(args)
    results = json.loads((tmp_path / "run/train_results.json").read_text())
    assert results["precision"] == Contract.load(tmp_path / "run").precision == "fp32"
    assert results["resumed_from"].endswith("checkpoint-2")
    assert load_model(str(tmp_path / "run"), "fp32", "cpu").dtype == torch.float32


def test_a_file_of_predictions_keeps_its_format(tiny_model_dir, tmp_path, measured):
    measured(fp32=190, bf16=430)
    args = Args(
        model_path=str(tiny_model_dir), task="goemotions-original", test_data_path=str(SAMPLE / "test.tsv"), limit=6,
        output_dir=str(tmp_path), device="cpu", constrained=False,
    )  # fmt: skip
    # killed after two rows, on a machine that takes bf16

    def killed(file):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PredictionFile, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            main(args)
    unfinished = tmp_path / "predictions.partial.jsonl"
    kept = unfinished.read_bytes().splitlines(keepends=True)[:2]
    unfinished.write_bytes(b"".join(kept))
    assert json.loads((tmp_path / "predictions.partial.json").read_text())["flags"]["precision"] == "bf16"
    measured(fp32=145, bf16=38)
    with pytest.raises(UserError, match=r"--precision fp32: .* began with bf16"):
        main(replace(args, precision="fp32"))
    main(args)
    rows = (tmp_path / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    assert len(rows) == 6
    assert rows[:2] == kept


def test_the_first_process_decides_for_all(tiny_model_dir, tmp_path):
    """Each of two processes measures another machine; both take what the first one found."""
    script = tmp_path / "processes.py"
    script.write_text(
        f"""
import os
from dataclasses import dataclass
from pathlib import Path

from data.engine import precision
from data.learning.trainers import with_precision

first = os.environ["RANK"] == "0"
precision._rates = lambda *sizes: dict(fp32=2, bf16=1) if first else dict(fp32=1, bf16=9)


@dataclass
class Args:
    precision: str = "auto"
    model_path: str = {str(tiny_model_dir)!r}
    output_dir: str = {str(tmp_path)!r}
    resume_from_checkpoint: str = "auto"


taken = with_precision(Args()).precision
Path({str(tmp_path)!r}, "taken-by-" + os.environ["RANK"]).write_text(taken)
"""
    )
    # without what trainers of other tests left in this process's own
    environment = {name: value for name in ("PATH", "HOME", "TMPDIR") if (value := os.environ.get(name))}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)],
        cwd=ROOT, env=environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"taken-by-{rank}").read_text() for rank in (0, 1)] == ["fp32", "fp32"]
    assert done.stdout.count("precision fp32: ") == 1


def test_a_single_process_sees_one_gpu_before_pytorch_looks(tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    seen = []
    monkeypatch.setattr(trainers, "pick_device", lambda: seen.append(os.environ.get("CUDA_VISIBLE_DEVICES")) or "cpu")
    trainers.with_precision(sft_args(tiny_model_dir, tmp_path))
    assert seen == ["0"]


@pytest.mark.parametrize(("format", "learns_in"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_four_bits_compute_in_the_format_that_is_chosen(tokenizer, tmp_path, monkeypatch, format, learns_in):
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(tmp_path / "wide")
    tokenizer.save_pretrained(tmp_path / "wide")
    args = replace(sft_args(tmp_path / "wide", tmp_path), precision=format, tuning="qlora", max_steps=1, eval_steps=1)
    build, found = main_SFT.build_trainer, []

    def build_and_look(*given):
        trainer = build(*given)
        layer = next(module for module in trainer.model.modules() if isinstance(module, Linear4bit))
        found.extend([layer.compute_dtype, *{p.dtype for p in trainer.model.parameters() if p.requires_grad}])
        return trainer

    monkeypatch.setattr(main_SFT, "build_trainer", build_and_look)
    main_SFT.main(args)
    assert found == [dtype_of(format), learns_in]


@pytest.mark.parametrize(("format", "mixed"), [("bf16", "bf16"), ("fp32", "no")])
def test_the_stage_decides_what_the_libraries_mix(tiny_model_dir, tmp_path, monkeypatch, format, mixed):
    """DeepSpeed's and FSDP's settings are made of this one."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # as the launchers set it
    task = BUILT_IN_TASKS["goemotions-original"]
    args = main_SFT.with_defaults(replace(sft_args(tiny_model_dir, tmp_path), precision=format), task)
    assert main_SFT.training_arguments(args, task, 0, has_dev=False).mixed_precision == mixed


def test_in_fp32_for_a_while(tiny_model_dir):
    model = load_model(str(tiny_model_dir), "bf16", "cpu")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with in_fp32(model):
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    after = model.state_dict()
    assert all(
        after[name].dtype == weight.dtype and torch.equal(after[name], weight) for name, weight in before.items()
    )

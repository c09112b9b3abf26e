"""What saves memory: token embeddings that do not learn, an optimizer with few states; and how memory is measured."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import main_grpo
import main_SFT
from data.arguments import UserError
from main_SFT import main
from tests.conftest import ROOT
from tests.test_objective_runs import tiny_bert_dir  # noqa: F401  (a fixture)
from tests.test_sft import KillAt, Killed, args  # noqa: F401  (a fixture)

MIB = 2**20


def weights(directory) -> dict[str, torch.Tensor]:
    return load_file(Path(directory) / "model.safetensors")


def facts(directory) -> dict:
    return json.loads((Path(directory) / "train_results.json").read_text())


def optimizer_bytes(checkpoint: Path) -> int:
    """Of the states of all weights, without the file's own overhead."""
    states = torch.load(checkpoint / "optimizer.pt")["state"].values()
    return sum(value.nbytes for state in states for value in state.values() if torch.is_tensor(value))


@pytest.mark.parametrize("tied", [False, True])
def test_frozen_embeddings_of_a_decoder(args, tmp_path, tied):  # noqa: F811
    """The vectors stay bit for bit, everything else learns; an output layer that shares them stays as well."""
    begin = args.model_path
    if tied:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        begin = str(tmp_path / "tied")
        model = AutoModelForCausalLM.from_pretrained(args.model_path)
        model.config.tie_word_embeddings = True
        model.tie_weights()
        model.save_pretrained(begin)
        AutoTokenizer.from_pretrained(args.model_path).save_pretrained(begin)
    args = dataclasses.replace(
        args, model_path=begin, tuning="full", freeze_embeddings=True, learning_rate=1e-3, max_steps=2, eval_samples=2,
        gradient_checkpointing=True,  # whose first layer then gets inputs without gradients
    )  # fmt: skip
    main(args)
    before, after = weights(begin), weights(args.output_dir)
    assert set(after) == set(before)  # a model directory is whole
    stayed = {name for name in before if torch.equal(before[name].float(), after[name].float())}
    assert stayed == {"model.embed_tokens.weight"}
    assert ("lm_head.weight" in after) is not tied
    frozen = before["model.embed_tokens.weight"].numel()
    assert facts(args.output_dir)["all_parameters"] - facts(args.output_dir)["trainable_parameters"] == frozen


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_embeddings_of_an_encoder(args, tiny_bert_dir, frozen):  # noqa: F811
    args = dataclasses.replace(
        args, model_path=str(tiny_bert_dir), objective="classify", tuning="full", freeze_embeddings=frozen,
        learning_rate=1e-3, max_length=64, max_steps=2, eval_samples=2, calibration=False,
    )  # fmt: skip
    main(args)
    before = weights(tiny_bert_dir)
    after = {name.removeprefix("bert."): tensor for name, tensor in weights(args.output_dir).items()}
    rows = {name: bool((before[name] != after[name]).any()) for name in before if name.startswith("embeddings.")}
    assert rows.pop("embeddings.word_embeddings.weight") is not frozen
    assert all(rows.values()), "positions, kinds and their norm are few: they learn"
    states = optimizer_bytes(Path(args.output_dir) / "checkpoint-2")
    assert states == pytest.approx(8 * facts(args.output_dir)["trainable_parameters"], rel=0.01)  # AdamW's two, in fp32


def test_adafactor_keeps_little_and_goes_on_to_the_same_result(args, tmp_path, monkeypatch):  # noqa: F811
    args = dataclasses.replace(
        args, tuning="full", freeze_embeddings=True, optimizer="adafactor", learning_rate=1e-3, max_steps=4,
        eval_samples=2,
    )  # fmt: skip
    main(args)
    trained = facts(args.output_dir)["trainable_parameters"]
    assert optimizer_bytes(Path(args.output_dir) / "checkpoint-4") < 0.5 * trained
    killed = dataclasses.replace(args, output_dir=str(tmp_path / "killed"))
    build = main_SFT.build_trainer

    def build_and_kill(*arguments):
        trainer = build(*arguments)
        trainer.add_callback(KillAt(3))
        return trainer

    with monkeypatch.context() as patch:
        patch.setattr(main_SFT, "build_trainer", build_and_kill)
        with pytest.raises(Killed):
            main(killed)
    for flags, message in (
        (dict(optimizer="adamw"), r"--optimizer adamw: the run in .* began with adafactor"),
        (dict(freeze_embeddings=False), r"--freeze_embeddings off: the run in .* began with on"),
    ):
        with pytest.raises(UserError, match=message):
            main(dataclasses.replace(killed, **flags))
    main(killed)
    assert facts(killed.output_dir)["resumed_from"].endswith("checkpoint-2")
    expected, found = weights(args.output_dir), weights(killed.output_dir)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_a_run_from_before_there_were_these_flags(args):  # noqa: F811
    """It goes on as it was, with AdamW over all weights, and not otherwise."""
    args = dataclasses.replace(args, max_steps=2, eval_samples=2)
    main(args)
    path = Path(args.output_dir) / "args.json"
    flags = json.loads(path.read_text())
    del flags["optimizer"], flags["freeze_embeddings"]
    path.write_text(json.dumps(flags))
    main(args)
    with pytest.raises(UserError, match=r"--optimizer adafactor: the run in .* began with adamw"):
        main(dataclasses.replace(args, optimizer="adafactor"))


def test_grpo_with_frozen_embeddings_and_adafactor(args):  # noqa: F811
    grpo = main_grpo.Args(
        model_path=args.model_path, label_path=args.label_path, train_data_path=args.train_data_path,
        dev_data_path=args.dev_data_path, output_dir=args.output_dir, precision="fp32", tuning="full", max_steps=2,
        batch_size=8, num_generations=4, max_completion_length=12, freeze_embeddings=True, optimizer="adafactor",
        learning_rate=1e-3, weight_decay=0.1, eval_samples=2,
    )  # fmt: skip
    main_grpo.main(grpo)
    before, after = weights(args.model_path), weights(args.output_dir)
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])
    assert not torch.equal(before["lm_head.weight"], after["lm_head.weight"])  # decays where no answer beats another
    assert (
        optimizer_bytes(Path(args.output_dir) / "checkpoint-2") < 0.5 * facts(args.output_dir)["trainable_parameters"]
    )


@pytest.mark.parametrize("tuning", ["lora", "qlora", "head"])
def test_embeddings_that_are_frozen_already(args, tuning):  # noqa: F811
    with pytest.raises(UserError, match=r"--freeze_embeddings on: does nothing without --tuning full"):
        dataclasses.replace(args, objective="classify", tuning=tuning, freeze_embeddings=True)


# --- measuring ------------------------------------------------------------------------------------------------------

TAKE_AND_GIVE_BACK = """
import sys
from data.engine import memory
from pathlib import Path
if sys.argv[1] == "getrusage":
    memory.PROC_STATUS = Path("/nowhere")
import torch
before = memory.peak_memory()
taken = torch.ones(2**26)  # 256 MiB
del taken
print(memory.peak_memory() - before)
"""


@pytest.mark.parametrize("way", ["proc", "getrusage"])
def test_peak_memory_is_what_there_was_at_any_time(way):
    done = subprocess.run(
        [sys.executable, "-c", TAKE_AND_GIVE_BACK, way], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert 200 * MIB < int(done.stdout) < 300 * MIB or (way == "getrusage" and int(done.stdout) < 300 * MIB)


@pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists()
    or "[never]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(),
    reason="no huge pages here",
)
def test_large_tensors_lie_on_huge_pages():
    """As main_SFT.py asks for them: behind the import of PyTorch, before its first tensor."""
    code = (
        "import torch\n"
        "from data.engine.memory import use_huge_pages\n"
        "use_huge_pages()\n"
        "kept = [torch.ones(8 << 20) for _ in range(4)]\n"
        "rollup = open('/proc/self/smaps_rollup').read().splitlines()\n"
        "print(next(line.split()[1] for line in rollup if line.startswith('AnonHugePages')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 64 * 1024  # kB, of 128 MiB

"""merge_lora.py on tiny models: what the merged directory says is what base and adapter said."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, Qwen2Config, Qwen2ForCausalLM

import main_SFT
import merge_lora
from data.arguments import UserError
from data.contract import Contract
from data.engine.models import load_model
from inference import Predictor
from merge_lora import Args, main
from tests.test_objective_runs import args as sft_args  # noqa: F401  (a fixture)

TEXTS = ["what a lovely sunny day", "i am furious with him", "she left"]


def trained(sft_args, **settings):  # noqa: F811
    settings = dict(test_data_path=None, max_steps=4, eval_steps=4) | settings
    sft_args = dataclasses.replace(sft_args, **settings)
    main_SFT.main(sft_args)
    return sft_args.output_dir


def merged(run: str, **settings) -> str:
    args = Args(training_output_dir=run, **settings)
    main(args)
    return args.output_dir


def scores(directory: str):
    return Predictor(directory, precision="fp32").label_scores(TEXTS)


@pytest.mark.parametrize(
    "way",
    [
        dict(objective="generate"),
        dict(objective="classify", head="linear"),
        dict(objective="classify", head="mlp"),
        dict(objective="score"),
    ],
    ids=lambda way: "-".join(way.values()),
)
def test_a_merged_model_says_what_base_and_adapter_said(sft_args, way):  # noqa: F811
    run = trained(sft_args, **way)
    target = merged(run)
    assert target == f"{run}-merged"
    torch.testing.assert_close(scores(target), scores(run), atol=1e-4, rtol=0)
    report = json.loads((Path(target) / "merge_report.json").read_text())
    assert report["max_score_difference"] < 1e-4
    assert report["equal_predictions"] == report["samples"] == 6
    assert (report["dtype"], report["adapters"]) == ("fp32", [run])
    before, after = Contract.load(run), Contract.load(target)
    assert dataclasses.replace(before, base_fingerprint=None) == after
    assert before.base_fingerprint is not None
    assert not (Path(target) / "adapter_config.json").exists()
    # no EmoTune code is needed to load it
    if way["objective"] != "classify":
        plain = AutoModelForCausalLM.from_pretrained(target)
    elif way["head"] == "linear":
        plain = AutoModelForSequenceClassification.from_pretrained(target)
        assert plain.config.id2label[0] == "anger"
    else:
        return
    assert plain.config._attn_implementation == "sdpa"


def test_another_copy_of_the_base_and_another_format(sft_args, tmp_path):  # noqa: F811
    run = trained(sft_args, objective="classify")
    shutil.copytree(sft_args.model_path, tmp_path / "copy")
    target = merged(run, base_model_path=str(tmp_path / "copy"), output_dir=str(tmp_path / "fp16"), dtype="fp16")
    assert json.loads((Path(target) / "config.json").read_text())["dtype"] == "float16"
    assert json.loads((Path(target) / "merge_report.json").read_text())["base_model"] == str(tmp_path / "copy")


def test_adapters_over_adapters(sft_args, tmp_path):  # noqa: F811
    """A second adapter, learnt over base and first."""
    run = trained(sft_args, objective="generate")
    first = merged(run)
    upper = trained(sft_args, objective="generate", model_path=first, output_dir=str(tmp_path / "upper"), seed=1)
    expected = scores(upper)
    config = Path(upper) / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": run}))
    torch.testing.assert_close(scores(upper), expected, atol=1e-4, rtol=0)
    report = json.loads((Path(merged(upper)) / "merge_report.json").read_text())
    assert report["adapters"] == [run, upper]
    torch.testing.assert_close(scores(f"{upper}-merged"), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(
        scores(merged(upper, base_model_path=run, output_dir=str(tmp_path / "named"))), expected, atol=1e-4, rtol=0
    )


def test_four_bits_are_not_merged_into_unless_asked(sft_args, tokenizer, tmp_path):  # noqa: F811
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=2048, initializer_range=0.3,
    )  # fmt: skip
    base_dir = str(tmp_path / "wide")
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(base_dir)
    tokenizer.save_pretrained(base_dir)
    run = trained(
        sft_args, tuning="qlora", objective="generate", precision="bf16", model_path=base_dir, learning_rate=1e-5
    )
    plain, rounded = merged(run), merged(run, output_dir=str(tmp_path / "rounded"), from_quantized=True)
    # so little was learnt that the weights are the base model's, or those rounded to 4 bits
    name = "model.layers.0.mlp.down_proj.weight"
    base = load_model(base_dir).state_dict()[name]
    quantized = load_model(base_dir, load_in_4bit=True).dequantize().state_dict()[name]
    kept, lost = (load_model(path).state_dict()[name] for path in (plain, rounded))
    rounding = (base - quantized).abs().max()
    assert (kept - base).abs().max() < rounding / 10
    assert (lost - quantized).abs().max() < rounding / 10


# --- mistakes -------------------------------------------------------------------------------------------------------


def another_model(sft_args, tmp_path, **changes) -> str:  # noqa: F811
    model = AutoModelForCausalLM.from_pretrained(sft_args.model_path)
    config = model.config
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(5)
    other = type(model)(config)
    if not changes:
        for parameter in other.parameters():
            torch.nn.init.normal_(parameter)
    shutil.copytree(sft_args.model_path, tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    return str(tmp_path / "other")


@pytest.mark.parametrize("changes", [{}, {"intermediate_size": 48}], ids=["weights", "shape"])
def test_an_adapter_for_another_base(sft_args, tmp_path, changes):  # noqa: F811
    run = trained(sft_args, objective="generate")
    other = another_model(sft_args, tmp_path, **changes)
    with pytest.raises(UserError, match="does not fit its base model" if changes else "another base model than"):
        merged(run, base_model_path=other)
    assert not Path(f"{run}-merged").exists()


def test_what_cannot_be_merged(sft_args, tmp_path):  # noqa: F811
    with pytest.raises(UserError, match=r"--training_output_dir .*/none: no such directory"):
        merged(str(tmp_path / "none"))
    with pytest.raises(UserError, match="holds a whole model: nothing to merge"):
        merged(sft_args.model_path, output_dir=str(tmp_path / "out"))
    with pytest.raises(UserError, match="holds no adapter"):
        merged(str(tmp_path), output_dir=str(tmp_path / "out"))
    run = trained(sft_args, objective="generate")
    with pytest.raises(UserError, match=r"--base_model_path \./none: no such directory"):
        merged(run, base_model_path="./none")
    with pytest.raises(UserError, match="holds what is to be merged"):
        merged(run, output_dir=run, overwrite=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").write_text("here before")
    with pytest.raises(UserError, match="is not empty; choose another, or replace it with --overwrite"):
        merged(run, output_dir=str(tmp_path / "full"))
    assert (tmp_path / "full" / "precious.txt").exists()
    merged(run, output_dir=str(tmp_path / "full"), overwrite=True)
    assert not (tmp_path / "full" / "precious.txt").exists()
    assert (tmp_path / "full" / "model.safetensors").is_file()


def test_broken_weights_are_one_clear_error(sft_args):  # noqa: F811
    run = trained(sft_args, objective="generate")
    (Path(run) / "adapter_model.safetensors").write_bytes(b"these are not weights")
    with pytest.raises(UserError, match=r"run/adapter_model\.safetensors: Error while deserializing"):
        merged(run)


def test_a_merged_model_that_says_something_else_is_thrown_away(sft_args, tmp_path, monkeypatch):  # noqa: F811
    run = trained(sft_args, objective="generate")
    (tmp_path / "before").mkdir()
    (tmp_path / "before" / "kept.txt").write_text("here before")

    def broken(directory, *args, **kwargs):
        model = load_model(directory, *args, **kwargs)
        if directory != sft_args.model_path:
            model.model.layers[0].mlp.down_proj.weight.data.add_(1.0)
        return model

    monkeypatch.setattr(merge_lora, "load_model", broken)
    with pytest.raises(UserError, match=r"another than base and adapter: .* nothing was written"):
        merged(run, output_dir=str(tmp_path / "before"), overwrite=True)
    assert [path.name for path in (tmp_path / "before").iterdir()] == ["kept.txt"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]

"""merge_lora.py on tiny models: what the merged directory says is what base and adapter said."""

import dataclasses
import json
import resource
import shutil
import signal
import types
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, Qwen2Config, Qwen2ForCausalLM

import main_SFT
import merge_lora
from data.arguments import UserError
from data.contract import Contract
from data.engine.models import load_model
from data.replacing import alone_beside
from data.sampling import Sampling
from data.tasks import BUILT_IN_TASKS
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
    run = trained(sft_args, **way, coverage=0.75)
    target = merged(run)
    assert target == f"{run}-merged"
    torch.testing.assert_close(scores(target), scores(run), atol=1e-4, rtol=0)
    report = json.loads((Path(target) / "merge_report.json").read_text())
    assert report["max_score_difference"] < 1e-4
    assert report["equal_predictions"] == report["samples"] == 6
    assert (report["dtype"], report["adapters"]) == ("fp32", [run])
    before, after = Contract.load(run), Contract.load(target)
    assert dataclasses.replace(before, base_fingerprint=None) == after
    assert after.coverage.level == 0.75
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
    with pytest.raises(UserError, match="is the folder this was started in"):
        merged(run, output_dir=".", overwrite=True)
    assert Args(training_output_dir=".").output_dir == f"{Path().resolve()}-merged"


def test_overwrite_replaces_what_a_merge_left_and_nothing_else(sft_args, tmp_path, monkeypatch):  # noqa: F811
    run = trained(sft_args, objective="generate")
    target = tmp_path / "merged"
    asked = dict(output_dir=str(target), overwrite=True)

    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message):
            merged(run, **asked)

    with monkeypatch.context() as patch:
        patch.setattr(merge_lora, "merge", lambda *_: pytest.fail("began to merge"))
        target.mkdir()
        (target / "precious.txt").write_text("here before")
        with pytest.raises(UserError, match="is not empty; choose another, or replace it with --overwrite"):
            merged(run, output_dir=str(target))
        refused("merged: holds no merge_report.json but precious.txt; --overwrite replaces merged models only")
        (target / "merge_report.json").write_text('{"base_model": ["x"]}')
        refused("merge_report.json: base_model is .*, expected a text; --overwrite replaces")
        (target / "merge_report.json").write_text("{}")
        refused("merge_report.json: has no base_model; --overwrite replaces")
        (target / "merge_report.json").write_text("[" * 100_000)
        refused("merge_report.json: not a JSON object")
        shutil.rmtree(target)
    merged(run, **asked)
    first, inode = (target / "merge_report.json").read_bytes(), target.stat().st_ino
    with monkeypatch.context() as patch:
        patch.setattr(merge_lora, "merge", lambda *_: pytest.fail("began to merge"))
        (target / "notes.txt").write_text("mine")
        refused("holds 'notes.txt', which no merge wrote; --overwrite replaces merged models only")
        (target / "notes.txt").unlink()
        for name in ("predictions.jsonl", "task.json"):  # a run over the merged model
            (target / "upper").mkdir(exist_ok=True)
            (target / "upper" / name).write_text("")
        refused("holds 'upper', which no merge wrote")
        shutil.rmtree(target / "upper")
    (target / "test").mkdir()
    (target / "test" / "predictions.jsonl").write_text("")  # inference.py's default place
    (tmp_path / "link").symlink_to(target)
    merged(run, output_dir=str(tmp_path / "link"), overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert not (target / "test").exists()
    assert target.stat().st_ino != inode
    report = json.loads(first)
    del report["files"], report["inputs"], report["from_quantized"]  # as it was written before
    (target / "merge_report.json").write_text(json.dumps(report))
    merged(run, **asked)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_merge_killed_before_its_model_is_in_place_is_finished_by_the_next(sft_args, tmp_path, monkeypatch, capsys):  # noqa: F811
    run = trained(sft_args, objective="generate")
    target = tmp_path / "merged"

    asked = dict(output_dir=str(target), overwrite=True)
    merged(run, **asked)
    expected = scores(str(target))

    def put_aside() -> None:
        """As a kill between the two renames leaves it."""
        (tmp_path / ".merged.merging").mkdir()
        target.rename(tmp_path / ".merged.merging" / "model")

    put_aside()
    with monkeypatch.context() as patch:
        patch.setattr(merge_lora, "load_model", lambda *_: pytest.fail("began to merge"))
        merged(run, output_dir=str(target))  # no --overwrite is needed
        assert "had made it, whole; it is in its place now" in capsys.readouterr().out
        put_aside()
        merged(run, output_dir=str(target))  # the same command once more
        assert f"{target}: holds this merged model already" in capsys.readouterr().out
        with pytest.raises(UserError, match="is not empty; choose another, or replace it with --overwrite"):
            merged(run, output_dir=str(target), dtype="bf16")  # another one is asked for
        put_aside()
        with pytest.raises(UserError, match="is not empty; choose another, or replace it with --overwrite"):
            merged(run, output_dir=str(target), dtype="bf16")
    torch.testing.assert_close(scores(str(target)), expected, atol=0, rtol=0)
    put_aside()
    changed = Path(run) / "adapter_model.safetensors"  # by further training in the same place
    tensors = {name: tensor * 2 for name, tensor in load_file(changed).items()}
    save_file(tensors, changed, metadata={"format": "pt"})
    capsys.readouterr()
    merged(run, **asked)
    assert "merging " in capsys.readouterr().out
    assert abs(scores(str(target)) - expected).max() > 1e-4
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_two_merges_into_one_place(sft_args, tmp_path):  # noqa: F811
    run = trained(sft_args, objective="generate")
    with alone_beside(tmp_path / "merged"), pytest.raises(UserError, match="another process is writing here"):
        merged(run, output_dir=str(tmp_path / "merged"))


@pytest.mark.parametrize(("dtype", "value"), [("auto", float("nan")), ("fp16", 1e5)])
def test_weights_that_are_not_finite_are_not_written(sft_args, tmp_path, dtype, value, monkeypatch):  # noqa: F811
    """nan, and what is too large for the number format."""
    run, load_stack = trained(sft_args, objective="generate"), merge_lora.load_stack

    def spoilt(*args):
        model = load_stack(*args)
        model.get_base_model().model.layers[1].mlp.up_proj.base_layer.weight.data[0, 0] = value
        return model

    with monkeypatch.context() as patch:
        patch.setattr(merge_lora, "load_stack", spoilt)
        patch.setattr(merge_lora, "read_samples", lambda *_: (numpy.zeros((1, 1)), [()]))
        with pytest.raises(
            UserError,
            match=r"the merged model: has numbers that are not finite in 1 tensor: model\.layers\.1\.mlp\.up_proj\.weight",
        ):
            merged(run, dtype=dtype, output_dir=str(tmp_path / "merged"))
    assert not list(tmp_path.glob("*merged*"))
    scores_of = (numpy.array([[0.0, numpy.nan]]), [("joy",)])
    with pytest.raises(UserError, match="base and adapter give scores that are not finite numbers"):
        merge_lora.compare(scores_of, scores_of, "fp32")


def test_a_full_disk(sft_args, tmp_path, monkeypatch):  # noqa: F811
    run = trained(sft_args, objective="generate")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1000))
        with pytest.raises(UserError, match=r"needs 0\.\d MB of disk, only 0\.0 MB are free"):
            merged(run)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))  # the disk that free space was wrong about
    try:
        with pytest.raises(UserError, match=r"model: cannot be written \(.*File too large"):
            merged(run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not [path for path in Path(run).parent.iterdir() if "merged" in path.name]


def test_broken_weights_are_one_clear_error(sft_args):  # noqa: F811
    run = trained(sft_args, objective="generate")
    (Path(run) / "adapter_model.safetensors").write_bytes(b"these are not weights")
    with pytest.raises(UserError, match=r"run/adapter_model\.safetensors: Error while deserializing"):
        merged(run)


def test_a_merged_model_that_says_something_else_is_thrown_away(sft_args, tmp_path, monkeypatch):  # noqa: F811
    run = trained(sft_args, objective="generate")
    merged(run, output_dir=str(tmp_path / "before"))
    before = {path.name: path.read_bytes() for path in (tmp_path / "before").iterdir()}

    def broken(directory, *args, **kwargs):
        model = load_model(directory, *args, **kwargs)
        if directory != sft_args.model_path:
            model.model.layers[0].mlp.down_proj.weight.data.add_(1.0)
        return model

    monkeypatch.setattr(merge_lora, "load_model", broken)
    with pytest.raises(UserError, match=r"another than base and adapter: .* nothing was written"):
        merged(run, output_dir=str(tmp_path / "before"), overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "before").iterdir()} == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


# --- summaries ------------------------------------------------------------------------------------------------------


@pytest.fixture
def summary_run(tiny_model_dir, tokenizer, tmp_path) -> str:
    """An adapter with random weights that writes summaries."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    run = tmp_path / "run"
    get_peft_model(base, config).save_pretrained(run)
    tokenizer.save_pretrained(run)
    drawn = Sampling(max_new_tokens=12, temperature=0)
    task = BUILT_IN_TASKS["emotion-summary-en"]
    Contract(task, base_model=str(tiny_model_dir), max_length=1024, sampling=drawn).save(run)
    return str(run)


def test_a_merged_model_writes_what_base_and_adapter_wrote(summary_run, tiny_model_dir):
    target = merged(summary_run, dtype="fp32")
    report = json.loads((Path(target) / "merge_report.json").read_text())
    assert report["equal_predictions"] == report["samples"] == 2
    assert report["max_score_difference"] < 1e-4
    assert Contract.load(target).sampling == Contract.load(summary_run).sampling == Sampling(12, temperature=0)
    case = (["She sleeps badly."], ["They spoke of work.", "She slept."])
    after, before = (Predictor(path, precision="fp32").generate_summary(*case) for path in (target, summary_run))
    untuned = Predictor(str(tiny_model_dir), "emotion-summary-en", precision="fp32", max_new_tokens=12, temperature=0.0)
    assert after == before != untuned.generate_summary(*case)


def test_a_merge_that_writes_something_else_is_thrown_away(summary_run, tiny_model_dir, monkeypatch):
    def without_adapter(directory, *args, **kwargs):
        return load_model(str(tiny_model_dir), *args, **kwargs)

    monkeypatch.setattr(merge_lora, "load_model", without_adapter)
    with pytest.raises(UserError, match=r"another than base and adapter: .* nothing was written"):
        merged(summary_run, dtype="bf16")
    assert not Path(f"{summary_run}-merged").exists()


def test_the_tokens_that_are_compared(monkeypatch):
    monkeypatch.setattr(merge_lora, "MOST_PROBABLE", 2)
    before, after = numpy.array([[-3.0, -1.0, -2.0]]), numpy.array([[9.0, -1.5, -2.0]])
    (one, first), (other, second) = merge_lora.most_probable((before, [(1,)]), (after, [(0,)]))
    assert (one.tolist(), other.tolist()) == ([[-1.0, -2.0]], [[-1.5, -2.0]])
    assert (first, second) == ([(1,)], [(0,)])

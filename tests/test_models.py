"""Loading models: nothing in their directory runs, nothing is drawn at random, and what is broken is one clear line."""

import ast
import contextlib
import dataclasses
import io
import json
import re
import shutil
import socket
import time
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import inference
import main_grpo
import main_SFT
import merge_lora
from data.arguments import UserError
from data.contract import Contract
from data.engine.fingerprints import check_fingerprint, fingerprint
from data.engine.model_files import check_hub, loading
from data.engine.models import check_model_path, is_encoder, load_model, load_tokenizer
from data.engine.vllm_backend import check_whole
from data.learning.trainers import check_positions
from data.tasks import BUILT_IN_TASKS
from inference import Predictor
from tests.conftest import ROOT
from tests.test_classifier import SIZES
from tests.test_merge import merged, trained
from tests.test_objective_runs import TEXTS
from tests.test_objective_runs import args as sft_args  # noqa: F401  (a fixture)
from tests.test_rooms import CODE

EMOTION = BUILT_IN_TASKS["emotion"]
ALL_TEXTS = [text for texts in TEXTS.values() for text in texts]


def edit(path: Path, **fields) -> None:
    """Set fields of a JSON file; `...` takes one out."""
    content = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))


def change(path: Path, alter) -> None:
    """Rewrite a safetensors file by `alter` (dict of tensors -> dict of tensors)."""
    save_file(alter(load_file(path)), path, metadata={"format": "pt"})


def without(*names):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not any(n in name for n in names)}


def load_all(directory) -> None:
    """What each stage does with a model's directory."""
    check_model_path(str(directory))
    is_encoder(str(directory))
    load_tokenizer(str(directory))
    load_model(str(directory), "fp32", "cpu")


@pytest.fixture
def copy_dir(tiny_model_dir, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "copy"))


@pytest.fixture(scope="module")
def runs(tiny_model_dir, tmp_path_factory):
    """objective -> a run of it with an adapter on the tiny model."""
    folder = tmp_path_factory.mktemp("runs")
    rows = [f"{text};{label}" for label, texts in TEXTS.items() for text in texts]
    (folder / "train.txt").write_text("\n".join(rows), encoding="utf-8")
    made = {}
    for objective in ("generate", "classify"):
        made[objective] = folder / objective
        main_SFT.main(
            main_SFT.Args(
                model_path=str(tiny_model_dir), task="emotion", train_data_path=str(folder / "train.txt"),
                objective=objective, output_dir=str(made[objective]), precision="fp32", max_steps=4, val_ratio=0.0,
                batch_size=6, learning_rate=1e-2, lora_r=8,
            )
        )  # fmt: skip
    return made


@pytest.fixture
def run_of(runs, tmp_path):
    return lambda objective: Path(shutil.copytree(runs[objective], tmp_path / objective))


# --- code that lies with a model ----------------------------------------------------------------------------------------


def calls(path: Path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_loader_may_run_code_of_a_model(path):
    for node, name in calls(path):
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        loads = name.rpartition(".")[2] in ("from_pretrained", "from_config") or name in ("LLM", "pipeline")
        if loads and name not in ("PeftModel.from_pretrained", "LoraConfig.from_pretrained"):
            assert given.get("trust_remote_code") == "False", f"{path.name}:{node.lineno}: {name}"
        assert given.get("trust_remote_code", "False") == "False", f"{path.name}:{node.lineno}: {name}"


def test_no_script_or_trainer_allows_code_of_a_model():
    from trl import GRPOConfig, SFTConfig

    for script in (ROOT / "scripts").glob("*.sh"):
        assert "trust" not in script.read_text(encoding="utf-8")
    for settings_class in (GRPOConfig, SFTConfig):  # with which TRL loads a reference model
        (field,) = (f for f in dataclasses.fields(settings_class) if f.name == "trust_remote_code")
        assert field.default is False


@pytest.fixture
def code_dir(copy_dir, tmp_path, monkeypatch):
    """A model directory with code that leaves a marker; whoever asks on the terminal hears "y"."""
    (copy_dir / "evil.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')\n")
    edit(
        copy_dir / "config.json", model_type="unheard_of",
        auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
    )  # fmt: skip
    edit(
        copy_dir / "tokenizer_config.json", tokenizer_class="EvilTokenizer",
        auto_map={"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]},
    )  # fmt: skip
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 100))
    yield copy_dir
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("stage", ["inference", "main_SFT", "main_grpo", "merge_lora"])
def test_code_that_comes_with_a_model_does_not_run(code_dir, stage, runs, tmp_path):
    data, out = str(runs["generate"].parent / "train.txt"), str(tmp_path / "out")
    shared = dict(model_path=str(code_dir), task="emotion")
    if stage == "inference":
        start = lambda: inference.main(inference.Args(**shared, text="-"))  # noqa: E731
    elif stage == "main_SFT":
        start = lambda: main_SFT.main(main_SFT.Args(**shared, train_data_path=data, output_dir=out))  # noqa: E731
    elif stage == "main_grpo":
        start = lambda: main_grpo.main(main_grpo.Args(**shared, train_data_path=data, output_dir=out))  # noqa: E731
    else:
        run = Path(shutil.copytree(runs["generate"], tmp_path / "run"))
        edit(run / "adapter_config.json", base_model_name_or_path=str(code_dir))
        shutil.copy(code_dir / "tokenizer_config.json", run)
        start = lambda: merge_lora.main(merge_lora.Args(training_output_dir=str(run), output_dir=out))  # noqa: E731
    with pytest.raises(UserError, match="needs code that comes with it") as caught:
        start()
    assert "\n" not in str(caught.value)


def test_code_of_a_tokenizer_does_not_run(code_dir):
    with pytest.raises(UserError, match="needs code that comes with it"):
        load_tokenizer(str(code_dir))
    edit(code_dir / "config.json", model_type="qwen2")  # Transformers' own tokenizer is there for it
    assert load_tokenizer(str(code_dir)) is not None


# --- tensors that lack ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (without("layers.1.mlp.up_proj"), "lack 1 tensor: model.layers.1.mlp.up_proj.weight, which the model needs"),
        (without("layers.1."), "lack 12 tensors: .*; …, which"),
        (without("lm_head"), "lack 1 tensor: lm_head.weight, which"),
        (without("embed_tokens"), "lack 1 tensor: model.embed_tokens.weight, which"),
        (without("model.norm"), "lack 1 tensor: model.norm.weight, which"),
        (
            lambda tensors: tensors | {"model.norm.weight": torch.ones(5)},
            r"lack 1 tensor: model.norm.weight of shape \(5,\) in place of \(32,\), which",
        ),
        (
            lambda tensors: (
                tensors | {n.replace("rs.1.", "rs.2."): t.clone() for n, t in tensors.items() if "rs.1." in n}
            ),
            r"hold 12 tensors: model.layers.2.* of layers that config.json does not count",
        ),
    ],
    ids=["one", "a layer", "the output", "the input", "a vector", "another shape", "a layer too many"],
)
def test_a_model_that_is_not_whole(copy_dir, alter, message):
    change(copy_dir / "model.safetensors", alter)
    with pytest.raises(UserError, match=f"--model_path {copy_dir}: its weights {message}"):
        load_model(str(copy_dir), "fp32", "cpu")
    if "layer too many" not in message and "count" not in message:  # vLLM reads what it needs
        with pytest.raises(UserError, match=f"--model_path {copy_dir}: its weights {message}"):
            check_whole(str(copy_dir))


def test_what_is_tied_is_not_missing(copy_dir):
    edit(copy_dir / "config.json", tie_word_embeddings=True)
    change(copy_dir / "model.safetensors", without("lm_head"))
    model = load_model(str(copy_dir), "fp32", "cpu")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    check_whole(str(copy_dir))


@pytest.mark.parametrize("way", ["half an index", "an entry that lacks", "a shard that lacks", "half a shard"])
def test_shards_that_are_not_whole(copy_dir, way):
    model = load_model(str(copy_dir), "fp32", "cpu")
    (copy_dir / "model.safetensors").unlink()
    model.save_pretrained(copy_dir, max_shard_size="50KB")
    index, shards = copy_dir / "model.safetensors.index.json", sorted(copy_dir.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert load_model(str(copy_dir), "fp32", "cpu").new_modules == []
    if way == "half an index":
        index.write_text(index.read_text()[:200])
        message = rf"{index}: not a JSON object"
    elif way == "an entry that lacks":
        held = json.loads(index.read_text())["weight_map"]
        edit(index, weight_map={name: file for name, file in held.items() if file != shards[1].name})
        message = "its weights lack"
    elif way == "a shard that lacks":
        shards[1].unlink()
        message = rf"{index}: names {shards[1].name}, which is not there"
    else:
        shards[1].write_bytes(shards[1].read_bytes()[:-64])
        message = rf"{shards[1]}: Error while deserializing header"
    with pytest.raises(UserError, match=message):
        load_all(copy_dir)


def nan_in(name):
    return lambda tensors: {n: t * float("nan") if name in n else t for n, t in tensors.items()}


@pytest.mark.parametrize(
    ("objective", "alter", "message"),
    [
        ("generate", without("layers.1."), "lacks 14 tensors: .*lora_A"),
        ("generate", without("layers.1.mlp.up_proj.lora_B"), "lacks one of the two matrices of 1 layers"),
        ("generate", without("layers.1.mlp.up_proj.lora_A"), "lacks one of the two matrices of 1 layers"),
        ("generate", lambda t: t | {"base_model.model.lm_head.lora_A.weight": torch.ones(8, 32),
                                    "base_model.model.lm_head.lora_B.weight": torch.ones(500, 8)}, "holds 2 tensors"),
        ("generate", nan_in("layers.0.self_attn.q_proj.lora_B"), "has numbers that are not finite in 1 tensor"),
        ("classify", without("score"), "brings no score, which its base model .* lacks, too"),
        ("classify", nan_in("score"), "has numbers that are not finite in 1 tensor: .*score"),
    ],
)  # fmt: skip
def test_an_adapter_that_is_not_whole(run_of, objective, alter, message):
    run = run_of(objective)
    change(run / "adapter_model.safetensors", alter)
    contract = Contract.load(run)
    with pytest.raises(UserError, match=message):
        load_model(str(run), "fp32", "cpu", contract=contract)
    with pytest.raises(UserError, match=message):
        merged(str(run))
    if objective == "generate":
        with pytest.raises(UserError, match=message):
            main_grpo.load_policy(
                main_grpo.Args(model_path=str(run), train_data_path="x", precision="fp32"), longest=100
            )
        with pytest.raises(UserError, match=message):
            check_whole(json.loads((run / "adapter_config.json").read_text())["base_model_name_or_path"], str(run))


def test_whole_ones_pass(runs, tiny_model_dir):
    check_whole(str(tiny_model_dir), str(runs["generate"]))
    for run in runs.values():
        assert load_model(str(run), "fp32", "cpu", contract=Contract.load(run)) is not None


def test_only_training_may_draw_a_head(tiny_model_dir):
    contract = Contract(EMOTION, objective="classify", head="linear")
    with pytest.raises(UserError, match=r"its weights lack 1 tensor: score\.weight"):
        load_model(str(tiny_model_dir), "fp32", "cpu", contract=contract)
    model = load_model(str(tiny_model_dir), "fp32", "cpu", contract=contract, new_head=True)
    assert model.new_modules == ["score"]


def test_a_head_of_a_whole_run_that_is_not_finite(sft_args):  # noqa: F811
    run = Path(trained(sft_args, objective="classify", tuning="full", calibration=False))
    assert Predictor(str(run)).predict("what a lovely sunny day").labels
    change(run / "model.safetensors", nan_in("score"))
    with pytest.raises(UserError, match=r"has numbers that are not finite in 1 tensor: score\.weight"):
        Predictor(str(run))


def test_a_head_for_other_labels_is_drawn_anew(copy_dir):
    """A classifier of three labels may be fine-tuned to tell six apart."""
    contract = Contract(EMOTION, objective="classify", head="linear")
    load_model(str(copy_dir), "fp32", "cpu", contract=contract, new_head=True).save_pretrained(copy_dir)
    change(copy_dir / "model.safetensors", lambda tensors: tensors | {"score.weight": torch.ones(3, 32)})
    with pytest.raises(UserError, match=r"score\.weight of shape \(3, 32\) in place of \(6, 32\)"):
        load_model(str(copy_dir), "fp32", "cpu", contract=contract)
    model = load_model(str(copy_dir), "fp32", "cpu", contract=contract, new_head=True)
    assert model.new_modules == ["score"]
    assert model.score.weight.shape == (6, 32)


# --- encoders without a pooler --------------------------------------------------------------------------------------

BERT = {name: value for name, value in SIZES.items() if name not in ("num_key_value_heads", "eos_token_id")}
DISTILBERT = dict(vocab_size=64, dim=32, hidden_dim=48, n_layers=2, n_heads=4, max_position_embeddings=64)
ENCODERS = {
    "bert": (transformers.BertConfig, BERT, transformers.BertForMaskedLM, ["classifier", "bert.pooler"]),
    "distilbert": (
        transformers.DistilBertConfig, DISTILBERT, transformers.DistilBertForMaskedLM, ["pre_classifier", "classifier"],
    ),
    "roberta": (transformers.RobertaConfig, BERT, transformers.RobertaForMaskedLM, ["classifier"]),
}  # fmt: skip


@pytest.fixture(params=ENCODERS)
def masked_dir(request, tmp_path):
    """An encoder as masked language modelling saves it: without a pooler. And the modules that have to be drawn."""
    config_class, sizes, model_class, new = ENCODERS[request.param]
    directory = tmp_path / request.param
    directory.mkdir()
    words = sorted({word for text in ALL_TEXTS for word in text.split()})
    (directory / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    tokenizer = transformers.BertTokenizerFast(str(directory / "vocab.txt"))
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    model_class(config_class(**sizes | {"vocab_size": len(tokenizer), "pad_token_id": 0})).save_pretrained(directory)
    return directory, new


@pytest.mark.parametrize("tuning", ["lora", "head"])
def test_all_that_is_new_in_an_encoder_is_learnt_and_saved(masked_dir, sft_args, monkeypatch, tuning):  # noqa: F811
    base, new = masked_dir
    in_memory = {}

    def and_look(trainer, checkpoint):
        train(trainer, checkpoint)
        model = trainer.model.eval()
        predictor = Predictor.from_model(model, trainer.encoder, trainer.contract)
        in_memory["scores"] = predictor.label_scores(ALL_TEXTS)
        in_memory["learnt"] = {name for name, p in model.named_parameters() if p.requires_grad}

    train = main_SFT.train
    monkeypatch.setattr(main_SFT, "train", and_look)
    settings = dict(
        model_path=str(base), objective="classify", prompt="text_only", tuning=tuning, max_length=32, max_steps=8,
        eval_steps=None, dev_data_path=None, val_ratio=0.0, learning_rate=3e-3, calibration=False,
    )  # fmt: skip
    run = trained(sft_args, **settings)
    for name in new:
        learnt = {n for n in in_memory["learnt"] if f"{name}." in n}
        assert learnt
        assert not any("lora_" in n for n in learnt)
    monkeypatch.setattr(main_SFT, "train", train)
    for seed in (1, 2):
        torch.manual_seed(seed)
        again = Predictor(run, precision="fp32").label_scores(ALL_TEXTS)
        torch.testing.assert_close(again, in_memory["scores"], atol=1e-5, rtol=0)
    if tuning == "lora":
        target = merged(run)
        torch.testing.assert_close(
            Predictor(target, precision="fp32").label_scores(ALL_TEXTS), in_memory["scores"], atol=1e-5, rtol=0
        )
        # as earlier versions left it
        change(Path(run) / "adapter_model.safetensors", without(new[-1]))
        with pytest.raises(UserError, match=rf"brings no .*{new[-1]}, which its base model .* lacks, too"):
            Predictor(run)


def test_what_is_new_stays_whole_over_four_bits(masked_dir, sft_args):  # noqa: F811
    pytest.importorskip("bitsandbytes")
    base, new = masked_dir
    config = transformers.AutoConfig.from_pretrained(base)
    wide = dict(hidden_size=64, num_attention_heads=1) | dict.fromkeys(("intermediate_size", "hidden_dim"), 128)
    for name, value in wide.items():
        if hasattr(config, name):
            setattr(config, name, value)
    transformers.AutoModelForMaskedLM.from_config(config).save_pretrained(base)
    run = Path(
        trained(
            sft_args, model_path=str(base), objective="classify", prompt="text_only", tuning="qlora", max_length=32,
            eval_steps=None, dev_data_path=None, val_ratio=0.0, calibration=False,
        )
    )  # fmt: skip
    learnt = load_file(run / "adapter_model.safetensors")
    for name in new:
        assert any(n.startswith(f"base_model.model.{name}.") and t.is_floating_point() for n, t in learnt.items())
        assert not any(f"{name}." in n and "lora_" in n for n in learnt)
    first, again = (Predictor(str(run), precision="fp32").label_scores(ALL_TEXTS) for _ in range(2))
    assert (first == again).all()
    assert merged(str(run))


@pytest.mark.parametrize(
    ("name", "reads"), [("roberta", 62), ("bert", 64), ("distilbert", 64)]
)  # a table of 64, of which RoBERTa leaves out those up to its padding's
def test_positions_that_a_model_reads(name, reads):
    config_class, sizes, _, _ = ENCODERS[name]
    sizes = sizes | {"vocab_size": 64, "pad_token_id": 1}
    config = config_class(**sizes)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    check_positions(model, reads, "x")
    model(input_ids=torch.full((1, reads), 7))
    with pytest.raises(
        UserError, match=f"--max_length: prompt and answer may take {reads + 1} tokens, x reads {reads}"
    ):
        check_positions(model, reads + 1, "x")
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, reads + 1), 7))


# --- fingerprints ---------------------------------------------------------------------------------------------------


def test_an_adapter_of_a_merged_model_does_not_go_on_the_original(runs, sft_args, tmp_path):  # noqa: F811
    """LoRA changes no vector, and a merged model is as the original was but for its matrices."""
    first = merged(str(runs["generate"]), output_dir=str(tmp_path / "merged"))
    upper = Path(trained(sft_args, objective="generate", model_path=first, output_dir=str(tmp_path / "upper")))
    stored = Contract.load(upper).base_fingerprint
    assert re.fullmatch("[0-9a-f]{16}-[0-9a-f]{16}", stored)
    vectors, _, matrices = stored.partition("-")
    before = Contract.load(runs["generate"]).base_fingerprint
    assert before.partition("-")[0] == vectors
    assert before.partition("-")[2] != matrices
    edit(upper / "adapter_config.json", base_model_name_or_path=sft_args.model_path)
    for start in (
        lambda: Predictor(str(upper)),
        lambda: merged(str(upper)),
        lambda: main_grpo.load_policy(
            main_grpo.Args(model_path=str(upper), train_data_path="x", precision="fp32"), longest=100
        ),
    ):
        with pytest.raises(UserError, match=f"was trained on another base model than {sft_args.model_path}"):
            start()
    # written by an earlier version
    edit(upper / "task.json", base_fingerprint=vectors)
    Predictor(str(upper)).close()


def test_a_fingerprint_is_of_weights_not_of_their_format(copy_dir, runs):
    model = load_model(str(copy_dir), "bf16", "cpu")
    known = fingerprint(model)
    model.save_pretrained(copy_dir)
    assert fingerprint(load_model(str(copy_dir), "fp32", "cpu")) == known
    adapted = load_model(str(runs["generate"]), "bf16", "cpu", contract=Contract.load(runs["generate"]))
    assert fingerprint(adapted) == known
    check_fingerprint(known, adapted, "x")
    check_fingerprint("0123456789abcdef", load_model(str(copy_dir), "fp16", "cpu"), "x")  # has no room for all of bf16
    check_fingerprint(None, adapted, "x")
    with pytest.raises(UserError, match="x: its weights differ"):
        check_fingerprint("0123456789abcdef", adapted, "x")
    with pytest.raises(UserError, match="x: its weights differ"):
        check_fingerprint(known.partition("-")[0] + "-0123456789abcdef", adapted, "x")


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_a_fingerprint_of_four_bits(tokenizer, tmp_path, prefix):
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.Qwen2ForCausalLM(config).to(torch.bfloat16)
    (model if prefix else model.model).save_pretrained(tmp_path / "base")
    known = fingerprint(load_model(str(tmp_path / "base")))
    quantized = load_model(str(tmp_path / "base"), load_in_4bit=True)
    assert fingerprint(quantized) == known
    quantized.name_or_path = str(tmp_path / "gone")
    assert fingerprint(quantized) == known.partition("-")[0]
    check_fingerprint(known, quantized, "x")  # as far as it goes


# --- plain Transformers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["single_label", "multi_label"])
@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_head_works_in_a_plain_pipeline(sft_args, plain_tokenizer, tmp_path, kind, tuning):  # noqa: F811
    base = Path(shutil.copytree(sft_args.model_path, tmp_path / "base"))
    (base / "chat_template.jinja").unlink()
    plain_tokenizer.save_pretrained(base)
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(EMOTION.labels))
    run = trained(
        sft_args, model_path=str(base), task=kind, label_path=str(labels), objective="classify", prompt="text_only",
        tuning=tuning, calibration=False, learning_rate=1e-3,
    )  # fmt: skip
    directory = merged(run) if tuning == "lora" else run
    pipeline = transformers.pipeline(
        "text-classification", model=directory, top_k=None, dtype=torch.float32, device="cpu"
    )
    predictions = Predictor(directory, precision="fp32").predict_batch(ALL_TEXTS[:3])
    for found, prediction in zip(pipeline(ALL_TEXTS[:3], batch_size=3), predictions, strict=True):
        shares = {row["label"]: row["score"] for row in found}
        assert shares == pytest.approx(prediction.probabilities, abs=1e-5)
        assert (sum(shares.values()) == pytest.approx(1.0)) == (kind == "single_label")


# --- files that are broken ------------------------------------------------------------------------------------------

BROKEN = {
    "config null": ("config.json", b"null", "config.json: not a JSON object"),
    "config list": ("config.json", b"[]", "config.json: not a JSON object"),
    "config deep": ("config.json", b"[" * 100_000, "config.json: not a JSON object"),
    "config deep object": ("config.json", b'{"a":' * 100_000, "config.json: not a JSON object"),
    "config not UTF-8": ("config.json", b"\xff\xfe", "config.json: not a JSON object"),
    "config empty": ("config.json", b"{}", "config.json: names no model_type"),
    "config of defaults": ("config.json", b'{"model_type": "qwen2"}', "vocab_size is 151936, but no tensor"),
    "tokenizer null": ("tokenizer.json", b"null", "tokenizer.json: not a JSON object"),
    "tokenizer empty": ("tokenizer.json", b"{}", "no tokenizer: lacks 'added_tokens'"),
    "tokenizer deep": ("tokenizer.json", b"[" * 100_000, "tokenizer.json: not a JSON object"),
    "tokenizer gone": ("tokenizer.json", None, "no tokenizer: its vocabulary is empty"),
    "tokenizer settings": ("tokenizer_config.json", b"[]", "tokenizer_config.json: not a JSON object"),
    "generation settings": ("generation_config.json", b"{", "generation_config.json: not a JSON object"),
    "no weights": ("model.safetensors", None, "does not load: Error no file named model.safetensors"),
    "no header": ("model.safetensors", b"", "model.safetensors: Error while deserializing header"),
    "a long header": ("model.safetensors", b"\xff" * 64, "model.safetensors: Error while deserializing header"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_clear_line(copy_dir, name):
    file, content, message = BROKEN[name]
    if content is None:
        (copy_dir / file).unlink()
    else:
        (copy_dir / file).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load_all(copy_dir)
    assert "\n" not in str(caught.value)
    assert str(copy_dir) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model_type", 3, "model_type is 3, expected a text"),
        ("model_type", "unheard_of", "has model type `unheard_of` but Transformers does not recognize"),
        ("num_hidden_layers", 10**9, "num_hidden_layers is 1000000000, expected at most 1000"),
        ("num_hidden_layers", 10**30, "num_hidden_layers is 1000000000000000000000000000000, expected at most 1000"),
        ("num_hidden_layers", "2", "num_hidden_layers is '2', expected a whole number"),
        ("hidden_size", 10**9, "hidden_size is 1000000000, but no tensor beside it has such a side"),
        ("hidden_size", "32", "Validation error for field 'hidden_size'"),
        ("hidden_size", None, "Validation error for field 'hidden_size'"),
        ("vocab_size", 10**9, "vocab_size is 1000000000, but no tensor beside it has such a side"),
        ("vocab_size", -1, "vocab_size is -1, but no tensor beside it has such a side"),
        ("num_attention_heads", 0, "does not load: ZeroDivisionError"),
        ("eos_token_id", 10**30, "eos_token_id is 1000000000000000000000000000000, expected at most"),
        ("hidden_act", "x", "does not load: lacks 'x'"),
        ("quantization_config", "x", "no tokenizer: AttributeError"),
    ],
)
def test_a_setting_that_cannot_be_is_one_clear_line(copy_dir, name, value, message):
    edit(copy_dir / "config.json", **{name: value, "layer_types": ...})
    begin = time.monotonic()
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load_all(copy_dir)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - begin < 3


def test_numbers_in_a_config_end_in_a_model_or_a_line(copy_dir):
    names = [name for name, value in json.loads((copy_dir / "config.json").read_text()).items() if value is not None]
    original = (copy_dir / "config.json").read_text()
    values = st.one_of(
        st.none(), st.booleans(), st.integers(-2, 100), st.sampled_from([2**31, 2**63, 10**30, 1e308]), st.text(max_size=3),
        st.lists(st.integers(0, 3), max_size=2), st.dictionaries(st.text(max_size=2), st.integers(0, 3), max_size=2),
    )  # fmt: skip

    @settings(max_examples=40, deadline=None)
    @given(st.sampled_from(names), values)
    def check(name, value):
        (copy_dir / "config.json").write_text(original)
        edit(copy_dir / "config.json", **{name: value})
        with contextlib.suppress(UserError):
            load_all(copy_dir)

    check()


@pytest.mark.parametrize("weights", ["pytorch_model.bin", "model.pt"])
def test_a_pickle_is_not_read(copy_dir, weights):
    tensors = load_file(copy_dir / "model.safetensors")
    (copy_dir / "model.safetensors").unlink()
    torch.save(tensors, copy_dir / weights)
    with pytest.raises(UserError, match=rf"its weights are a pickle \({weights}\), which can run code"):
        check_model_path(str(copy_dir))
    with pytest.raises(UserError):
        load_model(str(copy_dir))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": "8"}, "r is '8', expected a whole number"),
        ({"r": 0}, "r is 0, expected a number from 1 to"),
        ({"r": 10**9}, "r is 1000000000, expected a number from 1 to"),
        ({"r": 16}, "r is 16, but adapter_model.safetensors has matrices of rank 8"),
        ({"r": ...}, "r is missing, expected a number from 1 to"),
        ({"lora_alpha": None}, "lora_alpha is None, expected a number"),
        ({"base_model_name_or_path": 3}, "base_model_name_or_path is 3, expected a text or null"),
        ({"base_model_name_or_path": None}, "names no base model"),
        ({"base_model_name_or_path": "models/a\0b"}, r"its base model 'models/a\x00b' is not there"),
        ({"base_model_name_or_path": "/" + "a" * 5000}, "cannot be read (File name too long)"),
        ({"peft_type": "FOO"}, "peft_type is 'FOO', expected 'LORA'"),
        ({"peft_type": ["LORA"]}, "peft_type is ['LORA'], expected a text"),
        ({"target_modules": 3}, "target_modules is 3, expected a list or a text or null"),
        ({"target_modules": ["nothing"]}, "does not fit its base model"),
        ({"modules_to_save": "score"}, "modules_to_save is 'score', expected a list or null"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_settings_of_an_adapter_that_cannot_be(run_of, fields, message):
    run = run_of("generate")
    edit(run / "adapter_config.json", **fields)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load_model(str(run), "fp32", "cpu")
    assert str(run) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["models/a\0b", "a" * 5000, "/" + "a" * 5000, "a b/c", "", "models/loop"])
def test_a_path_that_cannot_be(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "loop").symlink_to(tmp_path / "models" / "loop")
    with pytest.raises(UserError, match="--model_path"):
        check_model_path(name)


def test_an_adapter_over_itself(run_of):
    run = run_of("generate")
    edit(run / "adapter_config.json", base_model_name_or_path=str(run))
    with pytest.raises(UserError, match="an adapter that is its own base model"):
        load_model(str(run))


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "x: not enough memory (MemoryError)"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            "x: not enough memory (CUDA out of memory.",
        ),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "x: not enough memory ("),
        (KeyError("added_tokens"), "x: lacks 'added_tokens'"),
        (TypeError("'NoneType' object is not iterable"), "x: TypeError: 'NoneType' object"),
        (ValueError("first\nsecond"), "x: first"),
        (ValueError("for field 'a':\n    TypeError"), "x: for field 'a': TypeError"),
        (OSError(), "x: OSError"),
    ],
)
def test_what_a_loader_raises_becomes_a_line(error, line):
    with pytest.raises(UserError) as caught, loading("x"):
        raise error
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, UserError])
def test_what_is_no_loaders_error_goes_through(error):
    with pytest.raises(error), loading("x"):
        raise error


# --- hubs -----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["nobody", "silent"])
def dead_hub(request, monkeypatch, tmp_path):
    """A hub at a port where nobody listens, and one that takes connections and says nothing."""
    from huggingface_hub import constants

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if request.param == "silent":
            server.listen()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        check_hub.cache_clear()
        yield constants.ENDPOINT


def test_a_hub_that_does_not_answer(dead_hub):
    begin = time.monotonic()
    with pytest.raises(UserError, match=rf"--model_path someone/model: .* no answer from the hub at {dead_hub}"):
        check_model_path("someone/model")
    assert time.monotonic() - begin < 5


def test_no_hub_is_asked_for_what_is_in_the_cache(dead_hub, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    check_model_path("someone/offline")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    cached = tmp_path / "cache" / "models--someone--model"
    (cached / "snapshots" / "0").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0")
    (cached / "snapshots" / "0" / "config.json").write_text("{}")
    check_model_path("someone/model")

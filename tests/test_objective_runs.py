"""main_SFT.py with each objective, head and tuning on tiny models, from flags to a scored directory."""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file

import main_SFT
from data.arguments import UserError
from data.contract import Contract
from data.engine.padding import KeptTogether, LikeLengths
from data.files import CALIBRATION_FILE
from data.labels import TEXT_ONLY
from data.tasks import BUILT_IN_TASKS
from inference import Predictor
from main_SFT import Args, main
from tests.test_classifier import SIZES
from tests.test_sft import KillAt, Killed

TEXTS = {
    "joy": ["what a lovely sunny day", "so happy about this", "great news today", "this made me smile a lot"],
    "sadness": ["i cried all night long", "she left and i miss her", "nothing is left to hope for", "such a sad end"],
    "anger": ["how dare they lie to us", "i am furious with him", "stop shouting at me now", "what an outrage again"],
}


@pytest.fixture(scope="module")
def tiny_bert_dir(tmp_path_factory):
    from transformers import BertConfig, BertModel, BertTokenizerFast

    directory = tmp_path_factory.mktemp("tiny-bert")
    words = sorted({word for texts in TEXTS.values() for text in texts for word in text.split()})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (directory / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    tokenizer = BertTokenizerFast(str(directory / "vocab.txt"))
    tokenizer.save_pretrained(directory)
    sizes = {name: value for name, value in SIZES.items() if name not in ("num_key_value_heads", "eos_token_id")}
    torch.manual_seed(0)
    BertModel(BertConfig(**sizes | {"vocab_size": len(tokenizer), "pad_token_id": 0})).save_pretrained(directory)
    return directory


@pytest.fixture
def args(tiny_model_dir, tmp_path) -> Args:
    """Twelve texts of three emotions, learnt by heart."""
    rows = [f"{text};{label}" for label, texts in TEXTS.items() for text in texts]
    for name in ("train", "dev", "test"):
        (tmp_path / f"{name}.txt").write_text("\n".join(rows), encoding="utf-8")
    return Args(
        model_path=str(tiny_model_dir), task="emotion", train_data_path=str(tmp_path / "train.txt"),
        dev_data_path=str(tmp_path / "dev.txt"), test_data_path=str(tmp_path / "test.txt"),
        output_dir=str(tmp_path / "run"), precision="fp32", max_steps=32, batch_size=6, learning_rate=1e-2,
        lora_r=8, eval_steps=32, logging_steps=10, warmup_steps=0,
    )  # fmt: skip


def results(args) -> dict:
    return json.loads((Path(args.output_dir) / "test_results.json").read_text())


def trainer_log(args) -> list[dict]:
    return json.loads((Path(args.output_dir) / "trainer_state.json").read_text())["log_history"]


WAYS = {
    "linear head": dict(objective="classify", head="linear"),
    "mlp head, all weights": dict(objective="classify", head="mlp", tuning="full", learning_rate=3e-3),
    "score": dict(objective="score", class_weights="balanced", loss="focal"),
    "contrastive": dict(objective="score", score_loss="contrastive"),
}
MORE_WAYS = {
    "mlp head": dict(objective="classify", head="mlp"),
    "prompted head": dict(objective="classify", prompt="instruction_first"),
    "unpacked head": dict(objective="classify", prefix_sharing="off"),
    "compared unpacked": dict(objective="score", score_loss="contrastive", prefix_sharing="off"),
    "focal": dict(objective="classify", loss="focal", class_weights="balanced", label_smoothing=0.1),
}


@pytest.mark.parametrize("way", [*WAYS, *(pytest.param(way, marks=pytest.mark.real) for way in MORE_WAYS)])
def test_three_emotions_are_learnt(args, way):
    args = dataclasses.replace(args, **(WAYS | MORE_WAYS)[way])
    main(args)
    scores = results(args)
    assert scores["accuracy"] >= 0.9
    assert scores["auc"] > 0.95
    assert 0 <= scores["ece"] <= 1
    assert set(scores["uncalibrated"]) == {"ece", "brier"}
    contract = Contract.load(args.output_dir)
    assert contract.objective == args.objective
    assert contract.temperature != 1.0
    rows = [json.loads(line) for line in (Path(args.output_dir) / "predictions.jsonl").read_text().splitlines()]
    assert sum(rows[0]["probabilities"].values()) == pytest.approx(1.0)
    assert rows[0]["confidence"] == pytest.approx(max(rows[0]["probabilities"].values()))
    predictor = Predictor(args.output_dir, precision="fp32")
    alone = [predictor.predict(row["text"]) for row in rows[:3]]
    for prediction, row in zip(alone, rows[:3], strict=True):
        assert list(prediction.labels) == row["labels"]
        assert prediction.probabilities == pytest.approx(row["probabilities"], abs=1e-4)


def test_the_head_alone(args, tiny_model_dir):
    args = dataclasses.replace(args, tuning="head", learning_rate=3e-2)
    main(args)
    before = load_file(tiny_model_dir / "model.safetensors")
    after = load_file(Path(args.output_dir) / "model.safetensors")
    assert set(after) - set(before) == {"score.weight"}
    for name in set(after) & set(before):
        torch.testing.assert_close(after[name], before[name], atol=0, rtol=0)
    assert results(args)["accuracy"] > 0.6


@pytest.mark.parametrize(
    ("tuning", "rate"),
    [
        ("full", 3e-3),
        pytest.param("lora", 3e-3, marks=pytest.mark.real),
        pytest.param("head", 3e-2, marks=pytest.mark.real),
    ],
)
def test_an_encoder(args, tiny_bert_dir, tuning, rate, capsys):
    args = dataclasses.replace(args, model_path=str(tiny_bert_dir), tuning=tuning, learning_rate=rate, max_length=64)
    main(args)
    losses = [e["loss"] for e in trainer_log(args) if "loss" in e]
    assert losses[-1] < losses[0]  # by how much, the tests on real weights say
    contract = Contract.load(args.output_dir)
    assert (contract.objective, contract.task.template) == ("classify", TEXT_ONLY)
    assert "cannot share prefixes" not in capsys.readouterr().out
    assert results(args)["backend"] == "bert"
    predictor = Predictor(args.output_dir, backend="bert")
    with pytest.raises(UserError, match=r"--backend hf: .* is an encoder, which bert runs"):
        Predictor(args.output_dir, backend="hf")
    (ids,) = predictor.encoder.prompt_ids(["so happy about this"])
    names = predictor.encoder.tokenizer.convert_ids_to_tokens(ids)
    assert (names[0], names[-1]) == ("[CLS]", "[SEP]")


def test_an_encoder_learns_the_same_without_padding(args, tiny_bert_dir, tmp_path, capsys):
    calm = tmp_path / "calm"
    shutil.copytree(tiny_bert_dir, calm)
    config = json.loads((calm / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (calm / "config.json").write_text(json.dumps(config))
    losses = {}
    for sharing in ("off", "auto"):
        run = dataclasses.replace(
            args, model_path=str(calm), tuning="full", learning_rate=1e-3, max_length=64, prefix_sharing=sharing,
            max_steps=6, eval_steps=6, logging_steps=1, gradient_accumulation_steps=2, batch_size=3,
            class_weights="balanced", output_dir=str(tmp_path / sharing),
        )  # fmt: skip
        main(run)
        losses[sharing] = [e[name] for e in trainer_log(run) for name in ("loss", "eval_loss") if name in e]
        assert ("no padding: " in capsys.readouterr().out) == (sharing == "auto")
    assert len(losses["off"]) == 7
    assert losses["auto"] == pytest.approx(losses["off"], abs=1e-5)


@pytest.mark.parametrize("sharing", ["auto", "on"])
def test_an_encoder_that_needs_padding_gets_batches_of_like_length(args, tiny_bert_dir, monkeypatch, capsys, sharing):
    monkeypatch.setattr("data.engine.unpadded.unpadding_obstacle", lambda model: "it is in a test")
    build, seen = main_SFT.build_trainer, []

    def kept(*arguments):
        seen.append(build(*arguments))
        return seen[0]

    monkeypatch.setattr(main_SFT, "build_trainer", kept)
    args = dataclasses.replace(
        args, model_path=str(tiny_bert_dir), tuning="full", max_steps=2, max_length=64, prefix_sharing=sharing
    )
    main(args)
    assert isinstance(seen[0]._get_train_sampler(), LikeLengths)
    assert all("attention_mask" in batch for batch in seen[0].get_train_dataloader())
    warned = "cannot do without padding, since it is in a test; batches are of like length"
    assert (warned in capsys.readouterr().out) == (sharing == "on")


def test_several_labels_get_thresholds(args, tmp_path):
    rows = [f"{text}\t{i}{',3' if n % 2 else ''}\tid{i}{n}" for i, texts in enumerate(TEXTS.values()) for n, text in
            enumerate(texts)]  # fmt: skip
    for name in ("train", "dev"):
        (tmp_path / f"{name}.tsv").write_text("\n".join(rows), encoding="utf-8")
    for objective in ("classify", "score"):
        several = dataclasses.replace(
            args, task="goemotions-group", objective=objective, max_steps=40, eval_steps=40,
            train_data_path=str(tmp_path / "train.tsv"), dev_data_path=str(tmp_path / "dev.tsv"),
            test_data_path=str(tmp_path / "dev.tsv"), output_dir=str(tmp_path / objective),
        )  # fmt: skip
        main(several)
        contract = Contract.load(several.output_dir)
        assert set(contract.thresholds) == set(contract.task.labels)
        assert results(several)["f1_macro"] > 0.8
        predictor = Predictor(several.output_dir, precision="fp32")
        texts = [text for texts in TEXTS.values() for text in texts]
        shares = [p.probabilities for p in predictor.predict_batch(texts)]
        assert any(abs(sum(s.values()) - 1) > 0.05 for s in shares) == (objective == "classify")


def test_an_untuned_model_is_scored(tiny_model_dir, tmp_path):
    predictor = Predictor(str(tiny_model_dir), "emotion", objective="score", precision="fp32")
    scores = predictor.label_scores(["so happy", "how dare they"])
    assert scores.shape == (2, 6)
    assert numpy.isfinite(scores).all()
    assert (scores < 0).all()
    prediction = predictor.predict("so happy")
    assert prediction.label == BUILT_IN_TASKS["emotion"].labels[int(scores[0].argmax())]
    with pytest.raises(UserError, match=r"--backend bert: .* is no encoder, which hf and vllm run"):
        Predictor(str(tiny_model_dir), "emotion", backend="bert")
    with pytest.raises(UserError, match=r"--objective classify: .* is untuned"):
        Predictor(str(tiny_model_dir), "emotion", objective="classify")


def test_what_was_trained_is_what_is_asked(args):
    args = dataclasses.replace(args, objective="classify", max_steps=1)
    main(args)
    with pytest.raises(UserError, match=r"--objective score contradicts .*task.json: trained with classify"):
        Predictor(args.output_dir, objective="score")


def test_a_run_goes_on_to_its_calibration(args, capsys):
    args = dataclasses.replace(args, objective="score", max_steps=2, test_data_path=None)
    main(args)
    file = Path(args.output_dir) / CALIBRATION_FILE
    calibrated = Contract.load(args.output_dir)
    file.unlink()
    dataclasses.replace(calibrated, temperature=1.0).save(args.output_dir)
    main(args)
    assert "trained to its end already" in capsys.readouterr().out
    assert file.is_file()
    assert Contract.load(args.output_dir).temperature == pytest.approx(calibrated.temperature, rel=1e-3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (dict(objective="generate", head="mlp"), "--head mlp: needs --objective classify; generate has no head"),
        (dict(objective="score", tuning="head"), "--tuning head: needs --objective classify"),
        (dict(objective="score", prompt="text_only"), "--prompt text_only: needs --objective classify"),
        (dict(objective="score", cot=True), "--cot: needs --objective generate"),
        (dict(objective="classify", score_loss="contrastive"), "--score_loss contrastive: needs --objective score"),
        (dict(objective="generate", label_smoothing=0.1), "--label_smoothing: needs --objective classify"),
        (dict(label_smoothing=1.0), "--label_smoothing 1.0: must be from 0 to 0.9"),
        (dict(focal_gamma=-1.0), "--focal_gamma -1.0: must be from 0 to 10"),
        (dict(search=0), "--search 0: must be from 1 to 10000"),
    ],
)
def test_flags_that_do_not_go_together(args, flags, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(args, **flags)


def test_an_encoder_writes_nothing(args, tiny_bert_dir):
    for objective in ("score", "generate"):
        with pytest.raises(UserError, match=f"--objective {objective}: .* is an encoder"):
            main(dataclasses.replace(args, model_path=str(tiny_bert_dir), objective=objective))
    with pytest.raises(UserError, match=r"--objective score: .* is an encoder"):
        Predictor(str(tiny_bert_dir), "emotion", objective="score")


# --- answers of free text -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_answers_to_one_case_are_kept_together(size):
    """Each row once, those of one beginning side by side; the same order for each process and after a resumption."""
    beginnings = [n % 40 if n % 3 else n % 17 for n in range(100)]
    order = KeptTogether(size, beginnings, seed=1)
    drawn = list(order)
    assert len(order) == 100
    assert sorted(drawn) == list(range(100))
    groups = [beginnings[row] for row in drawn]
    assert sum(a != b for a, b in itertools.pairwise(groups)) == len(set(beginnings)) - 1
    assert drawn == list(order) == list(KeptTogether(size, beginnings, seed=1))
    order.set_epoch(1)
    assert list(order) != drawn
    assert list(KeptTogether(size, beginnings, seed=2)) != drawn


def test_groups_are_cut_no_more_often_than_they_must():
    """Three pairs, two threes and two alone: in batches of two, each three stands where it fills up two with one."""
    beginnings = [*"aabbccdddeeefg"]
    for seed in range(20):
        drawn = [beginnings[row] for row in KeptTogether(2, beginnings, seed)]
        batches = [{*drawn[i : i + 2]} for i in range(0, 14, 2)]
        assert all({letter} in batches for letter in "abcde")


@pytest.fixture
def summary_args(tiny_model_dir, tmp_path) -> Args:
    """Five cases, two of which have two summaries each."""
    rows = [
        {
            "case_description": [f"A person of {20 + case} who sleeps badly.", "It began " + "long ago " * case],
            "consultation_process": [f"Visitor: it is the work, {case} times.", f"Counsellor: since {case}?"],
            "experience_and_reflection": f"The cause is {what}.",
        }
        for case, what in enumerate(("work", "grief", "noise", "haste", "worry"))
    ]
    rows += [row | {"experience_and_reflection": "What helped is rest."} for row in rows[:2]]
    path = tmp_path / "cases.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return Args(
        model_path=str(tiny_model_dir), task="emotion-summary", train_data_path=str(path), tuning="lora",
        output_dir=str(tmp_path / "run"), precision="fp32", max_steps=6, batch_size=2, gradient_accumulation_steps=1,
        learning_rate=1e-2, lora_r=4, lora_dropout=0.1, val_ratio=0.0, save_steps=2, max_length=1024, logging_steps=1,
    )  # fmt: skip


def trained(args: Args) -> dict[str, torch.Tensor]:
    return load_file(Path(args.output_dir) / "adapter_model.safetensors")


def test_a_killed_run_of_summaries_goes_on_to_the_same_result(summary_args, tmp_path, monkeypatch, capsys):
    main(summary_args)
    assert "prefix sharing on: " in capsys.readouterr().out
    killed = dataclasses.replace(summary_args, output_dir=str(tmp_path / "killed"))
    build, seen = main_SFT.build_trainer, []

    def build_and_kill(*arguments):
        seen.append(build(*arguments))
        seen[0].add_callback(KillAt(5))  # in the second epoch of four batches, behind the checkpoint of step 4
        return seen[0]

    with monkeypatch.context() as patch:
        patch.setattr(main_SFT, "build_trainer", build_and_kill)
        with pytest.raises(Killed):
            main(killed)
    sampler = seen[0]._get_train_sampler()
    assert isinstance(sampler, KeptTogether)
    assert sum(len(group) == 2 for group in sampler.groups) == 2
    main(killed)
    facts = json.loads((tmp_path / "killed" / "train_results.json").read_text())
    assert facts["resumed_from"].endswith("checkpoint-4")
    expected, found = trained(summary_args), trained(killed)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_summaries_are_learnt_alike_packed_and_padded(summary_args, tmp_path):
    """One batch of all rows: its order does not matter."""
    losses = {}
    for sharing in ("on", "off"):
        run = dataclasses.replace(
            summary_args, prefix_sharing=sharing, batch_size=7, max_steps=3, output_dir=str(tmp_path / sharing),
            lora_dropout=0.0,
        )  # fmt: skip
        main(run)
        losses[sharing] = [entry["loss"] for entry in trainer_log(run) if "loss" in entry]
    assert losses["on"] == pytest.approx(losses["off"], abs=1e-5)

"""main_grpo.py on tiny models: rewards, shared prefixes against TRL's own path, a run from start to end, resumption."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import pandas
import pytest
import torch
from safetensors.torch import load_file

import main_grpo
import main_SFT
import merge_lora
from data.arguments import UserError
from data.contract import Contract
from data.encoding import RATIONALE_TOKENS, Encoder
from data.engine.generation import generate_greedy, sample_answers
from data.engine.models import load_model, load_tokenizer
from data.engine.span_attention import SPAN_ATTENTION
from data.engine.tree_attention import computes_packed_rows, ordinary_attention
from data.learning.rewards import Rewards, format_reward, jaccard_reward, length_reward
from data.loading import load_examples
from data.predictions import Prediction
from data.tasks import BUILT_IN_TASKS
from inference import Predictor
from main_grpo import (
    Args,
    answer_lengths,
    build_trainer,
    load_policy,
    main,
)
from tests.conftest import SAMPLE

ORIGINAL = BUILT_IN_TASKS["goemotions-original"]
WEIGHTS = {"jaccard": 1.0, "format": 0.5, "length": 0.25}


@pytest.fixture(scope="session")
def taught_dir(tiny_model_dir, tmp_path_factory) -> Path:
    """The tiny model after some fine-tuning: it writes short answers, of which some are right."""
    out = tmp_path_factory.mktemp("taught") / "run"
    settings = main_SFT.Args(
        model_path=str(tiny_model_dir), label_path=str(SAMPLE / "labels.txt"),
        train_data_path=str(SAMPLE / "train.tsv"), output_dir=str(out), precision="fp32", tuning="full",
        max_steps=60, batch_size=16, learning_rate=1e-2, val_ratio=0.0, max_length=1024,
    )  # fmt: skip
    main_SFT.main(settings)
    return out


@pytest.fixture
def args(taught_dir, tmp_path) -> Args:
    for split, rows in (("train", 24), ("dev", 6), ("test", 4)):
        lines = (SAMPLE / f"{split}.tsv").read_text(encoding="utf-8").splitlines(keepends=True)[:rows]
        (tmp_path / f"{split}.tsv").write_text("".join(lines), encoding="utf-8")
    return Args(
        model_path=str(taught_dir), label_path=str(SAMPLE / "labels.txt"),
        train_data_path=str(tmp_path / "train.tsv"), dev_data_path=str(tmp_path / "dev.tsv"),
        output_dir=str(tmp_path / "run"), precision="fp32", batch_size=8, num_generations=4, max_steps=4, eval_steps=2,
        logging_steps=1, learning_rate=1e-2, max_completion_length=16, length_budget=8, max_length=1024,
    )  # fmt: skip


def trainer_of(args: Args):
    """The trainer of a run, as `reinforce` builds it."""
    encoder = Encoder(ORIGINAL, load_tokenizer(args.model_path), max_length=1024)
    data = main_grpo.load_data(args, ORIGINAL, kind_known=True)
    model = load_policy(args, longest=1024)
    return build_trainer(args, data, model, encoder, Contract(ORIGINAL, max_length=1024))


# --- rewards --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("predicted", "gold", "expected"),
    [
        (("joy",), ("joy",), 1.0),
        (("joy", "love"), ("joy",), 0.5),
        (("joy",), ("joy", "love", "anger"), 1 / 3),
        (("joy",), ("anger",), 0.0),
        ((), ("anger",), 0.0),
        ((), (), 1.0),
    ],
)
def test_the_jaccard_reward(predicted, gold, expected):
    assert jaccard_reward(Prediction(predicted, valid=True), gold) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "cot", "expected"),
    [
        ("joy, love", False, 1.0),
        ("joy, joy", False, 0.0),
        ("joy, happiness", False, 0.0),
        ("the answer is joy", False, 0.0),
        ("", False, 0.0),
        ("<think>\nwhy not\n</think>\n<answer>joy</answer>", True, 1.0),
        ("<answer>joy</answer><think>\nwhy not\n</think>", True, 0.0),
        ("<think>\na\n</think>\n<think>\nb\n</think>\n<answer>joy</answer>", True, 0.0),
        ("<think>\na\n</think>\n<answer>joy</answer> and more", True, 0.0),
        ("joy", True, 0.0),
    ],
)
def test_the_format_reward(answer, cot, expected):
    assert format_reward(ORIGINAL.parse(answer, cot), finished=True) == expected
    assert format_reward(ORIGINAL.parse(answer, cot), finished=False) == 0.0


@pytest.mark.parametrize(
    ("length", "finished", "expected"), [(1, True, 0), (10, True, 0), (12, True, -0.2), (20, True, -1), (20, False, -1)]
)
def test_the_length_reward(length, finished, expected):
    assert length_reward(length, 10, 20, finished) == pytest.approx(expected)


def test_a_budget_as_large_as_the_limit():
    assert length_reward(20, 20, 20, finished=True) == 0
    assert length_reward(20, 20, 20, finished=False) == -1


def test_rewards_of_token_ids(tokenizer):
    encoder = Encoder(ORIGINAL, tokenizer, max_length=1024)
    right, wrong = encoder.target_ids(["joy", "love"]), encoder.target_ids(["anger"])
    rewards = Rewards(encoder, [encoder.end_id], budget=len(wrong), limit=2 * len(wrong), weights=WEIGHTS)
    answers, gold = [right, wrong, wrong[:-1]], [("joy", "love"), ("joy", "anger"), ("anger",)]
    assert rewards.jaccard(answers, gold) == [1, 0.5, 1]
    assert rewards.format(answers) == [1, 1, 0]
    assert rewards.length(answers) == [-(len(right) - len(wrong)) / len(wrong), 0, -1]
    totals = rewards.totals(answers, gold)
    assert totals == pytest.approx([1.5 + 0.25 * rewards.length(answers)[0], 1.0, 0.75])
    only_format = dataclasses.replace(rewards, weights={"jaccard": 0.0, "format": 2.0, "length": 0.0})
    assert only_format.totals(answers, gold) == [2, 2, 0]
    assert len(only_format.functions()) == 1


def test_budget_and_limit_of_an_answer(args, tokenizer):
    encoder = Encoder(ORIGINAL, tokenizer, max_length=1024)
    train = load_examples(args.train_data_path, ORIGINAL)
    longest = max(len(encoder.target_ids(e.labels)) for e in train)
    default = dataclasses.replace(args, length_budget=None, max_completion_length=None)
    assert answer_lengths(default, encoder, train) == (longest, encoder.answer_tokens)
    reasoning = Encoder(ORIGINAL, tokenizer, cot=True, max_length=1024)
    budget, limit = answer_lengths(default, reasoning, train)
    assert longest + RATIONALE_TOKENS < budget <= limit == reasoning.answer_tokens
    with pytest.raises(UserError, match="--length_budget 17: is over --max_completion_length 16"):
        answer_lengths(dataclasses.replace(args, length_budget=17), encoder, train)
    with pytest.raises(UserError, match=f"--max_completion_length 2: the longest gold answer takes {longest} tokens"):
        answer_lengths(dataclasses.replace(args, length_budget=None, max_completion_length=2), encoder, train)
    with pytest.raises(
        UserError, match=r"2: the longest gold answer takes \d+ tokens without its reasoning: .* of row "
    ):
        answer_lengths(dataclasses.replace(args, length_budget=None, max_completion_length=2), reasoning, train)


# --- what is shared is computed once: same numbers -------------------------------------------------------------------


def drawn_batch(trainer):
    """Prompts and answers of two groups, as the trainer makes them."""
    rows = [trainer.train_dataset[i] for i in (0, 0, 0, 0, 3, 3, 3, 3)]
    batch = trainer._generate_and_score_completions(rows)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    return batch, ids, mask


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("masked", [False, True])
def test_packed_log_probs_are_those_of_trl(args, temperature, masked):
    trainer = trainer_of(dataclasses.replace(args, temperature=temperature))
    batch, ids, mask = drawn_batch(trainer)
    answer_length = batch["completion_ids"].shape[1]
    if masked:  # as TRL does with answers that were cut off
        mask[[1, 2, 6], -answer_length:] = 0
    model = trainer.model
    assert computes_packed_rows(model)
    assert model.config._attn_implementation == SPAN_ATTENTION

    def numbers(batch_size=None):
        model.zero_grad()
        log_probs, entropies, _ = trainer._get_per_token_logps_and_entropies(
            model, ids, mask, answer_length, batch_size, compute_entropy=True
        )
        weights = torch.linspace(-1, 1, log_probs.numel()).view_as(log_probs)
        (log_probs * weights).mean().backward()  # on the scale of a loss
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        return log_probs.detach(), entropies.detach(), gradients

    for parameter in model.parameters():  # an adapter begins as zero, which hides half of its gradients
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05)
    packed, chunked = numbers(), numbers(batch_size=3)
    model.get_base_model().computes_packed_rows = False
    with ordinary_attention(model):
        plain = numbers()
    here = mask[:, -answer_length:].bool()
    assert here.any()
    for found in (packed, chunked):
        for values, expected in zip(found[:2], plain[:2], strict=True):
            assert values.shape == expected.shape == here.shape
            torch.testing.assert_close(values[here], expected[here], atol=1e-5, rtol=1e-5)
            assert not values[~here].any()
        assert found[2].keys() == plain[2].keys()
        for name, gradient in plain[2].items():
            torch.testing.assert_close(found[2][name], gradient, atol=1e-5, rtol=1e-4)


def test_a_batch_in_which_every_answer_is_masked(args):
    trainer = trainer_of(args)
    batch, ids, mask = drawn_batch(trainer)
    answer_length = batch["completion_ids"].shape[1]
    mask[:, -answer_length:] = 0
    log_probs, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, answer_length)
    log_probs.sum().backward()
    assert not log_probs.any()
    assert all(not p.grad.any() for p in trainer.model.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", ["qwen2", "one prompt"])
def test_samples_from_a_branched_cache_are_those_of_a_prompt_alone(args, kind):
    model = load_model(args.model_path, "fp32")
    encoder = Encoder(ORIGINAL, load_tokenizer(args.model_path), max_length=1024)
    texts = [e.text for e in load_examples(args.train_data_path, ORIGINAL)][: 1 if kind == "one prompt" else 5]
    prompts = encoder.prompt_ids(texts)
    stop_ids, pad_id = [encoder.end_id], encoder.tokenizer.pad_token_id
    drawn = sample_answers(model, prompts, 3, stop_ids, 12, pad_id, top_k=1)  # one token to draw from: the greedy one
    assert len(drawn) == 3 * len(prompts)
    for i, prompt in enumerate(prompts):
        (alone,), _ = generate_greedy(model, [prompt], stop_ids, 12, pad_id)
        for ids in drawn[3 * i : 3 * i + 3]:
            assert ids == alone or ids == [*alone, encoder.end_id]


def test_samples_follow_the_models_distribution(args):
    """The first token drawn 3,000 times has the frequencies that a plain forward pass says."""
    model = load_model(args.model_path, "fp32")
    encoder = Encoder(ORIGINAL, load_tokenizer(args.model_path), max_length=1024)
    prompts = encoder.prompt_ids(["so happy today", "oh no"])
    torch.manual_seed(0)
    drawn = sample_answers(model, prompts, 3000, [encoder.end_id], 1, encoder.tokenizer.pad_token_id, temperature=0.5)
    for i, prompt in enumerate(prompts):
        with torch.no_grad():
            expected = (model(torch.tensor([prompt])).logits[0, -1] / 0.5).softmax(-1)
        tokens = torch.tensor([ids[0] for ids in drawn[3000 * i : 3000 * (i + 1)]])
        found = torch.bincount(tokens, minlength=len(expected)) / 3000
        assert (found - expected).abs().max() < 4 * (0.25 / 3000) ** 0.5


def test_groups_stay_together_when_answers_are_split_into_batches(args):
    trainer = trainer_of(dataclasses.replace(args, gradient_accumulation_steps=2, batch_size=4))
    rows = [trainer.train_dataset[i] for i in (0, 0, 0, 0, 3, 3, 3, 3)]
    first = trainer._prepare_inputs(rows)
    assert len(trainer._buffered_inputs) == 2
    assert (first["prompt_ids"] == first["prompt_ids"][0]).all()


# --- groups without a signal ------------------------------------------------------------------------------------------


def test_dynamic_sampling_replaces_groups_without_a_signal(args, monkeypatch):
    trainer = trainer_of(dataclasses.replace(args, dynamic_sampling=True))
    bad = trainer.train_dataset[0]["prompt"]
    asked = []

    def flat(group, answers):
        asked.append((group[0]["prompt"], answers))
        return group[0]["prompt"] == bad

    monkeypatch.setattr(trainer, "_is_flat", flat)
    rows = [trainer.train_dataset[i] for i in (0, 0, 0, 0, 3, 3, 3, 3)]
    batch = trainer._generate_and_score_completions(rows)
    texts = [
        encoder_text(trainer, ids, mask) for ids, mask in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)
    ]
    kept = trainer.train_dataset[3]["prompt"]
    assert all(kept in text for text in texts[4:]), "a group with a signal stays where it is"
    assert len(set(texts[:4])) == 1
    assert bad not in texts[0]
    assert trainer._metrics["train"]["groups_replaced"] == [sum(prompt == bad for prompt, _ in asked)]
    # what was judged is what is learnt from
    last = next(answers for prompt, answers in reversed(asked) if prompt in texts[0])
    learnt = [
        ids[mask.bool()].tolist() for ids, mask in zip(batch["completion_ids"], batch["completion_mask"], strict=True)
    ]
    assert learnt[:4] == last


def encoder_text(trainer, ids, mask) -> str:
    return trainer.encoder.tokenizer.decode(ids[mask.bool()])


def test_dynamic_sampling_gives_up_in_the_end(args, monkeypatch):
    trainer = trainer_of(dataclasses.replace(args, dynamic_sampling=True, dynamic_sampling_rounds=2))
    monkeypatch.setattr(trainer, "_is_flat", lambda group, answers: True)
    trainer._generate_and_score_completions([trainer.train_dataset[i] for i in (0, 0, 0, 0, 3, 3, 3, 3)])
    assert trainer._metrics["train"]["groups_replaced"] == [4]


# --- a run ------------------------------------------------------------------------------------------------------------


def rewards_csv(args: Args) -> list[dict[str, str]]:
    with (Path(args.output_dir) / "rewards.csv").open() as file:
        return list(csv.DictReader(file))


def adapter(directory: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(directory) / "adapter_model.safetensors")


def test_a_run_from_start_to_scores(args, tmp_path):
    args = dataclasses.replace(args, test_data_path=str(tmp_path / "test.tsv"), beta=0.1, coverage=0.75)
    main(args)
    out = Path(args.output_dir)
    rows = rewards_csv(args)
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    for row in rows:
        total = float(row["jaccard"]) + 0.5 * float(row["format"]) + 0.5 * float(row["length"])
        assert float(row["reward"]) == pytest.approx(total, abs=1e-5)
        assert 0 <= float(row["zero_variance_groups"]) <= 1
        assert 0 < float(row["completion_length"]) <= 16
        assert float(row["kl"]) >= 0
    samples = pandas.read_parquet(out / "completions" / "completions_00004.parquet")
    assert len(samples) == 8
    assert {"prompt", "completion", "jaccard", "format", "length", "advantage"} <= set(samples.columns)
    results = json.loads((out / "train_results.json").read_text())
    assert results["metric_for_best"] == "jaccard"
    assert results["best_step"] in (2, 4)
    scores = json.loads((out / "test_results.json").read_text())
    assert scores["n"] == 4
    assert list((out / "runs").rglob("events.*"))
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "eval_jaccard" in entry] == [0, 2, 4]
    assert "reinforcement learning (GRPO)" in (out / "README.md").read_text(encoding="utf-8")
    predictor = Predictor(str(out), precision="fp32")
    assert predictor.contract.task == ORIGINAL
    assert predictor.contract.max_length == 1024
    assert (predictor.contract.coverage.level, predictor.contract.coverage.rows) == (0.75, 6)
    assert predictor.contract.thresholds.keys() == ORIGINAL.ids.keys()
    fitted = json.loads((out / "calibration.json").read_text())
    assert (fitted["n"], fitted["decide"]) == (6, predictor.contract.decide)
    assert {"auc", "ece", "brier", "uncalibrated"} <= scores.keys()
    with Predictor(str(out), precision="fp32", coverage=0.75) as promising:
        assert promising.predict("so happy").label_set


def test_the_same_run_with_and_without_sharing(args, tmp_path):
    """The same seed draws the same answers, so both learn the same from them."""
    rows, adapters = {}, {}
    for sharing in ("on", "off"):
        run = dataclasses.replace(args, prefix_sharing=sharing, output_dir=str(tmp_path / sharing), beta=0.5)
        main(run)
        rows[sharing], adapters[sharing] = rewards_csv(run), adapter(run.output_dir)
    assert float(rows["on"][-1]["kl"]) > 0.01, "something was learnt"
    for on, off in zip(rows["on"], rows["off"], strict=True):
        assert {name: float(value) for name, value in on.items()} == pytest.approx(
            {name: float(value) for name, value in off.items()}, abs=1e-5
        )
    for name, tensor in adapters["off"].items():
        torch.testing.assert_close(adapters["on"][name], tensor, atol=1e-3, rtol=0, msg=name)


def test_a_killed_run_goes_on_to_the_same_result(args, tmp_path, monkeypatch):
    from tests.test_sft import run_until_killed

    args = dataclasses.replace(args, dynamic_sampling=True)
    main(args)
    killed = dataclasses.replace(args, output_dir=str(tmp_path / "killed"))
    run_until_killed(main_grpo, killed, 3, monkeypatch)
    main(killed)
    assert json.loads((tmp_path / "killed" / "train_results.json").read_text())["resumed_from"].endswith("-2")
    assert rewards_csv(killed) == rewards_csv(args)
    expected, found = adapter(args.output_dir), adapter(killed.output_dir)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


RESUMED = {  # flags, the step after which the run is killed, the checkpoint it goes on from
    "several updates on the same answers": (dict(num_iterations=2), 4, 3),
    "answers drawn ahead": (dict(steps_per_generation=2), 4, 3),
    "both": (dict(num_iterations=2, steps_per_generation=2, dynamic_sampling=True), 4, 3),
    "several batches a step, drawn one by one": (
        dict(gradient_accumulation_steps=2, steps_per_generation=1, num_iterations=3), 5, 4,
    ),
    "between two epochs": (dict(num_epochs=2.0, max_steps=None), 4, 3),
    "in the second epoch": (dict(num_epochs=2.0, max_steps=None), 5, 4),
    "epochs that end with half a step": (
        dict(num_epochs=3.0, max_steps=None, gradient_accumulation_steps=2, steps_per_generation=1,
             dynamic_sampling=True), 4, 3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", RESUMED)
def test_a_killed_run_learns_on_from_the_answers_it_had_drawn(args, tmp_path, monkeypatch, case):
    from tests.test_sft import run_until_killed

    flags, step, checkpoint = RESUMED[case]
    few = "".join(Path(args.train_data_path).read_text(encoding="utf-8").splitlines(keepends=True)[:6])
    (tmp_path / "train.tsv").write_text(few, encoding="utf-8")  # three batches an epoch
    args = dataclasses.replace(args, **{"max_steps": 5} | flags, eval_steps=1)
    main(args)
    killed = dataclasses.replace(args, output_dir=str(tmp_path / "killed"))
    run_until_killed(main_grpo, killed, step, monkeypatch)
    main(killed)
    resumed_from = json.loads((tmp_path / "killed" / "train_results.json").read_text())["resumed_from"]
    assert resumed_from.endswith(f"-{checkpoint}")
    assert rewards_csv(killed) == rewards_csv(args)
    expected, found = adapter(args.output_dir), adapter(killed.output_dir)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_a_run_that_is_prolonged_between_two_drawings(args, tmp_path, capsys):
    args = dataclasses.replace(args, num_iterations=2, lr_scheduler_type="constant", max_steps=5, eval_steps=3)
    main(args)
    shorter = dataclasses.replace(args, max_steps=3, output_dir=str(tmp_path / "shorter"))
    main(shorter)
    (tmp_path / "shorter" / "train_results.json").unlink()  # killed before the end of what was its last step
    shutil.copytree(tmp_path / "shorter", tmp_path / "older")
    longer = dataclasses.replace(shorter, max_steps=5)
    main(longer)
    last, expected = (adapter(Path(run.output_dir) / "checkpoint-5") for run in (longer, args))
    for name, tensor in expected.items():
        assert torch.equal(last[name], tensor), name
    # a checkpoint as it was written before answers were kept
    for name in ("answers_0.pt", "checksums.json"):
        (tmp_path / "older" / "checkpoint-3" / name).unlink()
    capsys.readouterr()
    main(dataclasses.replace(longer, output_dir=str(tmp_path / "older")))
    assert "answers_0.pt: is not there, so other answers are drawn" in capsys.readouterr().out


def test_an_sft_adapter_learns_on(args, tmp_path):
    sft = main_SFT.Args(
        model_path=args.model_path, label_path=args.label_path, train_data_path=args.train_data_path,
        dev_data_path=args.dev_data_path, output_dir=str(tmp_path / "sft"), precision="fp32", max_steps=2, lora_r=4,
        max_length=1024,
    )  # fmt: skip
    main_SFT.main(sft)
    begun = dataclasses.replace(args, model_path=sft.output_dir, label_path=None, max_length=None, beta=0.1)
    with pytest.raises(UserError, match=r"--lora_r 8: the adapter in .*sft has 4"):
        main(dataclasses.replace(begun, lora_r=8))
    with pytest.raises(UserError, match=r"--tuning full: .*sft is an adapter"):
        main(dataclasses.replace(begun, tuning="full"))
    with pytest.raises(UserError, match="--max_length 99 contradicts"):
        main(dataclasses.replace(begun, max_length=99))
    main(begun)
    before, after = adapter(sft.output_dir), adapter(begun.output_dir)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    settings = json.loads((Path(begun.output_dir) / "adapter_config.json").read_text())
    assert settings["r"] == 4
    assert settings["base_model_name_or_path"] == args.model_path
    contract = Contract.load(begun.output_dir)
    assert contract.base_model == args.model_path
    assert contract.max_length == 1024
    # the KL divergence is measured from the SFT run, not from the untuned model: at the first step there is none
    assert float(rewards_csv(begun)[0]["kl"]) == pytest.approx(0, abs=1e-6)


def test_a_vllm_that_is_not_there(args, monkeypatch):
    from tests.test_sft import free_port

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="--use_vllm colocate: vLLM is not installed"):
        main(dataclasses.replace(args, use_vllm="colocate"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    with pytest.raises(UserError, match=r"--use_vllm server: no answer from http://127.0.0.1:\d+/health .*refused"):
        main(dataclasses.replace(args, use_vllm="server", vllm_server_port=free_port()))


def test_full_tuning_and_an_untuned_start(args):
    main(dataclasses.replace(args, tuning="full", learning_rate=1e-3, beta=0.1, max_steps=2))
    assert (Path(args.output_dir) / "model.safetensors").is_file()
    assert Predictor(args.output_dir, precision="fp32").predict("so happy today").completion is not None


def test_a_reward_that_raises_stops_the_run(args, monkeypatch):
    def broken(prediction, gold):
        raise ZeroDivisionError("a mistake in a reward")

    monkeypatch.setattr("data.learning.rewards.jaccard_reward", broken)
    with pytest.raises(ZeroDivisionError, match="a mistake in a reward"):
        main(args)


@pytest.mark.parametrize("reward", ["jaccard", "format", "length"])
def test_each_reward_is_learnt(args, reward):
    weights = dict.fromkeys(("accuracy_weight", "format_weight", "length_weight"), 0.0)
    weights[{"jaccard": "accuracy_weight"}.get(reward, f"{reward}_weight")] = 1.0
    args = dataclasses.replace(
        args, **weights, length_budget=2, batch_size=32, num_generations=8, max_steps=20, eval_steps=20,
        dev_data_path=None, val_ratio=0.0, learning_rate=1e-2,
    )  # fmt: skip
    main(args)
    values = [float(row[reward]) for row in rewards_csv(args)]
    assert sum(values[-5:]) > sum(values[:5])


@pytest.mark.parametrize("expectation", ["sampled", "exact"])
def test_texts_without_a_label_are_learnt_from(args, tiny_model_dir, tmp_path, expectation):
    (tmp_path / "labels.txt").write_text("joy\nfear\n")
    lines = "".join(f"it is text {i},{i % 3 == 0:d},{i % 4 == 0:d}\n" for i in range(24))
    (tmp_path / "marked.csv").write_text("text,joy,fear\n" + lines)
    marked = dataclasses.replace(
        args, model_path=str(tiny_model_dir), label_path=str(tmp_path / "labels.txt"), allow_none=True, max_steps=2,
        train_data_path=str(tmp_path / "marked.csv"), dev_data_path=None, test_data_path=str(tmp_path / "marked.csv"),
        output_dir=str(tmp_path / "none"), expectation=expectation,
        **(dict(batch_size=4, num_generations=8, max_completion_length=None, length_budget=None) if expectation == "exact" else {}),
    )  # fmt: skip
    main_grpo.main(marked)
    task = Contract.load(marked.output_dir).task
    assert (task.allow_none, task.most_labels) == (True, 2)
    rows = [json.loads(line) for line in (tmp_path / "none" / "predictions.jsonl").read_text().splitlines()]
    assert [row["gold"] for row in rows] == [["joy"] * (i % 3 == 0) + ["fear"] * (i % 4 == 0) for i in range(24)]
    assert all(row["valid"] for row in rows)
    merge_lora.main(merge_lora.Args(training_output_dir=marked.output_dir))
    merged = Predictor(f"{marked.output_dir}-merged", precision="fp32")
    assert merged.contract.task == task
    texts = [row["text"] for row in rows]
    before = Predictor(marked.output_dir, precision="fp32").predict_batch(texts)
    for one, other in zip(before, merged.predict_batch(texts), strict=True):
        assert one.labels == other.labels
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-4)

"""Exact reinforcement on tiny models: its gradient by other ways, F1 as a reward, a run from start to end, resumption."""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import numpy
import pandas
import pytest
import torch

import main_grpo
import main_SFT
from data.arguments import UserError
from data.contract import Contract
from data.encoding import Encoder
from data.engine.generation import sample_answers
from data.engine.models import load_model, load_tokenizer
from data.engine.packing import pack
from data.engine.tree_attention import ordinary_attention, target_log_probs
from data.labels import CUSTOM_TEMPLATE, LabelTask
from data.learning.f1_reward import Counts, F1Memory
from data.learning.found_answers import FoundAnswers, listed_answers
from data.learning.outcomes import Answer, Outcomes, answer_entropy, divergence, expected_rewards, similarity
from data.learning.policy import load_policy
from data.learning.rewards import Rewards
from data.metrics import jaccard
from inference import Predictor
from main_grpo import Args, build_trainer, main
from tests.conftest import SAMPLE
from tests.test_grpo import rewards_csv

LABELS = ("joy", "love", "anger", "grief")
TEXTS = ["what a lovely day", "I miss her", "go away!", "you and me, and the sea"]


def moods(kind: str, labels: int = 4) -> LabelTask:
    return LabelTask("moods", kind, LABELS[:labels], CUSTOM_TEMPLATE)


# --- the objective ----------------------------------------------------------------------------------------------------


def one_by_one(model, encoder: Encoder, prompt: list[int]) -> torch.Tensor:
    """Log-probability of each valid answer, computed by the plain model, a sequence at a time."""
    log_probs = []
    for answer in listed_answers(encoder):
        ids = torch.tensor([[*prompt, *answer.token_ids]])
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(dim=-1)
        log_probs.append(logits.gather(1, ids[0, len(prompt) :, None]).sum())
    return torch.stack(log_probs)


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def trainer_on(model_dir, task: LabelTask, tmp_path: Path, **flags):
    """An exact trainer on `TEXTS`, whose gold is the first label, the first two ..., as far as the task allows."""
    rows = [(text, LABELS[: 1 if task.kind == "single_label" else 1 + i % 3]) for i, text in enumerate(TEXTS)]
    (tmp_path / "labels.txt").write_text("\n".join(task.labels))
    (tmp_path / "train.jsonl").write_text(
        "".join(
            json.dumps({"text": text, "label": [g for g in gold if g in task.labels]}) + "\n" for text, gold in rows
        )
    )
    settings = Args(
        model_path=str(model_dir), task=task.kind, label_path=str(tmp_path / "labels.txt"), expectation="exact",
        train_data_path=str(tmp_path / "train.jsonl"), output_dir=str(tmp_path / "run"), precision="fp32",
        tuning="full", batch_size=len(rows), val_ratio=0.0, **flags,
    )  # fmt: skip
    encoder = Encoder(task, load_tokenizer(str(model_dir)), cot=bool(settings.cot), max_length=512)
    data = main_grpo.load_data(settings, task, kind_known=True)
    return build_trainer(settings, data, load_policy(settings, longest=512), encoder, Contract(task))


def batch_of(trainer) -> dict:
    return trainer.data_collator([trainer.train_dataset[i] for i in range(len(trainer.train_dataset))])


@pytest.mark.parametrize("scale", ["none", "group", "mean"])
@pytest.mark.parametrize("kind", ["single_label", "multi_label"])
@pytest.mark.parametrize("sharing", ["on", "off"])
def test_the_gradient_is_that_of_all_answers_one_by_one(moods_dir, tmp_path, kind, sharing, scale):
    """The same weights move the same way, whether one tree or the plain model computes the expected reward."""
    trainer = trainer_on(moods_dir, moods(kind), tmp_path, prefix_sharing=sharing, scale_rewards=scale)
    teach(trainer, steps=30)
    losses, rows = trainer.losses(trainer.model, batch_of(trainer))
    losses.mean().backward()
    found = gradients(trainer.model)

    plain = load_model(str(moods_dir), "fp32", device="cpu")
    plain.load_state_dict(trainer.model.state_dict())
    task, encoder, rewards = trainer.encoder.task, trainer.encoder, trainer.rewards
    expected_losses = []
    for row in trainer.train_dataset:
        gold = [task.labels[i] for i, g in enumerate(row["gold"]) if g]
        log_probs = one_by_one(plain, encoder, row["input_ids"])
        values = torch.tensor(rewards.totals([a.token_ids for a in listed_answers(encoder)], [gold] * len(log_probs)))
        expected = (log_probs.exp() * values).sum()
        index = torch.tensor([jaccard([task.labels[i] for i in a.labels], gold) for a in listed_answers(encoder)])
        mean = (log_probs.exp() * index).sum()
        deviation = ((log_probs.exp() * index**2).sum() - mean**2).clamp(min=0).sqrt().detach()
        divisors = {"none": 1, "group": deviation + 1e-4, "mean": mean.detach() + 1e-4}
        expected_losses.append(-expected / divisors[scale])
    torch.testing.assert_close(losses, torch.stack(expected_losses), atol=1e-5, rtol=1e-4)
    assert rows.tolist() == list(range(len(TEXTS)))
    torch.stack(expected_losses).mean().backward()
    largest = float(max(gradient.abs().max() for gradient in gradients(plain).values()))
    assert largest > 0.01
    for name, gradient in gradients(plain).items():  # what is divided by a mean of next to nothing is large
        torch.testing.assert_close(found[name], gradient, atol=1e-5 * max(1, largest), rtol=1e-4, msg=name)


@pytest.mark.parametrize(("reward", "divisor"), [("jaccard", 1e-4), ("f1_macro", 0.2)])
def test_what_a_text_without_a_right_answer_is_divided_by(moods_dir, tmp_path, monkeypatch, reward, divisor):
    """An F1 reward may be far below 0: over a mean of next to nothing it would be the whole step."""
    losses = {}
    for scale in ("none", "mean"):
        trainer = trainer_on(moods_dir, moods("multi_label"), tmp_path, accuracy_reward=reward, scale_rewards=scale)
        monkeypatch.setattr("data.learning.exact.similarity", lambda outcomes, gold: 0 * outcomes.is_whole)
        losses[scale], _ = trainer.losses(trainer.model, batch_of(trainer))
    assert losses["none"].abs().max() > 0
    torch.testing.assert_close(losses["mean"], losses["none"] / divisor)


def test_the_gradient_is_what_sampling_comes_to(moods_dir, tmp_path):
    """REINFORCE over 4,096 drawn answers has the same direction; what is drawn is unconstrained, invalid answers too."""
    torch.manual_seed(0)
    trainer = trainer_on(moods_dir, moods("single_label", 2), tmp_path, length_weight=0.0, format_weight=0.0)
    teach(trainer, steps=30)
    model, encoder = trainer.model, trainer.encoder
    row = trainer.train_dataset[0]
    batch = trainer.data_collator([row])
    losses, _ = trainer.losses(model, batch)
    model.zero_grad()
    losses.mean().backward()
    exact = torch.cat([g.flatten() for g in gradients(model).values()])

    reward_of = {tuple(encoder.target_ids([label])): float(i == 0) for i, label in enumerate(encoder.task.labels)}
    prompt = list(row["input_ids"])
    with torch.no_grad(), ordinary_attention(model):
        drawn = sample_answers(model, [prompt], 4096, [encoder.end_id], encoder.answer_tokens, 0)
    rewards = torch.tensor([reward_of.get(tuple(ids), 0.0) for ids in drawn])
    assert 0.1 < rewards.mean() < 0.9, "some answers are right, and some are not"
    assert any(tuple(ids) not in reward_of for ids in drawn), "some are none of the task's"
    sequences = [[*prompt, *ids] for ids in drawn]
    (packed,) = pack(sequences, [[False] * len(prompt) + [True] * len(ids) for ids in drawn])
    log_probs = torch.zeros(len(drawn)).index_add(0, packed.target_sequence, target_log_probs(model, packed))
    model.zero_grad()
    (-(rewards - rewards.mean()) * log_probs).mean().backward()  # the mean is no part of the gradient, but of its noise
    sampled = torch.cat([g.flatten() for g in gradients(model).values()])
    assert torch.nn.functional.cosine_similarity(exact, sampled, dim=0) > 0.999


def teach(trainer, steps: int) -> None:
    """Have the model write one of the answers, as likely the first as the second, with most of its mass."""
    optimizer = torch.optim.Adam(trainer.model.parameters(), lr=2e-3)
    encoder, prompt = trainer.encoder, list(trainer.train_dataset[0]["input_ids"])
    answers = [encoder.target_ids([label]) for label in encoder.task.labels]
    (row,) = pack([[*prompt, *ids] for ids in answers], [[False] * len(prompt) + [True] * len(ids) for ids in answers])
    for _ in range(steps):
        optimizer.zero_grad()
        (-target_log_probs(trainer.model, row).mean()).backward()
        optimizer.step()
    optimizer.zero_grad()


def test_a_model_learns_to_write_answers_that_earn_more(moods_dir, tmp_path):
    trainer = trainer_on(moods_dir, moods("multi_label"), tmp_path)
    optimizer = torch.optim.Adam(trainer.model.parameters(), lr=1e-3)
    before = after = None
    for _ in range(40):
        optimizer.zero_grad()
        losses, _ = trainer.losses(trainer.model, batch_of(trainer))
        losses.mean().backward()
        optimizer.step()
        after = -losses.mean().item()
        before = after if before is None else before
    assert after > before + 0.3
    assert trainer._sums["invalid_mass"] / trainer._sums["texts"] < 1


# --- divergence and entropy -------------------------------------------------------------------------------------------


def three_outcomes(device="cpu") -> Outcomes:
    """Two answers and a prefix behind each of two texts."""
    each = [Answer((0,), (5, 1)), Answer((1,), (6, 1)), Answer((0,), (5, 7), is_whole=False, further=1)]
    return Outcomes.of([each, each], labels=2, device=torch.device(device))


def test_divergence_and_entropy_of_known_distributions():
    outcomes = three_outcomes()
    now = torch.tensor([0.5, 0.2, 0.1, 0.25, 0.25, 0.25])
    start = torch.tensor([0.4, 0.2, 0.2, 0.25, 0.25, 0.25])
    expected = [0.5 * numpy.log(0.5 / 0.4) + 0.1 * numpy.log(0.1 / 0.2) + 0.2 * numpy.log(0.2 / 0.2), 0.0]
    assert divergence(now.log(), start.log(), outcomes, 2).tolist() == pytest.approx(expected, abs=1e-6)
    entropies = [-sum(p * numpy.log(p) for p in ps) for ps in ((0.5, 0.2, 0.1), (0.25, 0.25, 0.25))]
    assert answer_entropy(now.log(), outcomes, 2).tolist() == pytest.approx(entropies, abs=1e-6)


def test_a_prefix_earns_what_is_known_of_it():
    """Its first label is the gold one of one text, and what comes behind is taken for wrong."""
    outcomes = three_outcomes()
    index = similarity(outcomes, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert index.tolist() == [1, 0, 0.5, 0, 1, 0]
    log_probs = torch.tensor([0.5, 0.2, 0.1, 0.25, 0.25, 0.25]).log()
    expected, deviation = expected_rewards(log_probs, index, outcomes, 2)
    assert expected.tolist() == pytest.approx([0.55, 0.25])
    assert deviation[0].item() == pytest.approx((0.5 + 0.1 * 0.25 - 0.55**2) ** 0.5)


@pytest.mark.parametrize("cot", [False, True])
def test_beginnings_hold_what_all_answers_hold_that_begin_so(moods_dir, cot):
    """By listing all answers: the labels they have in common, and how many more the shortest of them has."""
    encoder = Encoder(moods("multi_label"), load_tokenizer(str(moods_dir)), cot=cot, max_length=512)
    listed, found = listed_answers(encoder), FoundAnswers(encoder, pruned_mass=0.1, max_tokens=64)
    beginnings = {answer.token_ids[:n] for answer in listed for n in range(1, len(answer.token_ids))}
    for token_ids in beginnings:
        behind = [set(answer.labels) for answer in listed if answer.token_ids[: len(token_ids)] == token_ids]
        beginning, held = found._beginning(token_ids), set.intersection(*behind)
        assert set(beginning.labels) <= held
        assert len(beginning.labels) + beginning.further == min(map(len, behind))
        if len(behind) > 1:
            assert set(beginning.labels) == held or beginning.further


def test_the_start_is_what_the_run_began_with(moods_dir, tmp_path):
    """Before the first step the divergence is 0; behind it, it is that from the weights of the beginning."""
    trainer = trainer_on(moods_dir, moods("multi_label"), tmp_path, beta=0.5)
    batch, start = batch_of(trainer), {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.losses(trainer.model, batch)
    assert trainer._sums["kl"] == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        for p in trainer.model.parameters():
            p.add_(0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    now = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    losses, _ = trainer.losses(trainer.model, batch)
    assert trainer._sums["kl"] > 1e-5
    losses.mean().backward()
    for name, p in trainer.model.named_parameters():
        assert torch.equal(p, now[name]), "the start was only looked at"
        assert not torch.equal(p, start[name])


# --- F1 as a reward ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("average", ["macro", "micro"])
def test_what_a_label_is_worth_is_the_derivative_of_f1(average):
    draw = numpy.random.default_rng(0)
    marginals, gold = draw.random((6, 4)), (draw.random((6, 4)) < 0.4).astype(float)
    memory = F1Memory(average, [0.4, 0.3, 0.2, 0.01], window=20)
    counts = memory.with_texts(Counts.of(marginals, gold))
    worth, step = counts.worth(gold, average), 1e-6
    for text, label in itertools.product(range(6), range(4)):
        nudged = marginals.copy()
        nudged[text, label] += step
        derivative = (memory.with_texts(Counts.of(nudged, gold)).f1(average) - counts.f1(average)) / step
        assert worth[text, label] == pytest.approx(counts.texts * derivative, abs=1e-4)


def test_f1_of_counts_is_that_of_scikit_learn():
    from sklearn.metrics import f1_score

    draw = numpy.random.default_rng(1)
    predicted, gold = (draw.random((2, 50, 3)) < 0.4).astype(float)
    counts = Counts.of(predicted, gold)
    for average in ("macro", "micro"):
        assert counts.f1(average) == pytest.approx(f1_score(gold, predicted, average=average))


def test_earlier_texts_fade():
    memory = F1Memory("macro", [0.5, 0.5], window=100)
    step = Counts.of(numpy.array([[1.0, 0.0]] * 10), numpy.array([[1.0, 0.0]] * 10))
    for _ in range(30):
        memory.remember(step)
    assert memory.counts.texts == pytest.approx(100, rel=0.1), "about as many as the window"
    assert memory.counts.true_positives[0] > 90
    assert memory.counts.gold[1] < 16 * 0.06


def test_a_label_that_never_occurs_is_worth_nothing():
    counts = Counts.of(numpy.zeros((3, 2)), numpy.array([[1.0, 0.0]] * 3))
    assert counts.worth(numpy.array([[1.0, 0.0]]), "macro").tolist()[0][1] == 0


def test_what_a_drawn_answer_adds_to_f1(tokenizer):
    """In the limit of many texts, the answers' differences are those of what their labels are worth."""
    task = moods("multi_label", 3)
    encoder = Encoder(task, tokenizer, max_length=256)
    memory = F1Memory("macro", [0.5, 0.3, 0.2], window=1_000_000)
    rewards = Rewards(encoder, [encoder.end_id], 20, 40, {"f1_macro": 1.0}, memory)
    answers = [encoder.target_ids(labels) for labels in (["joy"], ["love"], ["joy", "anger"], ["anger"])]
    gold = [("joy",)] * 2 + [("love", "anger")] * 2
    memory.counts = memory.counts * (1_000_000 / memory.counts.texts)
    values = rewards.f1_macro(answers, gold, id=["a", "a", "b", "b"])
    truth = numpy.array([[1, 0, 0], [1, 0, 0], [0, 1, 1], [0, 1, 1]], float)
    holds = numpy.array([[1, 0, 0], [0, 1, 0], [1, 0, 1], [0, 0, 1]], float)
    worth = (memory.counts.worth(truth, "macro") * holds).sum(axis=1)
    assert values[0] - values[1] == pytest.approx(worth[0] - worth[1], abs=1e-3)
    assert values[2] - values[3] == pytest.approx(worth[2] - worth[3], abs=1e-3)
    assert memory.counts.texts == pytest.approx(1_000_000, rel=1e-5)


# --- a run ------------------------------------------------------------------------------------------------------------


def on_four_labels(folder: Path) -> None:
    """Comments of the sample in `folder`, each with one or two of the four labels."""
    (folder / "labels.txt").write_text("\n".join(LABELS))
    for split, rows in (("train", 24), ("dev", 6), ("test", 4)):
        lines = (SAMPLE / f"{split}.tsv").read_text(encoding="utf-8").splitlines()[:rows]
        with (folder / f"{split}.tsv").open("w", encoding="utf-8") as file:
            for text, ids, name in (line.split("\t") for line in lines):
                labels = sorted({int(id) % 4 for id in ids.split(",")} | {len(text) % 4})
                file.write(f"{text}\t{','.join(map(str, labels))}\t{name}\n")


@pytest.fixture(scope="session")
def moods_dir(tiny_model_dir, tmp_path_factory) -> Path:
    """The tiny model after some fine-tuning on these: it writes valid answers, of which some are right."""
    folder = tmp_path_factory.mktemp("moods")
    on_four_labels(folder)
    main_SFT.main(
        main_SFT.Args(
            model_path=str(tiny_model_dir), label_path=str(folder / "labels.txt"), task="multi_label",
            train_data_path=str(folder / "train.tsv"), output_dir=str(folder / "run"), precision="fp32", tuning="full",
            max_steps=40, batch_size=8, learning_rate=1e-2, val_ratio=0.0, max_length=256,
        )
    )  # fmt: skip
    return folder / "run"


@pytest.fixture
def args(moods_dir, tmp_path) -> Args:
    on_four_labels(tmp_path)
    return Args(
        model_path=str(moods_dir), train_data_path=str(tmp_path / "train.tsv"), expectation="exact",
        dev_data_path=str(tmp_path / "dev.tsv"), output_dir=str(tmp_path / "run"), precision="fp32", batch_size=4,
        max_steps=4, eval_steps=2, logging_steps=1, learning_rate=1e-3,
    )  # fmt: skip


@pytest.mark.parametrize("reward", ["jaccard", "exact_match", "f1_macro", "f1_micro"])
def test_a_run_from_start_to_scores(args, reward):
    args = dataclasses.replace(
        args, accuracy_reward=reward, beta=0.1, test_data_path=str(Path(args.train_data_path).with_name("test.tsv"))
    )
    main(args)
    out = Path(args.output_dir)
    rows = rewards_csv(args)
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    for row in rows:
        total = float(row[reward]) + 0.5 * float(row["format"]) + 0.5 * float(row["length"])
        assert float(row["reward"]) == pytest.approx(total, abs=1e-5)
        assert float(row["invalid_mass"]) == pytest.approx(1 - float(row["format"]), abs=1e-5)
        assert float(row["pruned_mass"]) == 0
        assert float(row["entropy"]) > 0
        assert float(row["kl"]) > -1e-6
    samples = pandas.read_parquet(out / "completions" / "completions_00004.parquet")
    assert {"step", "prompt", "completion", "gold", "probability", reward, "format", "length"} <= set(samples.columns)
    assert set(samples["prompt"].value_counts()) == {3}, "the three most probable answers to each text"
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "reinforcement learning (exact expectation)" in card
    assert "4 texts" in card
    metric = {"jaccard": "jaccard", "exact_match": "accuracy"}.get(reward, reward)
    assert json.loads((out / "train_results.json").read_text())["metric_for_best"] == metric
    assert json.loads((out / "test_results.json").read_text())["n"] == 4
    assert Predictor(str(out), precision="fp32").contract.task.labels == LABELS


def test_the_same_run_with_and_without_sharing(args, tmp_path):
    """What is expected of the answers, step by step; the gradients are compared above."""
    rows = {}
    for sharing in ("on", "off"):
        run = dataclasses.replace(args, prefix_sharing=sharing, output_dir=str(tmp_path / sharing), beta=0.5)
        main(run)
        rows[sharing] = [{name: float(value) for name, value in row.items()} for row in rewards_csv(run)]
    assert rows["on"][-1]["kl"] > 1e-4, "something was learnt"
    for step, (on, off) in enumerate(zip(rows["on"], rows["off"], strict=True)):
        # from the third on, AdamW has made steps of what is left of gradients that are nearly 0
        assert on == pytest.approx(off, abs=1e-4 if step < 2 else 1e-2)


@pytest.mark.parametrize("flags", [{}, {"accuracy_reward": "f1_macro", "beta": 0.2}, {"tuning": "full"}])
def test_a_killed_run_goes_on_to_the_same_result(args, tmp_path, monkeypatch, flags):
    from safetensors.torch import load_file

    from tests.test_sft import run_until_killed

    args = dataclasses.replace(args, **flags)
    main(args)
    killed = dataclasses.replace(args, output_dir=str(tmp_path / "killed"))
    run_until_killed(main_grpo, killed, 3, monkeypatch)
    main(killed)
    assert json.loads((tmp_path / "killed" / "train_results.json").read_text())["resumed_from"].endswith("-2")
    assert rewards_csv(killed) == rewards_csv(args)
    weights = "model.safetensors" if "tuning" in flags else "adapter_model.safetensors"
    expected, found = (load_file(Path(each.output_dir) / weights) for each in (args, killed))
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


BAD = {
    "--temperature 0.5": {"temperature": 0.5},
    "--use_vllm colocate": {"use_vllm": "colocate"},
    "--num_generations 4": {"num_generations": 4},
    "--scale_rewards batch": {"scale_rewards": "batch"},
    "--f1_window 5": {"f1_window": 5},
    "--entropy_weight 0.1": {
        "entropy_weight": 0.1,
        "expectation": "sampled",
        "batch_size": 8,
        "scale_rewards": "group",
    },
}


# --- many answers -----------------------------------------------------------------------------------------------------


def expanded(trainer):
    """The trainer as if its task had too many answers to list them all."""
    trainer.answers._listed = None
    return trainer


@pytest.mark.parametrize("sharing", ["on", "off"])
def test_an_expanded_tree_has_the_gradient_of_the_whole_one(moods_dir, tmp_path, sharing):
    trainer = trainer_on(moods_dir, moods("multi_label"), tmp_path, prefix_sharing=sharing)
    trainer.answers.pruned_mass = 0.0
    losses, _ = trainer.losses(trainer.model, batch_of(trainer))
    losses.mean().backward()
    whole, sums = gradients(trainer.model), dict(trainer._sums)
    trainer.model.zero_grad()
    trainer._sums.clear()
    again, _ = expanded(trainer).losses(trainer.model, batch_of(trainer))
    again.mean().backward()
    torch.testing.assert_close(again, losses, atol=1e-5, rtol=0)
    for name, gradient in gradients(trainer.model).items():
        torch.testing.assert_close(gradient, whole[name], atol=1e-5, rtol=1e-4, msg=name)
    assert trainer._sums == pytest.approx(sums, abs=1e-4)


def test_what_is_left_out_is_known(moods_dir, tmp_path):
    """Gold is in; the whole answers and the prefixes have the probability of all valid answers together, or more."""
    trainer = trainer_on(moods_dir, moods("multi_label"), tmp_path)
    batch = batch_of(trainer)
    trainer.losses(trainer.model, batch)
    valid = 4 - trainer._sums["invalid_mass"]
    trainer.answers.pruned_mass, trainer.answers.max_tokens = 0.3, 2
    trainer._sums.clear()
    found = expanded(trainer)._found(batch["prompts"], batch["gold"])
    for row, answers in enumerate(found):
        gold = tuple(batch["gold"][row].nonzero()[:, 0].tolist())
        assert gold in [answer.labels for answer in answers if answer.is_whole]
        assert len(answers) < 15
        whole = [answer.token_ids for answer in answers if answer.is_whole]
        for prefix in (answer.token_ids for answer in answers if not answer.is_whole):
            assert not any(ids[: len(prefix)] == prefix for ids in whole), "an answer is counted once"
    trainer.losses(trainer.model, batch)
    assert trainer._sums["pruned_mass"] > 0
    assert 4 - trainer._sums["invalid_mass"] >= valid - 1e-4, "a prefix stands for invalid answers, too"


@pytest.mark.parametrize("reward", ["jaccard", "exact_match"])
def test_what_is_left_out_changes_little(moods_dir, tmp_path, reward):
    """The expected reward by no more than the mass that is left out; the gradient points where that of all points."""
    flags = {"accuracy_reward": reward, "scale_rewards": "none", "format_weight": 0.0, "length_weight": 0.0}
    trainer = trainer_on(moods_dir, moods("multi_label"), tmp_path, **flags)
    teach(trainer, steps=10)
    directions, losses, left_out = [], [], 0.0
    for mass in (None, 0.1):
        if mass is not None:
            expanded(trainer).answers.pruned_mass = mass
        trainer.model.zero_grad()
        trainer._sums.clear()
        loss, _ = trainer.losses(trainer.model, batch_of(trainer))
        loss.mean().backward()
        left_out = trainer._sums["pruned_mass"] / 4
        directions.append(torch.cat([gradient.flatten() for gradient in gradients(trainer.model).values()]))
        losses.append(loss.detach())
    assert 0 < left_out <= 0.1
    assert (losses[1] - losses[0]).abs().mean() <= left_out
    assert torch.cosine_similarity(*directions, dim=0) > 0.98


def test_a_budget_that_does_not_reach_the_mass(moods_dir, tmp_path):
    trainer = expanded(trainer_on(moods_dir, moods("multi_label"), tmp_path))
    trainer.answers.max_tokens, trainer.answers.pruned_mass = 1, 1e-6
    with pytest.raises(UserError, match=r"--pruned_mass 1e-06: with --max_tree_tokens 1, .* 4 training texts"):
        trainer.check_tree()


def test_a_start_that_writes_no_valid_answers_is_warned_of(tiny_model_dir, tmp_path, capsys):
    trainer_on(tiny_model_dir, moods("multi_label"), tmp_path).check_tree()
    assert "warning: the start writes a valid answer with a probability of" in capsys.readouterr().out


# --- reasoning --------------------------------------------------------------------------------------------------------


def test_rationales_have_the_room_that_was_asked_for(moods_dir, tmp_path):
    trainer = trainer_on(
        moods_dir, moods("multi_label"), tmp_path, cot=True, num_generations=2, max_completion_length=48
    )
    trainer.stop_ids = []
    thoughts = trainer._draw(batch_of(trainer)["prompts"])
    assert max(len(thought.token_ids) for thought in thoughts if not thought.finished) == 48


def test_a_step_without_a_whole_rationale_shows_no_answers(moods_dir, tmp_path, monkeypatch):
    trainer = trainer_on(moods_dir, moods("multi_label"), tmp_path, cot=True, num_generations=2)
    monkeypatch.chdir(tmp_path)  # where TensorBoard writes
    for text, shown in (("so what</think>", True), ("no end", False)):
        ids = trainer.encoder.tokenizer.encode(text)
        monkeypatch.setattr(
            trainer, "_draw", lambda prompts, ids=ids: [trainer._thought(p, ids) for p in prompts for _ in "ab"]
        )
        trainer.losses(trainer.model, batch_of(trainer))
        assert bool(trainer._noted) == shown
        trainer.log({"loss": 1.0})
        assert not trainer._noted


@pytest.mark.parametrize("scale", ["none", "mean", "group"])
def test_rationales_are_drawn_and_their_answers_weighed(moods_dir, tmp_path, monkeypatch, scale):
    """The rationale's tokens get the advantage of what is expected behind it, the answer's the exact gradient."""
    flags = dict(cot=True, num_generations=2, scale_rewards=scale)
    trainer = trainer_on(moods_dir, moods("multi_label"), tmp_path, **flags)
    encoder, batch = trainer.encoder, batch_of(trainer)
    batch = {name: value[:1] for name, value in batch.items()}
    prompt = batch["prompts"][0]
    thoughts = [trainer._thought(prompt, encoder.tokenizer.encode(text)) for text in ("so what</think>", "no end")]
    assert [thought.finished for thought in thoughts] == [True, False]
    whole = encoder.reasoned_ids(prompt, "so what")
    assert thoughts[0].opened + thoughts[0].token_ids == whole
    monkeypatch.setattr(trainer, "_draw", lambda prompts: thoughts)
    losses, _ = trainer.losses(trainer.model, batch)
    losses.sum().backward()
    found = gradients(trainer.model)

    plain = load_model(str(moods_dir), "fp32", device="cpu")
    log_probs = one_by_one(plain, encoder, whole)
    gold = [LABELS[i] for i in batch["gold"][0].nonzero()[:, 0].tolist()]
    index = torch.tensor([jaccard([LABELS[i] for i in a.labels], gold) for a in listed_answers(encoder)])
    mean, square = ((log_probs.exp() * values).sum().detach() / 2 for values in (index, index**2))  # one has no answer
    divisor = {"none": 1, "mean": mean + 1e-4, "group": (square - mean**2).sqrt() + 1e-4}[scale]
    weights = trainer.rewards.weights
    lengths = torch.tensor([trainer.rewards.length_of(len(a.token_ids)) for a in listed_answers(encoder)])
    values = weights["jaccard"] * index / divisor + weights["format"] + weights["length"] * lengths
    expected = (log_probs.exp() * values).sum()
    rewards = torch.stack([expected.detach(), torch.tensor(-weights["length"])])
    advantages = rewards - rewards.mean()
    terms = [-expected]
    for thought, advantage in zip(thoughts, advantages, strict=True):
        ids = torch.tensor([thought.opened + thought.token_ids])
        begin = len(thought.opened)
        logits = plain(input_ids=ids).logits[0, begin - 1 : -1].log_softmax(dim=-1)
        terms.append(-advantage * logits.gather(1, ids[0, begin:, None]).sum())
    loss = torch.stack(terms).sum() / 2
    torch.testing.assert_close(losses.sum(), loss, atol=1e-4, rtol=1e-4)
    assert scale == "none" or divisor < 0.9
    loss.backward()
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(found[name], gradient, atol=1e-4 * max(1, 1 / divisor), rtol=1e-3, msg=name)


def test_a_run_with_reasoning(args):
    args = dataclasses.replace(args, cot=None, num_generations=8)
    reasoned = dataclasses.replace(args, model_path=untuned(args), label_path=labels_of(args), cot=True,
                                   task="multi_label", num_generations=2, max_steps=2)  # fmt: skip
    main(reasoned)
    rows = rewards_csv(reasoned)
    assert len(rows) == 2
    assert all(0 <= float(row["cut_off"]) <= 1 for row in rows)
    goes_on = dataclasses.replace(
        args, model_path=reasoned.output_dir, num_generations=2, max_steps=1, output_dir=f"{args.output_dir}-on"
    )
    main(goes_on)  # it reasons as its start does, without being told
    assert [row["step"] for row in rewards_csv(goes_on)] == ["1"]


def labels_of(args: Args) -> str:
    return str(Path(args.train_data_path).with_name("labels.txt"))


def untuned(args: Args) -> str:
    """The start without its task."""
    model = Path(args.train_data_path).with_name("base")
    shutil.copytree(args.model_path, model, ignore=shutil.ignore_patterns("checkpoint-*", "runs", "task.json"))
    return str(model)


@pytest.mark.parametrize("case", BAD)
def test_flags_that_do_not_go_together(args, case):
    with pytest.raises(UserError, match=case):
        main(dataclasses.replace(args, **BAD[case]))

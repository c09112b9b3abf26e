"""Exact reinforcement on tiny models: its gradient by other ways, F1 as a reward, a run from start to end, resumption."""

import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch

import main_grpo
from data.arguments import UserError
from data.contract import Contract
from data.encoding import Encoder
from data.engine.generation import sample_answers
from data.engine.models import load_model, load_tokenizer
from data.engine.packing import pack
from data.engine.tree_attention import ordinary_attention, target_log_probs
from data.labels import CUSTOM_TEMPLATE, LabelTask
from data.learning.exact import Outcomes, answer_entropy, divergence, listed_answers, objective
from data.learning.f1_reward import Counts, F1Memory
from data.learning.policy import load_policy
from data.learning.rewards import Rewards
from inference import Predictor
from main_grpo import Args, build_trainer, main
from tests.test_grpo import (
    adapter,
    rewards_csv,
    taught_dir,  # noqa: F401  (a fixture)
)
from tests.test_grpo import args as sampled_args  # noqa: F401  (a fixture, which `args` is made from)

LABELS = ("joy", "love", "anger", "grief")
WEIGHTS = {"jaccard": 1.0, "format": 0.5, "length": 0.25}
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
        tuning="full", batch_size=len(rows), val_ratio=0.0, max_length=256, **flags,
    )  # fmt: skip
    encoder = Encoder(task, load_tokenizer(str(model_dir)), max_length=256)
    data = main_grpo.load_data(settings, task, kind_known=True)
    return build_trainer(settings, data, load_policy(settings, longest=256), encoder, Contract(task, max_length=256))


def batch_of(trainer) -> dict:
    return trainer.data_collator([trainer.train_dataset[i] for i in range(len(trainer.train_dataset))])


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("kind", ["single_label", "multi_label"])
@pytest.mark.parametrize("sharing", ["on", "off"])
def test_the_gradient_is_that_of_all_answers_one_by_one(taught_dir, tmp_path, kind, sharing, scaled):  # noqa: F811
    """The same weights move the same way, whether one tree or the plain model computes the expected reward."""
    scale = "group" if scaled else "none"
    trainer = trainer_on(taught_dir, moods(kind), tmp_path, prefix_sharing=sharing, scale_rewards=scale)
    teach(trainer, steps=30)
    losses, rows = trainer.losses(trainer.model, batch_of(trainer))
    losses.mean().backward()
    found = gradients(trainer.model)

    plain = load_model(str(taught_dir), "fp32", device="cpu")
    plain.load_state_dict(trainer.model.state_dict())
    task, encoder, rewards = trainer.encoder.task, trainer.encoder, trainer.rewards
    expected_losses = []
    for row in trainer.train_dataset:
        gold = [task.labels[i] for i, g in enumerate(row["gold"]) if g]
        log_probs = one_by_one(plain, encoder, row["input_ids"])
        values = torch.tensor(rewards.totals([a.token_ids for a in listed_answers(encoder)], [gold] * len(log_probs)))
        expected = (log_probs.exp() * values).sum()
        deviation = ((log_probs.exp() * values**2).sum() - expected**2).clamp(min=0).sqrt().detach() + 1e-4
        expected_losses.append(-expected / (deviation if scaled else 1))
    torch.testing.assert_close(losses, torch.stack(expected_losses), atol=1e-5, rtol=1e-4)
    assert rows.tolist() == list(range(len(TEXTS)))
    torch.stack(expected_losses).mean().backward()
    assert max(gradient.abs().max() for gradient in gradients(plain).values()) > 0.01
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_the_gradient_is_what_sampling_comes_to(taught_dir, tmp_path):  # noqa: F811
    """REINFORCE over 4,096 drawn answers has the same direction; what is drawn is unconstrained, invalid answers too."""
    torch.manual_seed(0)
    trainer = trainer_on(taught_dir, moods("single_label", 2), tmp_path, length_weight=0.0, format_weight=0.0)
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


def test_a_model_learns_to_write_answers_that_earn_more(taught_dir, tmp_path):  # noqa: F811
    trainer = trainer_on(taught_dir, moods("multi_label"), tmp_path)
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
    from data.learning.exact import Answer

    each = [Answer((0,), (5, 1)), Answer((1,), (6, 1)), Answer((), (7,), is_whole=False)]
    return Outcomes.of([each, each], labels=2, device=torch.device(device))


def test_divergence_and_entropy_of_known_distributions():
    outcomes = three_outcomes()
    now = torch.tensor([0.5, 0.2, 0.1, 0.25, 0.25, 0.25])
    start = torch.tensor([0.4, 0.2, 0.2, 0.25, 0.25, 0.25])
    expected = [0.5 * numpy.log(0.5 / 0.4) + 0.1 * numpy.log(0.1 / 0.2) + 0.2 * numpy.log(0.2 / 0.2), 0.0]
    assert divergence(now.log(), start.log(), outcomes, 2).tolist() == pytest.approx(expected, abs=1e-6)
    entropies = [-(0.5 * numpy.log(0.5) + 0.2 * numpy.log(0.2)), -2 * 0.25 * numpy.log(0.25)]
    assert answer_entropy(now.log(), outcomes, 2).tolist() == pytest.approx(entropies, abs=1e-6)


def test_a_prefix_earns_nothing():
    outcomes = three_outcomes()
    log_probs = torch.tensor([0.5, 0.2, 0.1, 0.25, 0.25, 0.25]).log()
    expected, deviation = objective(log_probs, torch.tensor([1.0, 0.5, 9.0] * 2), outcomes, 2)
    assert expected.tolist() == pytest.approx([0.6, 0.375])
    assert deviation[0].item() == pytest.approx((0.5 + 0.2 * 0.25 - 0.36) ** 0.5)


def test_the_start_is_what_the_run_began_with(taught_dir, tmp_path):  # noqa: F811
    """Before the first step the divergence is 0; behind it, it is that from the weights of the beginning."""
    trainer = trainer_on(taught_dir, moods("multi_label"), tmp_path, beta=0.5)
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
    assert memory.counts.gold[1] < 50 * 0.06


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
    values = rewards.f1_macro(answers, gold, id=["a", "a", "b", "b"])
    truth = numpy.array([[1, 0, 0], [1, 0, 0], [0, 1, 1], [0, 1, 1]], float)
    holds = numpy.array([[1, 0, 0], [0, 1, 0], [1, 0, 1], [0, 0, 1]], float)
    worth = (memory.counts.worth(truth, "macro") * holds).sum(axis=1)
    assert values[0] - values[1] == pytest.approx(worth[0] - worth[1], abs=1e-3)
    assert values[2] - values[3] == pytest.approx(worth[2] - worth[3], abs=1e-3)
    assert memory.counts.texts == pytest.approx(1_000_000, rel=1e-5)


# --- a run ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def args(sampled_args) -> Args:  # noqa: F811
    """The run of test_grpo.py, on four labels, and exact."""
    for split in ("train", "dev", "test"):
        path = Path(sampled_args.train_data_path).with_name(f"{split}.tsv")
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
        path.write_text("".join(f"{text}\t{int(ids.split(',')[0]) % 4}\t{id}\n" for text, ids, id in rows))
    labels = Path(sampled_args.train_data_path).with_name("labels.txt")
    labels.write_text("\n".join(LABELS))
    return dataclasses.replace(
        sampled_args, model_path=base_of(sampled_args.model_path, labels), label_path=str(labels), expectation="exact",
        batch_size=4, num_generations=8, max_completion_length=None, length_budget=None, scale_rewards="none",
        task="multi_label",
    )  # fmt: skip


def base_of(run: str, labels: Path) -> str:
    """The run's model without its task."""
    import shutil

    model = labels.with_name("base")
    shutil.copytree(run, model, ignore=shutil.ignore_patterns("checkpoint-*", "runs", "task.json", "args.json"))
    return str(model)


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
    metric = {"jaccard": "jaccard", "exact_match": "accuracy"}.get(reward, reward)
    assert json.loads((out / "train_results.json").read_text())["metric_for_best"] == metric
    assert json.loads((out / "test_results.json").read_text())["n"] == 4
    assert Predictor(str(out), precision="fp32").contract.task.labels == LABELS


def test_the_same_run_with_and_without_sharing(args, tmp_path):
    adapters = {}
    for sharing in ("on", "off"):
        main(dataclasses.replace(args, prefix_sharing=sharing, output_dir=str(tmp_path / sharing), beta=0.5))
        adapters[sharing] = adapter(tmp_path / sharing)
    for name, tensor in adapters["off"].items():
        torch.testing.assert_close(adapters["on"][name], tensor, atol=1e-3, rtol=0, msg=name)


@pytest.mark.parametrize("flags", [{}, {"accuracy_reward": "f1_macro", "beta": 0.2}, {"tuning": "full"}])
def test_a_killed_run_goes_on_to_the_same_result(args, tmp_path, monkeypatch, flags):
    from safetensors.torch import load_file

    from tests.test_sft import KillAt, Killed

    args = dataclasses.replace(args, **flags, learning_rate=1e-3)
    main(args)
    killed = dataclasses.replace(args, output_dir=str(tmp_path / "killed"))
    build = main_grpo.build_trainer

    def build_and_kill(*arguments):
        trainer = build(*arguments)
        trainer.add_callback(KillAt(3))
        return trainer

    monkeypatch.setattr(main_grpo, "build_trainer", build_and_kill)
    with pytest.raises(Killed):
        main(killed)
    monkeypatch.undo()
    main(killed)
    assert json.loads((tmp_path / "killed" / "train_results.json").read_text())["resumed_from"].endswith("-2")
    assert rewards_csv(killed) == rewards_csv(args)
    weights = "model.safetensors" if "tuning" in flags else "adapter_model.safetensors"
    expected, found = (load_file(Path(each.output_dir) / weights) for each in (args, killed))
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_two_processes_learn_what_one_does(args, tmp_path):
    """The same texts in a step, in halves on two processes: the same weights, F1 counts of both."""
    flags = dict(accuracy_reward="f1_macro", max_steps=2, learning_rate=1e-3)
    one = dataclasses.replace(args, **flags, output_dir=str(tmp_path / "one"))
    main(one)
    two = dataclasses.replace(args, **flags, output_dir=str(tmp_path / "two"), batch_size=2)
    words = [f"--{name}={value}" for name, value in dataclasses.asdict(two).items() if value != default_of(name)]
    words = [word for word in words if not word.startswith(("--lora_target_modules", "--scale_rewards"))]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "main_grpo.py"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    expected, found = adapter(one.output_dir), adapter(two.output_dir)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=0, msg=name)
    last, other = rewards_csv(one)[-1], rewards_csv(two)[-1]
    assert float(last["f1_macro"]) == pytest.approx(float(other["f1_macro"]), abs=1e-5)


def default_of(name: str):
    return {field.name: field.default for field in dataclasses.fields(Args)}[name]


BAD = {
    "--temperature 0.5": {"temperature": 0.5},
    "--use_vllm colocate": {"use_vllm": "colocate"},
    "--num_generations 4": {"num_generations": 4},
    "--scale_rewards batch": {"scale_rewards": "batch"},
    "--f1_window 5": {"f1_window": 5},
    "--entropy_weight 0.1": {"entropy_weight": 0.1, "expectation": "sampled", "batch_size": 8},
}


@pytest.mark.parametrize("case", BAD)
def test_flags_that_do_not_go_together(args, case):
    with pytest.raises(UserError, match=case):
        dataclasses.replace(args, **BAD[case])

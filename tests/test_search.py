"""--search: the trials, the best of them, and going on after a stop."""

import dataclasses
import json
import math
import os
from pathlib import Path

import pytest

import main_SFT
from data.arguments import DivergedError, UserError
from data.learning.search import RANKS, search
from main_SFT import Args, main
from tests.test_objective_runs import TEXTS


@pytest.fixture
def args(tmp_path) -> Args:
    return Args(
        model_path="nowhere", task="emotion", train_data_path="x", output_dir=str(tmp_path / "search"), search=6,
        tuning="lora", learning_rate=1e-3, lora_r=8, num_epochs=3.0, objective="classify",
    )  # fmt: skip


class Trainings:
    """Writes what a run writes: its metric is best at a learning rate of 2e-3 and rank 16."""

    def __init__(self, stop_at: int | None = None):
        self.seen: list[Args] = []
        self.stop_at = stop_at

    def __call__(self, args: Args) -> None:
        self.seen.append(args)
        folder = Path(args.output_dir)
        folder.mkdir(exist_ok=True)
        (folder / "args.json").write_text("{}")
        (folder / "checkpoint-3").mkdir(exist_ok=True)
        if len(self.seen) == self.stop_at:
            raise KeyboardInterrupt
        metric = 1 - abs(math.log(args.learning_rate / 2e-3)) / 10 - (args.lora_r != 16) / 10
        (folder / "train_results.json").write_text(json.dumps({"best_metric": metric}))
        (folder / "weights").write_text(folder.name)


def outcome(args) -> dict:
    return json.loads((Path(args.output_dir) / "search_results.json").read_text())


def test_the_best_trial_becomes_the_run(args):
    trainings = Trainings()
    search(args, "accuracy", trainings)
    assert len(trainings.seen) == 6
    first = trainings.seen[0]
    assert (first.learning_rate, first.lora_r, first.num_epochs, first.search) == (1e-3, 8, 3.0, None)  # as given
    for trial in trainings.seen:
        assert 2.5e-4 <= trial.learning_rate <= 4e-3
        assert trial.lora_r in RANKS
        assert trial.num_epochs in (1, 2, 3)
    results = outcome(args)
    best = max(results["trials"], key=lambda trial: trial["accuracy"])
    assert results["best"] == best["folder"]
    assert len({trial["folder"] for trial in results["trials"]}) == 6
    output_dir = Path(args.output_dir)
    assert (output_dir / "weights").read_text() == best["folder"]
    assert not (output_dir / "checkpoint-3").exists()
    assert json.loads((output_dir / "args.json").read_text())["search"] == 6


def test_a_stopped_search_goes_on(args):
    """The interrupted trial with its own settings and folder, the finished ones not again."""
    before = Trainings(stop_at=3)
    with pytest.raises(KeyboardInterrupt):
        search(args, "accuracy", before)
    after = Trainings()
    search(args, "accuracy", after)
    assert after.seen[0] == before.seen[2]
    assert len(after.seen) == 4
    folders = [trial.output_dir for trial in [*before.seen[:2], *after.seen]]
    assert len(set(folders)) == 6
    again = Trainings()
    search(args, "accuracy", again)
    assert not again.seen
    search(dataclasses.replace(args, search=8), "accuracy", again)  # more of the same
    assert len(again.seen) == 2


def drawn(trainings: Trainings) -> list[tuple]:
    return [(Path(seen.output_dir).name, seen.learning_rate, seen.lora_r, seen.num_epochs) for seen in trainings.seen]


@pytest.mark.parametrize("kills", [(1, 1), (3, 4, 1, 2), (12,), ("drawing", 3), ("drawing", "drawing", 11, "drawing")])
def test_a_killed_search_draws_what_an_undisturbed_one_draws(args, tmp_path, monkeypatch, kills):
    """Fourteen trials: the first ten are drawn at random, the others from what was found."""
    args = dataclasses.replace(args, search=14)
    whole = Trainings()
    search(args, "accuracy", whole)
    killed = dataclasses.replace(args, output_dir=str(tmp_path / "killed"))
    seen = {}
    for kill in kills:
        trainings = Trainings(stop_at=kill)
        with monkeypatch.context() as patch:
            if kill == "drawing":  # a learning rate is drawn, a rank is not
                patch.setattr("optuna.trial.Trial.suggest_categorical", interrupted)
            with pytest.raises(KeyboardInterrupt):
                search(killed, "accuracy", trainings)
        seen |= dict.fromkeys(drawn(trainings))
    rest = Trainings()
    search(killed, "accuracy", rest)
    assert list(seen | dict.fromkeys(drawn(rest))) == drawn(whole)
    assert outcome(killed) == outcome(args)


def interrupted(*_):
    raise KeyboardInterrupt


class Divergent(Trainings):
    """Runs diverge above a learning rate."""

    def __init__(self, limit: float, stop_at: int | None = None):
        super().__init__(stop_at)
        self.limit = limit

    def __call__(self, args: Args) -> None:
        super().__call__(args)
        if args.learning_rate > self.limit:
            raise DivergedError(f"step 3: the loss is nan at {args.learning_rate}")


def test_a_run_that_diverges_counts_as_failed(args, capsys, tmp_path):
    args = dataclasses.replace(args, search=12)
    trainings = Divergent(limit=1.5e-3)
    search(args, "accuracy", trainings)
    assert len(trainings.seen) == 12, "a failed one counts"
    assert len({seen.output_dir for seen in trainings.seen}) == 12, "and is not tried again"
    bad = [seen for seen in trainings.seen if seen.learning_rate > 1.5e-3]
    assert bad
    said = capsys.readouterr().out
    for seen in bad:
        assert f"{Path(seen.output_dir).name}: failed: step 3: the loss is nan at {seen.learning_rate}" in said
    results = outcome(args)
    assert {t["folder"] for t in results["trials"] if "failed" in t} == {Path(seen.output_dir).name for seen in bad}
    assert results["best"] not in {Path(seen.output_dir).name for seen in bad}
    again = Divergent(limit=1.5e-3)
    search(args, "accuracy", again)
    assert not again.seen
    # killed between failures, it draws the same
    killed = dataclasses.replace(args, output_dir=str(tmp_path / "killed"))
    before, after = Divergent(1.5e-3, stop_at=7), Divergent(1.5e-3)
    with pytest.raises(KeyboardInterrupt):
        search(killed, "accuracy", before)
    search(killed, "accuracy", after)
    assert drawn(before)[:-1] + drawn(after) == drawn(trainings)


def test_all_runs_diverge(args):
    with pytest.raises(UserError, match="--search: all 6 runs failed; the last: step 3: the loss is nan at"):
        search(args, "accuracy", Divergent(limit=0))
    trainings = Divergent(limit=0)
    with pytest.raises(UserError, match="--search: all 6 runs failed"):
        search(args, "accuracy", trainings)
    assert not trainings.seen, "nor are they tried for ever"


def test_another_mistake_ends_the_search(args):
    def broken(trial: Args) -> None:
        raise UserError("--lora_target_modules w_pack: the model has down_proj")

    with pytest.raises(UserError, match="w_pack"):
        search(args, "accuracy", broken)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "has no best_metric"),
        ('{"best_metric": null}', "best_metric is None, expected a number"),
        ("[", "not a JSON object"),
    ],
)
def test_results_of_a_run_that_are_none(args, content, message):
    def train(trial: Args) -> None:
        Trainings()(trial)
        (Path(trial.output_dir) / "train_results.json").write_text(content)

    with pytest.raises(UserError, match=rf"trial-0/train_results.json: {message}"):
        search(args, "accuracy", train)


def test_another_search_in_the_same_folder(args):
    search(dataclasses.replace(args, search=1), "accuracy", Trainings())
    with pytest.raises(UserError, match=r"--learning_rate 0.005: the search in .* began with 0.001"):
        search(dataclasses.replace(args, learning_rate=5e-3), "accuracy", Trainings())


def test_a_folder_with_a_run(args):
    Path(args.output_dir).mkdir()
    (Path(args.output_dir) / "args.json").write_text("{}")
    with pytest.raises(UserError, match="holds a run, not a search"):
        search(args, "accuracy", Trainings())


def test_several_processes(args, monkeypatch):
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--search: runs its trials one after the other"):
        search(args, "accuracy", Trainings())


def test_a_search_of_real_runs(tiny_model_dir, tmp_path, capsys):
    for name in ("train", "dev"):
        rows = [f"{text};{label}" for label, texts in TEXTS.items() for text in texts]
        (tmp_path / f"{name}.txt").write_text("\n".join(rows), encoding="utf-8")
    args = Args(
        model_path=str(tiny_model_dir), task="emotion", train_data_path=str(tmp_path / "train.txt"),
        dev_data_path=str(tmp_path / "dev.txt"), test_data_path=str(tmp_path / "dev.txt"),
        output_dir=str(tmp_path / "search"), precision="fp32", max_steps=6, learning_rate=5e-3, search=2,
        objective="classify", warmup_steps=0,
    )  # fmt: skip
    main(args)
    results = outcome(args)
    best = max(trial["accuracy"] for trial in results["trials"])
    assert f"with accuracy {best:.4f}" in capsys.readouterr().out
    assert (tmp_path / "search" / "task.json").is_file()
    assert json.loads((tmp_path / "search" / "test_results.json").read_text())["n"] == 12
    assert not (tmp_path / "search" / "trial-0" / "test_results.json").exists()


def test_a_real_run_that_diverges(tiny_model_dir, tmp_path, capsys, monkeypatch):
    for name in ("train", "dev"):
        rows = [f"{text};{label}" for label, texts in TEXTS.items() for text in texts]
        (tmp_path / f"{name}.txt").write_text("\n".join(rows), encoding="utf-8")
    build = main_SFT.build_trainer

    def build_and_break(args, *others):
        trainer = build(args, *others)
        if args.output_dir.endswith("trial-0"):
            for parameter in trainer.model.parameters():
                parameter.data.fill_(math.nan)
        return trainer

    monkeypatch.setattr(main_SFT, "build_trainer", build_and_break)
    args = Args(
        model_path=str(tiny_model_dir), task="emotion", train_data_path=str(tmp_path / "train.txt"),
        dev_data_path=str(tmp_path / "dev.txt"), output_dir=str(tmp_path / "search"), precision="fp32", max_steps=2,
        learning_rate=5e-3, search=2, objective="classify", warmup_steps=0,
    )  # fmt: skip
    main(args)
    assert "trial-0: failed: step 1: the loss is nan on the training rows" in capsys.readouterr().out
    assert outcome(args)["best"] == "trial-1"
    assert [trial["accuracy"] is None for trial in sorted(outcome(args)["trials"], key=lambda t: t["folder"])] == [
        True, False,
    ]  # fmt: skip

"""What is drawn, read from the figures themselves."""

import json

import pytest
from matplotlib.image import imread

from data.confidence import reliability, risk_coverage
from data.files import write_json
from data.report.charts import (
    draw_training_curves,
    histogram_figure,
    logged,
    reliability_figure,
    reward_figure,
    risk_coverage_figure,
    training_figure,
)
from data.report.run_files import read_rewards
from tests.test_run_report import HISTORY


def panels(figure):
    return {axes.get_title(): {line.get_label(): line for line in axes.lines} for axes in figure.axes}


def test_the_curves():
    drawn = panels(training_figure({"log_history": HISTORY, "best_global_step": 20}))
    assert list(drawn) == ["loss", "validation rows", "learning rate"]
    assert [*drawn["loss"]["training"].get_xdata()] == [10, 20], "a loss that is no number is not drawn"
    assert [*drawn["loss"]["validation"].get_ydata()] == [2.25, 1.75]
    assert list(drawn["validation rows"]) == ["macro F1", "micro F1", "accuracy", "Jaccard", "best (step 20)"]
    assert [*drawn["validation rows"]["best (step 20)"].get_xdata()] == [20] * 4
    assert [*drawn["validation rows"]["best (step 20)"].get_ydata()] == [0.70812, 0.71, 0.61, 0.66]
    assert [*drawn["learning rate"]["learning rate"].get_ydata()] == [1e-4, 2e-4, 0.0]


def test_curves_that_are_one():
    scores = {"eval_f1_macro": 0.5, "eval_f1_micro": 0.75, "eval_accuracy": 0.75, "eval_jaccard": 0.75}
    drawn = panels(training_figure({"log_history": [{"step": 1, "loss": 1.0}, {"step": 1, **scores}]}))
    assert list(drawn["validation rows"]) == ["macro F1", "micro F1, accuracy, Jaccard"]


def test_curves_of_less():
    losses = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]
    assert list(panels(training_figure({"log_history": losses}))) == ["loss"]
    assert training_figure({}) is None
    assert training_figure({"log_history": [{"step": 1, "eval_accuracy": 0.5, "learning_rate": 0.1}]}) is None


def test_the_file_of_the_curves(tmp_path):
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": HISTORY}))
    draw_training_curves(tmp_path)
    assert imread(tmp_path / "training_curves.png").shape[:2] == (494, 1794)  # three panels of 4.6 x 3.8 inches
    assert {path.name for path in tmp_path.iterdir()} == {"trainer_state.json", "training_curves.png"}


def test_no_file_without_losses(tmp_path):
    draw_training_curves(tmp_path)
    write_json(tmp_path / "trainer_state.json", {"log_history": [{"step": 1, "eval_accuracy": 0.5}]})
    draw_training_curves(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["trainer_state.json"]


# --- rewards --------------------------------------------------------------------------------------------------------


def run_of(folder, offset: float, steps):
    """A table as main_grpo.py writes it: the reward is a tenth of the step and `offset`; no column `format`."""
    folder.mkdir()
    rows = [f"{step},{0.1 * step + offset},{0.05 * step},{-0.01 * step}" for step in steps]
    (folder / "rewards.csv").write_text("step,reward,jaccard,length\n" + "\n".join(rows) + "\n")
    return read_rewards(folder)


def band(axes, number: int = 0) -> dict[float, tuple[float, float]]:
    """Step -> lower and upper edge of a band."""
    edges = {}
    for step, value in axes.collections[number].get_paths()[0].vertices:
        edges.setdefault(step, []).append(value)
    return {step: (min(values), max(values)) for step, values in edges.items()}


def test_several_runs_are_a_mean_and_a_band(tmp_path):
    steps = [5, 10, 15, 20]
    rewards = [run_of(tmp_path / "a", 0.0, steps), run_of(tmp_path / "b", 0.2, steps)]
    figure = reward_figure(rewards, [{0: 0.3, 10: 0.5}, {0: 0.3, 10: 0.7, 20: 0.8}], "f1_macro", window=2)
    left, right = figure.axes
    assert [axes.get_title() for axes in (left, right)] == [
        "rewards of the answers",
        "validation rows, greedy answers",
    ]
    assert [axes.get_xlabel() for axes in (left, right)] == ["step", "step"]
    assert (left.get_ylabel(), right.get_ylabel()) == ("reward", "f1_macro")
    assert figure.get_suptitle() == "mean of 2 runs ± standard deviation"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["weighted sum", "Jaccard", "length"]

    curves = {line.get_label(): line for line in left.lines}
    assert [*curves["weighted sum"].get_xdata()] == steps
    # the mean of two steps and of both runs; of the first step alone
    assert [*curves["weighted sum"].get_ydata()] == pytest.approx([0.6, 0.85, 1.35, 1.85])
    assert [*curves["Jaccard"].get_ydata()] == pytest.approx([0.25, 0.375, 0.625, 0.875])
    assert [*curves["length"].get_ydata()] == pytest.approx([-0.05, -0.075, -0.125, -0.175])
    assert len({line.get_color() for line in left.lines}) == 3
    deviation = 0.2 / 2**0.5  # n - 1
    for step, mean in zip(steps, [0.6, 0.85, 1.35, 1.85], strict=True):
        assert band(left)[step] == pytest.approx((mean - deviation, mean + deviation))
    assert band(left, 1)[20] == pytest.approx((0.875, 0.875)), "runs that agree have no band"

    (scores,) = right.lines
    assert [*scores.get_xdata()] == [0, 10, 20]
    assert [*scores.get_ydata()] == pytest.approx([0.3, 0.6, 0.8])  # the last from the run that was scored there
    assert band(right)[10] == pytest.approx((0.6 - deviation, 0.6 + deviation))


def test_a_single_run_has_no_band(tmp_path):
    figure = reward_figure([run_of(tmp_path / "a", 0.0, [5, 10])], [{}], "jaccard", window=1)
    left, right = figure.axes
    assert [*left.lines[0].get_ydata()] == pytest.approx([0.5, 1.0])
    assert not left.collections
    assert not right.collections
    assert [len(line.get_xdata()) for line in right.lines] == [0], "nothing was scored"
    assert figure.get_suptitle() == ""
    assert figure.canvas.manager is None, "pyplot would keep it open"


def test_what_the_trainer_logged():
    history = [{"step": 1, "loss": 2.5}, {"step": 2, "loss": float("nan")}, {"step": 0, "eval_loss": 3}, {"step": 3}]
    assert logged({"log_history": history}, "loss") == {1: 2.5}
    assert logged({"log_history": history}, "eval_loss") == {0: 3}
    assert logged({}, "loss") == {}


# --- confidence -----------------------------------------------------------------------------------------------------


def analysis_of(confidence, correct) -> dict:
    histogram = [
        {"from": i / 10, "to": (i + 1) / 10, "n": n, "accuracy": accuracy}
        for i, (n, accuracy) in enumerate([(0, None)] * 8 + [(4, 0.25), (3, 1 / 3)])
    ]
    return {
        "without_gold": 0,
        "histogram": histogram,
        "reliability": reliability(confidence, correct),
        "risk_coverage": risk_coverage(confidence, correct),
    }


def test_reliability_is_drawn_with_its_gaps():
    confidence, correct = [0.95, 0.95, 0.5, 0.4, 0.4], [1, 0, 1, 0, 0]
    upper, lower = reliability_figure(analysis_of(confidence, correct)).axes
    lines = {line.get_label(): line for line in upper.lines}
    assert [*lines["as sure as they are right"].get_xdata()] == [0, 1]
    assert [*lines["the answers"].get_xdata()] == pytest.approx([0.4, 0.5, 0.95])
    assert [*lines["the answers"].get_ydata()] == pytest.approx([0, 1, 0.5])
    gaps = {each.get_label(): [path.vertices.ravel() for path in each.get_paths()] for each in upper.collections}
    assert gaps["too sure"] == [pytest.approx([0.4, 0, 0.4, 0.4]), pytest.approx([0.95, 0.5, 0.95, 0.95])]
    assert gaps["too modest"] == [pytest.approx([0.5, 0.5, 0.5, 1])]
    assert [bar.get_height() for bar in lower.patches] == [2, 1, 2]
    assert [bar.get_x() for bar in lower.patches] == pytest.approx([5 / 15, 7 / 15, 14 / 15])
    perfect = reliability_figure(analysis_of([1.0, 0.0], [1, 0]))
    assert not perfect.axes[0].collections, "no gaps, and none in the legend"


def test_risk_and_coverage_of_several_runs():
    first, second = analysis_of([0.9, 0.8, 0.7], [1, 1, 0]), analysis_of([0.9, 0.9, 0.1], [0, 1, 1])
    unlabelled = first | {"risk_coverage": None, "reliability": None}
    figure = risk_coverage_figure({"a $x$": first, "_b": second, "none": unlabelled})
    (axes,) = figure.axes
    drawn = [([*line.get_xdata()], [*line.get_ydata()]) for line in axes.lines]
    assert drawn == [
        (pytest.approx([100 / 3, 200 / 3, 100]), pytest.approx([1, 1, 2 / 3])),
        (pytest.approx([200 / 3, 100]), pytest.approx([0.5, 2 / 3])),
    ]
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 2
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["a $x$ (area 0.111)", "_b (area 0.444)"]
    assert not any(text.get_parse_math() for text in legend.get_texts())
    assert risk_coverage_figure({"none": unlabelled}) is None
    assert reliability_figure(unlabelled) is None


def test_a_wrong_answer_among_the_surest_does_not_squeeze_the_curve():
    confidence = [1 - i / 1000 for i in range(200)]
    (axes,) = risk_coverage_figure({"run": analysis_of(confidence, [0] + [1] * 199)}).axes
    assert axes.lines[0].get_ydata()[0] == 0
    assert 0.8 < axes.get_ylim()[0] < 0.9


def test_how_sure_answers_are():
    analysis = analysis_of([0.95], [1])
    (axes,) = histogram_figure(analysis).axes
    right, wrong = ([bar.get_height() for bar in group] for group in axes.containers)
    assert (right, wrong) == ([0] * 8 + [1, 1], [0] * 8 + [3, 2])
    assert [bar.get_y() for bar in axes.containers[1]] == right
    (axes,) = histogram_figure(analysis | {"without_gold": 2}).axes
    assert [bar.get_height() for bar in axes.patches] == [0] * 8 + [4, 3]
    assert axes.get_legend() is None

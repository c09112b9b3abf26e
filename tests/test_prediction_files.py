import json

import numpy
import pytest

from data.arguments import UserError
from data.calibration import calibration_scores, probabilities
from data.contract import Contract
from data.labels import Prediction
from data.metrics import label_metrics
from data.prediction_files import PredictionFile, measure, rows_of
from data.tasks import BUILT_IN_TASKS

SETTINGS = {"model_path": "outputs/sft", "limit": None}
ROWS = [{"id": str(i), "labels": ["joy"]} for i in range(5)]


def test_rows_outlive_the_process_that_wrote_them(tmp_path):
    file = PredictionFile(tmp_path, SETTINGS)
    file.append(ROWS[:2])
    file.append(ROWS[2:3])
    with file._partial.open("ab") as torn:
        torn.write(b'{"id": "3", "la')  # killed in the middle of a row
    assert not file.path.exists()

    again = PredictionFile(tmp_path, SETTINGS)
    assert again.done == 3
    again.append(ROWS[3:])
    again.close()
    again.finish()
    assert list(rows_of(tmp_path / "predictions.jsonl")) == ROWS
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.jsonl"]


def test_a_file_begun_with_other_settings_is_not_continued(tmp_path):
    PredictionFile(tmp_path, SETTINGS).append(ROWS)
    with pytest.raises(UserError, match=r"--limit 3: .* began with None"):
        PredictionFile(tmp_path, SETTINGS | {"limit": 3})
    assert PredictionFile(tmp_path, SETTINGS | {"limit": 3}, go_on=False).done == 0


@pytest.mark.parametrize("name", ["goemotions-group", "emotion"])
@pytest.mark.parametrize("objective", ["classify", "score"])
def test_a_file_is_measured_as_its_scores_would_be(tmp_path, name, objective):
    task = BUILT_IN_TASKS[name]
    contract = Contract(task, objective=objective, temperature=1.7)
    draw = numpy.random.default_rng(3)
    scores = draw.normal(size=(40, len(task.labels))) * 4
    shares = probabilities(scores, contract.activation, contract.temperature)
    gold = [(task.labels[k],) for k in draw.integers(len(task.labels), size=40)]
    predicted = [Prediction((task.labels[k],), valid=True) for k in shares.argmax(axis=1)]
    rows = [
        {
            "gold": list(g),
            "labels": list(p.labels),
            "valid": True,
            "probabilities": dict(zip(task.labels, s.tolist(), strict=True)),
        }
        for g, p, s in zip(gold, predicted, shares, strict=True)
    ]
    results = measure(json.loads(json.dumps(rows)), contract)
    expected = label_metrics(gold, predicted, task) | calibration_scores(shares, gold, task)
    for metric, value in expected.items():
        assert results[metric] == (pytest.approx(value, abs=1e-5) if isinstance(value, float) else value), metric
    plain = calibration_scores(probabilities(scores, contract.activation), gold, task)
    assert results["uncalibrated"] == pytest.approx({n: plain[n] for n in ("ece", "brier")}, abs=1e-5)


def test_rows_without_gold_are_counted(tmp_path):
    row = {"gold": None, "labels": ["joy"], "valid": True, "probabilities": None}
    assert measure([row] * 3, Contract(BUILT_IN_TASKS["emotion"])) == {"n": 3}

import json
import re

import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.arguments import UserError
from data.calibration import calibration_scores, probabilities
from data.contract import Contract
from data.loading import Example
from data.metrics import label_metrics
from data.prediction_files import PredictionFile, different_settings
from data.prediction_rows import measure, rows_of
from data.predictions import Prediction
from data.tasks import BUILT_IN_TASKS

TASK = BUILT_IN_TASKS["emotion"]
EXAMPLES = [Example(str(i), f"text {i}", ("joy",)) for i in range(5)]
ROWS = [TASK.result_row(example, Prediction(("love",), True, completion="love")) for example in EXAMPLES]
WRITTEN = [json.loads(json.dumps(row)) for row in ROWS]  # lists where a prediction has tuples
LINES = [json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in ROWS]
SETTINGS = {
    "flags": {"limit": None, "cot": False}, "files": {"--test_data_path": {"path": "a.tsv", "hash": "12"}},
}  # fmt: skip


def begun(directory, settings=SETTINGS) -> PredictionFile:
    return PredictionFile(directory, EXAMPLES, TASK, settings)


def test_rows_outlive_the_process_that_wrote_them(tmp_path, capsys):
    file = begun(tmp_path)
    file.append(ROWS[:2])
    file.append(ROWS[2:3])
    with file.unfinished.open("ab") as torn:
        torn.write(b'{"id": "3", "la')  # killed in the middle of a row
    assert not file.path.exists()

    again = begun(tmp_path)
    assert again.done == 3
    assert capsys.readouterr().out == (
        f"{again.unfinished}: 3 rows are right; what stands behind them is predicted anew\n"
    )
    again.append(ROWS[3:])
    again.close()
    again.finish()
    assert list(rows_of(tmp_path / "predictions.jsonl")) == WRITTEN
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.jsonl"]


def test_rows_with_more_or_fewer_of_the_fields_that_came_later_are_continued(tmp_path):
    earlier = {name: value for name, value in ROWS[0].items() if name != "pruned_mass"}
    promised = Prediction(("love",), True, pruned_mass=0.1, label_set=("love",))
    file = begun(tmp_path)
    file.append([earlier, TASK.result_row(EXAMPLES[1], promised), ROWS[2] | {"unheard_of": 1}])
    file.close()
    assert begun(tmp_path).done == 2


def test_a_file_begun_with_other_settings_is_not_continued(tmp_path):
    begun(tmp_path).append(ROWS)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match=r"^--limit 3: .*partial.jsonl began with None; remove it"):
        begun(tmp_path, SETTINGS | {"flags": {"limit": 3, "cot": False}})
    with pytest.raises(UserError, match=r"^b.tsv: is not what .*partial.jsonl was begun with: its content differs"):
        begun(tmp_path, SETTINGS | {"files": {"--test_data_path": {"path": "b.tsv", "hash": "13"}}})
    with pytest.raises(UserError, match=r"^--test_data_path: is not there any more, but was when"):
        begun(tmp_path, SETTINGS | {"files": {}})
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}
    moved = {"--test_data_path": {"path": "elsewhere/a.tsv", "hash": "12"}}
    assert begun(tmp_path, SETTINGS | {"files": moved}).done == 5
    assert begun(tmp_path, None).done == 0


@pytest.mark.parametrize("content", [
    None, '{"model_path": "outputs/sft (a.safetensors: 4 bytes)", "limit": null}', '{"flags": {}}', "{", "[]",
    '{"flags": [], "files": {}}', '{"flags": {"limit": null, "cot": false}, "files": {"--test_data_path": 3}}',
])  # fmt: skip
def test_a_file_of_which_nobody_knows_what_it_was_begun_with(tmp_path, content):
    begun(tmp_path).append(ROWS[:2])
    settings = tmp_path / "predictions.partial.json"
    settings.unlink() if content is None else settings.write_text(content)
    with pytest.raises(UserError, match=r"predictions.partial.json"):
        begun(tmp_path)
    assert len(list(rows_of(tmp_path / "predictions.partial.jsonl"))) == 2


def test_an_empty_unfinished_file_is_begun_with_anything(tmp_path):
    (tmp_path / "predictions.partial.jsonl").touch()
    assert begun(tmp_path).done == 0


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_an_unfinished_file_holds_the_whole_one_is_right(tmp_path, data):
    """Rows doubled, left out, halved, in another order, of other texts, blank lines, marks, and anything else."""
    other = json.dumps(WRITTEN[0] | {"text": "of another file"}).encode() + b"\n"
    unknown = json.dumps(WRITTEN[0] | {"labels": ["hunger"]}).encode() + b"\n"
    older = json.dumps({k: v for k, v in WRITTEN[0].items() if k != "truncated"}).encode() + b"\n"
    odd = [b"\n", b" \r\n", b"\xef\xbb\xbf", b"\xff\n", b"null\n", b"[" * 3000 + b"\n", b"1" * 5000 + b"\n", other, unknown,
           older, LINES[0][:20], LINES[1].rstrip(b"\n")]  # fmt: skip
    begun(tmp_path, None).close()
    file = begun(tmp_path)
    file.close()
    pieces = data.draw(st.lists(st.sampled_from([*LINES, *odd]) | st.binary(max_size=20), max_size=8))
    file.unfinished.write_bytes(b"".join([*LINES[: data.draw(st.integers(0, 5))], *pieces]))
    again = begun(tmp_path)
    again.append(ROWS[again.done :])
    again.close()
    again.finish()
    assert (tmp_path / "predictions.jsonl").read_bytes() == b"".join(LINES)


def test_numbers_that_are_not_finite_are_not_written(tmp_path):
    with pytest.raises(UserError, match=r"partial.jsonl: confidence \(nan\) is not a finite number"):
        begun(tmp_path).append([ROWS[0] | {"confidence": float("nan")}])


@pytest.mark.parametrize(("change", "message"), [
    ({"id": 3}, "id is 3, so this is no line of predictions"), ({"text": None}, "text is None"),
    ({"gold": "joy"}, "gold is 'joy'"), ({"labels": {"joy": 1}}, "labels is {'joy': 1}"), ({"valid": 1}, "valid is 1"),
    ({"probabilities": [1]}, r"probabilities is \[1\]"), ({"confidence": "high"}, "confidence is 'high'"),
    ({"completion": None}, "completion is None"), ({"truncated": 0}, "truncated is 0"),
    ({"labels": [["joy"]]}, r"id '0' has label \['joy'\], which task emotion has not"),
    ({"gold": [None]}, "id '0' has label None"), ({"gold": ["joy", "love"]}, "id '0' has 2 gold labels"),
    ({"gold": []}, "id '0' has 0 gold labels"),
    ({"probabilities": {}}, r"id '0' has probabilities of \[\]"),
    ({"probabilities": dict.fromkeys(TASK.labels, 10**400)}, "id '0' has probabilities that are not from 0 to 1"),
    ({"probabilities": dict.fromkeys(TASK.labels, True)}, "id '0' has probabilities that are not from 0 to 1"),
    ({"confidence": float("nan")}, "id '0' has a confidence that is not from 0 to 1"),
])  # fmt: skip
def test_rows_that_are_none(tmp_path, change, message):
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(LINES[1] + b"\n" + json.dumps(WRITTEN[0] | change).encode())
    with pytest.raises(UserError, match=rf"predictions.jsonl:3: {message}"):
        list(rows_of(path, TASK))


@pytest.mark.parametrize(("content", "message"), [
    (b"null", ":1: not a JSON object (but None)"), (b'{"id": "\xff"}', ":1: byte 0xff is not UTF-8"),
    (b"[" * 100_000, ":1: not a JSON object"), (b"9" * 10_000, ":1: not a JSON object"), (b"{}", ":1: id is not there"),
])  # fmt: skip
def test_lines_that_are_no_rows(tmp_path, content, message):
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(f"{path}{message}")) as raised:
        list(rows_of(path))
    assert len(str(raised.value)) < 400


def test_rows_of_an_earlier_emotune_and_of_an_editor(tmp_path):
    """Without fields that came later; with a byte order mark and blank lines, as editors leave them."""
    row = {name: WRITTEN[0][name] for name in ("id", "text", "gold", "labels", "valid")}
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(row).encode() + b"\n\n")
    assert list(rows_of(tmp_path / "a.jsonl", TASK)) == [row | {"probabilities": None}]


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


def test_a_flag_that_an_earlier_version_had_not():
    def of(**flags):
        return {"flags": flags, "files": {}}

    before = of(limit=3)
    assert different_settings(before, of(limit=3, allow_none=None), "a file") is None
    assert different_settings(before, of(limit=3, allow_none=True), "a file") == (
        "--allow_none on: a file began with None"
    )

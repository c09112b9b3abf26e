"""inference.py where a model writes summaries of cases."""

import dataclasses
import io
import json
import shutil
from itertools import islice
from pathlib import Path

import pytest

from data.arguments import UserError
from data.contract import Contract
from data.prediction_files import PredictionFile
from data.sampling import Sampling
from data.summaries.demo import DEMO_CASES
from data.summaries.task import SUMMARY_TASKS
from inference import Args, Predictor, main
from scripts import gather

DRAWN = {"max_new_tokens": 10, "temperature": 0.9, "top_p": 0.95, "top_k": 100, "repetition_penalty": 1.1}
ROWS = [
    {
        "id": f"c{i}",
        "case_description": [f"Person {i}.", "Sleeps badly."],
        "consultation_process": [f"Session {n}: we spoke of the nights." for n in range(i % 4 + 1)],
        "experience_and_reflection": f"Person {i} sleeps better now, having spoken.",
    }
    for i in range(11)
]
CHINESE = {"case_description": ["女，三十四岁，睡不好。"], "consultation_process": ["我们谈了她的睡眠和工作。"]}


def write(path: Path, rows) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def args(tiny_model_dir, tmp_path) -> Args:
    """An untuned model."""
    return Args(
        model_path=str(tiny_model_dir), task="emotion-summary", test_data_path=write(tmp_path / "cases.jsonl", ROWS),
        output_dir=str(tmp_path / "out"), batch_size=2, precision="fp32", device="cpu", max_length=800, **DRAWN,
    )  # fmt: skip


@pytest.fixture
def trained(tiny_model_dir, tmp_path) -> Path:
    """A run whose task.json says how it draws."""
    shutil.copytree(tiny_model_dir, tmp_path / "run")
    Contract(SUMMARY_TASKS["emotion-summary-en"], max_length=800, sampling=Sampling(**DRAWN)).save(tmp_path / "run")
    return tmp_path / "run"


def rows_in(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def without_text(args: Args, **flags) -> Args:
    return dataclasses.replace(args, **{"test_data_path": None, "text": "-"} | flags)


def test_a_file_of_cases(args, tmp_path, capsys):
    main(args)
    rows = rows_in(tmp_path / "out")
    assert [{name: row[name] for name in given} for row, given in zip(rows, ROWS, strict=True)] == ROWS
    assert all(row.keys() - ROWS[0].keys() == {"summary", "truncated", "finished", "confidence"} for row in rows)
    assert len({row["summary"] for row in rows}) == len(rows)
    assert all(0 < row["confidence"] <= 1 for row in rows)
    results = json.loads((tmp_path / "out" / "test_results.json").read_text())
    assert results["n"] == len(ROWS)
    assert results["seed"] == 42
    assert results["unfinished_rate"] == sum(not row["finished"] for row in rows) / len(rows)
    assert {"rouge1_f1", "rouge2_f1", "rougeL_f1", "bleu"} <= results.keys()
    assert (tmp_path / "out" / "test_summary.txt").read_text() in capsys.readouterr().out


def test_cases_without_references(args, tmp_path):
    bare = [{name: value for name, value in row.items() if name != "experience_and_reflection"} for row in ROWS]
    main(dataclasses.replace(args, test_data_path=write(tmp_path / "bare.jsonl", bare), limit=5))
    assert len(rows_in(tmp_path / "out")) == 5
    results = json.loads((tmp_path / "out" / "test_results.json").read_text())
    assert "rouge1_f1" not in results
    assert {"truncation_rate", "unfinished_rate"} <= results.keys()


def test_killed_and_continued(args, tmp_path, monkeypatch):
    main(args)
    whole = (tmp_path / "out" / "predictions.jsonl").read_text()
    again = dataclasses.replace(args, output_dir=str(tmp_path / "again"))
    append = PredictionFile.append

    def stopping(self, rows):
        append(self, islice(rows, 5))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PredictionFile, "append", stopping)
        with pytest.raises(KeyboardInterrupt):
            main(again)
    for flag, value in (("seed", 7), ("temperature", 0.5), ("max_new_tokens", 9)):
        with pytest.raises(UserError, match=f"^--{flag} {value}: .*began with"):
            main(dataclasses.replace(again, **{flag: value}))
    main(dataclasses.replace(again, batch_size=5))
    continued = (tmp_path / "again" / "predictions.jsonl").read_text()
    assert summaries(continued) == summaries(whole)


def summaries(content: str) -> list[str]:
    return [json.loads(line)["summary"] for line in content.splitlines()]


def test_parts_and_processes_write_what_one_writes(args, tmp_path):
    main(args)
    whole = rows_in(tmp_path / "out")
    for part in ("1/2", "2/2"):
        main(dataclasses.replace(args, shard=part, output_dir=str(tmp_path / "parts")))
    gather.main(gather.Args(str(tmp_path / "parts"), args.model_path, "emotion-summary"))
    main(dataclasses.replace(args, workers=2, output_dir=str(tmp_path / "workers")))
    results = [json.loads((tmp_path / d / "test_results.json").read_text()) for d in ("out", "parts", "workers")]
    for folder, scores in zip(("parts", "workers"), results[1:], strict=True):
        assert [row["summary"] for row in rows_in(tmp_path / folder)] == [row["summary"] for row in whole]
        for name in ("rougeL_f1", "bleu", "unfinished_rate", "truncation_rate", "n"):
            assert scores[name] == results[0][name]


def test_all_parts_are_asked_in_one_language(args, tmp_path):
    cases = write(tmp_path / "mixed.jsonl", [CHINESE] * 2 + [without_summary(row) for row in ROWS[:6]])
    for part in ("1/4", "4/4"):
        main(dataclasses.replace(args, test_data_path=cases, shard=part))
        (settings,) = (tmp_path / "out").glob(f"predictions-0000{part[0]}*.json")
        assert json.loads(settings.read_text())["flags"]["task"] == "emotion-summary-en"


def without_summary(row: dict) -> dict:
    return {name: value for name, value in row.items() if name != "experience_and_reflection"}


def test_a_run_draws_as_its_task_json_says(trained, args, tmp_path):
    main(args)
    main(dataclasses.replace(args, model_path=str(trained), task=None, max_length=None, output_dir=str(tmp_path / "b"),
                             **dict.fromkeys(DRAWN)))  # fmt: skip
    rows = rows_in(tmp_path / "out")
    assert [row["summary"] for row in rows] == [row["summary"] for row in rows_in(tmp_path / "b")]
    shorter = dataclasses.replace(args, max_new_tokens=3, output_dir=str(tmp_path / "c"))
    main(shorter)
    for row, short in zip(rows, rows_in(tmp_path / "c"), strict=True):  # the same seed draws the same beginning
        assert row["summary"].startswith(short["summary"].rstrip("\ufffd"))


BAD = {
    "a missing key": ({"case_description": ["x"]}, "no consultation_process among 'case_description'"),
    "a string": ({"case_description": "x", "consultation_process": ["y"]}, "case_description is 'x', where a list of"),
    "nothing said": ({"case_description": ["x"], "consultation_process": []}, "consultation_process is an empty list"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row(args, tmp_path, name):
    row, message = BAD[name]
    path = write(tmp_path / "bad.jsonl", [ROWS[0], row, ROWS[1]])
    bad = dataclasses.replace(args, test_data_path=path)
    with pytest.raises(UserError, match=rf"^.*bad\.jsonl:2: {message}"):
        main(bad)
    assert not (tmp_path / "out").exists()
    main(dataclasses.replace(bad, skip_bad_rows=True))
    assert [row["id"] for row in rows_in(tmp_path / "out")] == ["c0", "c1"]
    (rejected,) = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert rejected["line"] == 2
    assert message in rejected["error"]


def test_cases_from_the_command_line_and_a_pipe(trained, args, monkeypatch, capsys):
    one = json.dumps(without_summary(ROWS[0]))
    run = without_text(args, model_path=str(trained), task=None, max_length=None)
    main(dataclasses.replace(run, text=one))
    (alone,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert alone["completion"]
    lines = f"{one}\n\n{json.dumps(CHINESE, ensure_ascii=False)}\n".encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines)))
    main(dataclasses.replace(run, text="-"))
    both = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(both) == 2
    assert both[0]["completion"] == alone["completion"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(one.encode() + b"\nhello\n")))
    with pytest.raises(UserError, match=r"^standard input:2: not JSON"):
        main(dataclasses.replace(run, text="-"))
    with pytest.raises(UserError, match=r"^--text: no consultation_process among 'case_description'"):
        main(dataclasses.replace(run, text='{"case_description": ["x"]}'))


def test_one_case_is_asked_about_in_its_language(args, monkeypatch, capsys):
    asked = []
    predict = Predictor.predict
    monkeypatch.setattr(Predictor, "predict", lambda self, case: asked.append(self.task.name) or predict(self, case))
    for case in (CHINESE, without_summary(ROWS[0])):
        main(without_text(args, text=json.dumps(case, ensure_ascii=False)))
    assert asked == ["emotion-summary-zh", "emotion-summary-en"]


def test_a_demonstration_and_a_conversation(trained, args, monkeypatch, capsys):
    run = without_text(args, model_path=str(trained), task=None, max_length=None)
    main(dataclasses.replace(run, text=None, demo=True))
    shown = capsys.readouterr().out
    assert all(case.text in shown for case in DEMO_CASES)
    said = iter([json.dumps(without_summary(ROWS[0])), "hello", '{"case_description": []}', "quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(said))
    main(dataclasses.replace(run, text=None, interactive=True))
    shown = capsys.readouterr().out
    assert "a case as one line of JSON" in shown
    assert "  that: not JSON" in shown
    assert "  that: no consultation_process among 'case_description'" in shown


def test_what_free_text_has_not(args, trained):
    with pytest.raises(UserError, match=r"^--compile: not for free text"):
        main(dataclasses.replace(args, compile=True))
    with pytest.raises(UserError, match=r"^--probabilities: task emotion-summary has no labels"):
        main(dataclasses.replace(args, probabilities=True))
    for flags in ({"compile": True}, {"probabilities": True}):
        with pytest.raises(UserError, match=f"^--{next(iter(flags))}: "):
            Predictor(str(trained), precision="fp32", device="cpu", **flags)


def test_whole_numbers_and_constraints_change_nothing(trained, args, tmp_path):
    settings = dict(precision="fp32", device="cpu", temperature=1, repetition_penalty=2, top_p=1)
    case = {name: ROWS[2][name] for name in ("case_description", "consultation_process")}
    with Predictor(str(trained), **settings) as predictor:
        text = predictor.generate_summary(**case)
    with Predictor(str(trained), constrained=False, **settings) as predictor:
        assert predictor.generate_summary(**case) == text

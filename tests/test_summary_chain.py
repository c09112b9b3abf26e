"""From a file in PsyQA's form to scores of what was written: every stage in turn, on a tiny model."""

import json
from pathlib import Path

import pytest

import download
import inference
import main_SFT
from data.arguments import UserError
from data.contract import Contract
from data.summaries.cases import read_cases
from data.summaries.psyqa import FILE_NAME
from inference import Predictor
from scripts import find_data, summary_scores
from tests.conftest import ROOT


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def psyqa(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("chain") / "psyqa"
    download.main(
        download.Args(dataset="psyqa", source=str(ROOT / "data/sample_psyqa/psyqa.json"), target_dir=str(folder))
    )
    return folder


@pytest.fixture(scope="module")
def run(psyqa, tiny_model_dir) -> Path:
    """Two steps of training with what find_data names, in full precision, since 4 bits take long on a CPU."""
    output = psyqa.parent / "run"
    main_SFT.main(main_SFT.Args(
        model_path=str(tiny_model_dir), task="emotion-summary", train_data_path=str(psyqa / "train" / FILE_NAME),
        dev_data_path=str(psyqa / "validation" / FILE_NAME), test_data_path=str(psyqa / "test" / FILE_NAME),
        output_dir=str(output), tuning="lora", precision="fp32", max_length=1536, max_steps=2,
        gradient_accumulation_steps=1, max_new_tokens=600, predict_batch_size=2,
    ))  # fmt: skip
    return output


def test_what_is_found_is_what_is_trained_on(psyqa, tiny_model_dir, capsys):
    find_data.main(find_data.Args("psyqa", model=str(tiny_model_dir), folder=str(psyqa), output_dir="out"))
    assert capsys.readouterr().out.splitlines()[2:-2] == [
        "--task", "emotion-summary", "--train_data_path", f"{psyqa}/train/{FILE_NAME}",
        "--test_data_path", f"{psyqa}/test/{FILE_NAME}", "--dev_data_path", f"{psyqa}/validation/{FILE_NAME}",
    ]  # fmt: skip


def test_what_training_leaves(run):
    contract = Contract.load(run)
    assert (contract.task.name, contract.objective, contract.max_length) == ("emotion-summary-zh", "generate", 1536)
    assert contract.sampling.max_new_tokens == 600
    assert json.loads((run / "train_results.json").read_text())["steps"] == 2
    assert "rouge1_f1" in json.loads((run / "test_results.json").read_text())


def test_a_file_is_written_and_scored(psyqa, run, tmp_path, capsys):
    file = psyqa / "test" / FILE_NAME
    inference.main(inference.Args(
        model_path=str(run), test_data_path=str(file), output_dir=str(tmp_path), precision="fp32", max_new_tokens=8,
    ))  # fmt: skip
    cases, rows = list(read_cases(file, "--f")), rows_of(tmp_path / "predictions.jsonl")
    assert [row["id"] for row in rows] == [case.id for case in cases]
    assert all({"summary", "truncated", "finished"} <= set(row) for row in rows)
    scores = json.loads((tmp_path / "test_results.json").read_text())
    capsys.readouterr()
    summary_scores.main(summary_scores.Args(str(tmp_path / "predictions.jsonl")))
    assert "2 cases" in capsys.readouterr().out
    anew = json.loads((tmp_path / "summary_scores.json").read_text())
    assert {name: anew[name] for name in ("n", "rouge1_f1", "rougeL_f1", "bleu")} == pytest.approx(
        {name: scores[name] for name in ("n", "rouge1_f1", "rougeL_f1", "bleu")}
    )


def test_from_python(run):
    with Predictor(str(run)) as predictor:
        written = predictor.generate_summary(
            case_description=["最近睡不好。"], consultation_process=["记录一周。", "第二周好些了。"]
        )
    assert written == written.strip()


def test_less_room_than_the_longest_summary_takes(psyqa, tiny_model_dir, tmp_path):
    args = main_SFT.Args(
        model_path=str(tiny_model_dir), task="emotion-summary", train_data_path=str(psyqa / "train" / FILE_NAME),
        output_dir=str(tmp_path / "out"), tuning="lora", precision="fp32", max_length=1536, max_new_tokens=20,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"^row \S+: its answer takes \d+ tokens, while inference gives an answer 20"):
        main_SFT.main(args)

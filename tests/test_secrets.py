"""Tokens and keys stay where they are: in the environment, and in what is sent to whom they are for."""

import json
from pathlib import Path

import pytest

import download
import inference
import main_grpo
import main_SFT
import merge_lora
from data.arguments import UserError
from data.summaries.cases import REFERENCES
from scripts import compare, judge_summaries, report, reproduce
from tests.conftest import SAMPLE
from tests.hub_server import Hub
from tests.judge_server import JudgeServer, Reply

MARKER = "hf_aTokenThatNobodyMaySee"
KEY = "sk-aKeyThatNobodyMaySee"
NAMES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "MODELSCOPE_API_TOKEN")


@pytest.fixture
def secrets(monkeypatch):
    for name in NAMES:
        monkeypatch.setenv(name, MARKER)
    monkeypatch.setenv("EMOTUNE_JUDGE_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def assert_nowhere(folder: Path, printed: str) -> None:
    """In no file, name of a file, or printed line, nor in a part of it."""
    assert printed, "nothing was printed: what is looked for could not be there"
    for secret in (MARKER, KEY):
        assert secret[3:] not in printed
        found = [
            path
            for path in folder.rglob("*")
            if secret in path.name or (path.is_file() and secret[3:].encode() in path.read_bytes())
        ]
        assert not found


def test_stages_keep_no_secret(secrets, tiny_model_dir, tmp_path, capfd):
    """Neither in what they write, TensorBoard's files and pickles included, nor in what they say, errors included."""
    rows = (SAMPLE / "train.tsv").read_text(encoding="utf-8").splitlines(keepends=True)[:24]
    (tmp_path / "rows.tsv").write_text("".join(rows), encoding="utf-8")
    data = dict(train_data_path=str(tmp_path / "rows.tsv"), dev_data_path=str(tmp_path / "rows.tsv"), precision="fp32", max_steps=2,
                batch_size=8, eval_steps=1, logging_steps=1, eval_samples=4)  # fmt: skip
    sft, grpo = tmp_path / "sft", tmp_path / "grpo"
    main_SFT.main(main_SFT.Args(
        model_path=str(tiny_model_dir), task="goemotions-original", output_dir=str(sft), test_data_path=str(tmp_path / "rows.tsv"), **data,
    ))  # fmt: skip
    main_grpo.main(main_grpo.Args(model_path=str(sft), output_dir=str(grpo), expectation="exact", **data))
    merge_lora.main(merge_lora.Args(training_output_dir=str(sft), output_dir=str(tmp_path / "merged")))
    inference.main(inference.Args(
        model_path=str(tmp_path / "merged"), test_data_path=str(tmp_path / "rows.tsv"), output_dir=str(tmp_path / "out"), precision="fp32",
    ))  # fmt: skip
    reproduce.main(reproduce.Args(run=str(sft)))
    compare.main(
        compare.Args(runs=[f"a={sft / 'test'}" if (sft / "test").is_dir() else f"a={sft}", f"b={tmp_path / 'out'}"])
    )
    report.main(report.Args(runs=[str(sft)], output_dir=str(tmp_path / "report")))
    with pytest.raises(UserError) as error:
        main_SFT.main(
            main_SFT.Args(model_path="org/not-there", task="emotion", output_dir=str(tmp_path / "no"), **data)
        )
    assert list(sft.rglob("events.out.tfevents.*"))
    assert (sft / "training_args.bin").is_file()
    printed = "".join(capfd.readouterr())
    assert_nowhere(tmp_path, printed + str(error.value))


def test_a_download_keeps_no_token(secrets, tmp_path, monkeypatch, capfd):
    """It is sent to the hub, and shown or kept by nobody, also where the hub says it again."""
    with Hub() as hub:
        hub.stand_in(monkeypatch)
        monkeypatch.setenv("EMOTUNE_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.chdir(tmp_path)
        hub.files["model", "org/mine"] = {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"x" * 100}
        download.main(download.Args(model="org/mine"))
        assert hub.tokens == {f"Bearer {MARKER}"}
        messages = []
        for says, status in ((f'{{"error": "{MARKER} is not valid"}}'.encode(), 401), (f'"{MARKER}"'.encode(), 200)):
            hub.says, hub.status = says, status
            with pytest.raises(UserError) as error:
                download.main(download.Args(model="org/other", source="hf"))
            messages.append(str(error.value))
    assert_nowhere(tmp_path, "".join(capfd.readouterr()) + "".join(messages))


def test_a_token_is_not_sent_to_whom_the_hub_leads(secrets, tmp_path, monkeypatch):
    with Hub() as hub, Hub() as other:
        hub.stand_in(monkeypatch)
        monkeypatch.chdir(tmp_path)
        hub.says = other.url.replace("127.0.0.1", "localhost") + "/api/models/org/mine"
        other.files["model", "org/mine"] = {"config.json": b"{}"}
        with pytest.raises(UserError):
            download.main(download.Args(model="org/mine", source="hf"))
        assert hub.tokens == {f"Bearer {MARKER}"}
        assert other.tokens == {None}


def test_a_judge_keeps_no_key(secrets, tmp_path, capfd):
    case = {"id": "1", "case_description": ["sad"], "consultation_process": ["so"], "experience_and_reflection": "well",
            "summary": "fine", **dict.fromkeys(REFERENCES, "a reason")}  # fmt: skip
    (tmp_path / "cases.jsonl").write_text(json.dumps(case) + "\n", encoding="utf-8")
    messages = []
    for status in (200, 401, 403):
        with JudgeServer(
            lambda body, number, status=status: Reply(status=status, body=f"{{'error': 'is {KEY} a key?'}}")
        ) as server:
            with pytest.raises(UserError) as error:
                judge_summaries.main(
                    judge_summaries.Args(file=str(tmp_path / "cases.jsonl"), judge_url=server.url, judge_model="m")
                )
            assert set(server.keys) == {f"Bearer {KEY}"}
            messages.append(str(error.value))
    assert_nowhere(tmp_path, "".join(capfd.readouterr()) + "".join(messages))

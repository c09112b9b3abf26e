"""PsyQA's questions and answers as cases: what a case is made of, which split it goes to, and what cannot be one."""

import json
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.arguments import UserError
from data.files import write_json
from data.published import DATA_SETS
from data.summaries.cases import Case, read_cases
from data.summaries.psyqa import FILE_NAME, split_answer, write_cases
from download import Args, main
from tests.conftest import ROOT
from tests.hub_server import COMMIT, Hub
from tests.test_download import json_lines, last_line, left_over, run_script

PSYQA = ROOT / "data" / "sample_psyqa" / "psyqa.json"
SPLITS = ("train", "validation", "test")
ANSWER = "读到你的话，我能感到你这段时间很不容易。\n你愿意说出来，已经是很大的一步。不妨先从一件小事做起。\n" + (
    "愿你慢慢找回自己的节奏，也请记得，难过的时候可以找人说说话，你并不是一个人在走这条路，我们都在。"
)


def question(number: int, *answers: str, **changes) -> dict:
    asked = {
        "question": f"问题{number}？",
        "description": f"说明{number}",
        "keywords": "睡眠,压力",
        "questionID": number,
    }
    return asked | {"answers": [{"answer_text": text, "has_label": False} for text in answers or (ANSWER,)]} | changes


def converted(folder: Path, rows: list, lines: bool = False) -> dict[str, list[Case]]:
    folder.mkdir(exist_ok=True)
    path = folder / "raw.json"
    path.write_bytes(json_lines(rows) if lines else json.dumps(rows).encode())
    shutil.rmtree(folder / "ready", ignore_errors=True)
    write_cases(path, folder / "ready")
    return {split: list(read_cases(folder / "ready" / split / FILE_NAME, "--f")) for split in SPLITS}


def all_cases(splits: dict[str, list[Case]]) -> list[Case]:
    return [case for cases in splits.values() for case in cases]


# --- a case ---------------------------------------------------------------------------------------------------------


def test_what_a_case_is_made_of(tmp_path):
    cases = {case.id: case for case in all_cases(converted(tmp_path, [question(i) for i in range(3)]))}
    assert set(cases) == {"0-1", "1-1", "2-1"}
    paragraphs = ANSWER.split("\n")
    assert cases["1-1"] == Case("1-1", ("问题1？", "说明1", "关键词：睡眠、压力"), tuple(paragraphs[:2]), paragraphs[2])


@pytest.mark.parametrize(
    ("answer", "process", "closing"),
    [
        ("甲" * 99 + "。\n" + "乙" * 45, ["甲" * 99 + "。"], "乙" * 45),
        (" \n甲甲\n\n" + "乙" * 60 + "\r\n" + "丙" * 50 + "\n", ["甲甲", "乙" * 60], "丙" * 50),
        (
            "甲" * 99 + "。\n" + "乙" * 45 + "\n祝好",
            ["甲" * 99 + "。"],
            "乙" * 45 + "\n祝好",
        ),  # a greeting is no closing
        (
            "甲" * 99 + "。" + "乙" * 30 + "！" + "丙" * 45 + "。",
            ["甲" * 99 + "。" + "乙" * 30 + "！"],
            "丙" * 45 + "。",
        ),
        # a paragraph that is nearly all of the answer is cut by its sentences
        ("你好\n" + "甲" * 99 + "。”" + "乙" * 45, ["你好", "甲" * 99 + "。”"], "乙" * 45),
        ("One. " * 40, [("One. " * 31).strip()], ("One. " * 9).strip()),
    ],
)
def test_the_closing_of_an_answer(answer, process, closing):
    assert split_answer(answer) == (tuple(process), closing)


@pytest.mark.parametrize("answer", ["抱抱你。", "甲" * 500, "甲" * 20 + "。" + "乙" * 45, "甲。" + "乙" * 300])
def test_an_answer_without_a_closing(answer):
    assert split_answer(answer) is None


def test_half_of_an_answer_at_most_and_nothing_is_lost():
    draw = random.Random(0)
    found = 0
    for _ in range(300):
        answer = "".join(
            draw.choices("甲乙丙丁", k=3)[0] * draw.randrange(1, 30) + draw.choice("。！？\n，") for _ in range(20)
        )
        if (parts := split_answer(answer)) is None:
            continue
        found += 1
        process, closing = parts
        assert "".join("".join((*process, closing)).split()) == "".join(answer.split())
        assert 40 <= len(closing) <= len(answer) / 2 + 1
    assert found > 250


@pytest.mark.parametrize(
    ("changes", "description"),
    [
        ({"keywords": ["睡眠", " 压力 "]}, ("问题0？", "说明0", "关键词：睡眠、压力")),
        ({"keywords": "睡眠，压力、家庭 工作"}, ("问题0？", "说明0", "关键词：睡眠、压力、家庭、工作")),
        ({"keywords": "", "description": None}, ("问题0？",)),
        ({"keywords": None, "description": "问题0？"}, ("问题0？",)),
    ],
)
def test_what_may_be_missing(tmp_path, changes, description):
    cases = all_cases(converted(tmp_path, [question(0, **changes), question(1), question(2)]))
    assert next(case for case in cases if case.id == "0-1").case_description == description


def test_ids_where_there_are_none_or_one_twice(tmp_path):
    rows = [question(0, questionID=None), question(1, questionID=5), question(2, questionID=5)]
    first, second, third = sorted(case.id for case in all_cases(converted(tmp_path, rows)))
    assert {"5-1", "5-2"} < {first, second, third}
    del rows[0]["questionID"]
    assert {first, second, third} == {case.id for case in all_cases(converted(tmp_path, rows))}


def test_what_is_left_out_is_counted(tmp_path, capsys):
    long = "甲" * 60 + "。"
    rows = [
        question(0), question(1), question(2, ANSWER, ANSWER, ""), question(3, answers=[]), question(4, answers=None),
        question(5, "抱抱。"), question(6, f"{long}{long}"), question(7, question=" "), question(8, "\ud800" + ANSWER),
        question(9, answers=[{"answer_text": None}]),
    ]  # fmt: skip
    path = tmp_path / "raw.json"
    path.write_text(json.dumps(rows))
    write_cases(path, tmp_path / "ready")
    *splits, summary = capsys.readouterr().out.splitlines()
    assert splits == [f"psyqa: {split} has 1 questions, 1 cases" for split in SPLITS]
    assert summary == (
        "psyqa: 10 questions with 10 answers read; left out: 1 answers that stand there twice, "
        "3 unusable answers (empty, or half a character in them), 2 questions without answers, "
        "1 answers too short to have a closing, 1 answers whose closing repeats what was said before, "
        "1 answers to unusable questions (empty, or half a character in them)"
    )


# --- splits ---------------------------------------------------------------------------------------------------------


def test_the_split_goes_by_the_words_alone(tmp_path):
    rows = [question(i, ANSWER, "甲" * (i + 60) + "。" + "乙" * (i + 50)) for i in range(40)]
    first = converted(tmp_path / "a", rows)
    shuffled = random.Random(1).sample(rows, len(rows))
    assert converted(tmp_path / "b", shuffled, lines=True) == first
    renamed = converted(tmp_path / "c", [row | {"questionID": f"x{i}"} for i, row in enumerate(rows)])
    for split in SPLITS:
        words = [[case.case_description for case in found[split]] for found in (first, renamed)]
        assert words[0] == words[1]


def test_shares_of_two_thousand_questions(tmp_path):
    splits = converted(
        tmp_path, [question(i, *([ANSWER, "甲" * 80 + "。" + "乙" * 50][: 1 + i % 2])) for i in range(2000)]
    )
    numbers = {split: {case.id.partition("-")[0] for case in cases} for split, cases in splits.items()}
    assert {split: len(found) for split, found in numbers.items()} == {"train": 1700, "validation": 150, "test": 150}
    assert len(set.union(*numbers.values())) == 2000  # the answers of a question are in one split
    assert sum(map(len, splits.values())) == 3000
    assert 200 <= len(splits["test"]) <= 250


def test_copies_of_a_question_are_one(tmp_path):
    """Under another id, in other capitals, with other keywords: their answers go where its own go."""
    rows = [question(i, description=f"Help {i}") for i in range(30)]
    other = "甲" * 60 + "。" + "乙" * 50
    copies = [question(i, other, description=f" HELP  {i}", questionID=100 + i, keywords="别的") for i in range(30)]
    splits = converted(tmp_path, rows + copies)
    for cases in splits.values():
        assert all(count == 2 for count in Counter(case.case_description for case in cases).values())


def test_too_few_questions(tmp_path):
    with pytest.raises(
        UserError, match=r"raw\.json: 2 questions with an answer that a case can be made of, expected thr"
    ):
        converted(tmp_path, [question(0), question(1), question(2, "短。")])
    assert not (tmp_path / "ready").exists()


# --- files ----------------------------------------------------------------------------------------------------------

BAD = {
    "no question": ({"query": "a", "answers": []}, "2: not in PsyQA's form: no question among 'query', 'answers'"),
    "no answers": ({"question": "a"}, "2: not in PsyQA's form: no answers among 'question'"),
    "words for answers": (
        question(1, answers="好"),
        "2: not in PsyQA's form: answers is '好', where a list of objects",
    ),
    "answers without words": (
        question(1, answers=[{}]),
        "answers[0] is {}, where an object with answer_text is expected",
    ),
    "a number for an answer": (
        question(1, answers=[{"answer_text": 3}]),
        "answers[0].answer_text is 3, where words are",
    ),
    "a list for a question": (
        question(1, question=["a"]),
        "2: not in PsyQA's form: question is ['a'], where words are",
    ),
    "a number for keywords": (
        question(1, keywords=3),
        "2: not in PsyQA's form: keywords is 3, where words are expected",
    ),
    "a list": ([], "2: not in PsyQA's form: not an object with named values"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_of_another_form(tmp_path, monkeypatch, name):
    """The command ends in one line, and nothing is left of it."""
    monkeypatch.chdir(tmp_path)
    row, message = BAD[name]
    write_json("mine.json", [question(0), row, question(2), question(3)])
    with pytest.raises(UserError) as error:
        main(Args(dataset="psyqa", source="mine.json"))
    assert str(error.value).startswith("mine.json:2: ")
    assert message in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "mine.json: the file is empty"),
        (b"[]", "mine.json: no questions in it"),
        (b"question,answer\n", "mine.json: is no JSON; expected an object a line, or a list of objects"),
        (b'[{"question": "a"', "mine.json:1: not JSON ("),
        (b"PK\x03\x04", "mine.json: is a zip archive"),
        (b'{"text": "fine", "label": 0}', "mine.json:1: not in PsyQA's form: no question among 'text', 'label'"),
    ],
)
def test_a_file_that_is_none(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    Path("mine.json").write_bytes(content)
    assert message in last_line(run_script("--dataset", "psyqa", "--source", "mine.json"))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.json"]


def test_a_file_of_ones_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(Args(dataset="psyqa", source=str(PSYQA)))
    assert "psyqa: 12 questions with 24 answers read\n" in capsys.readouterr().out
    assert left_over(tmp_path / "data") == ["psyqa"]
    assert left_over(tmp_path / "data/psyqa") == ["download.json", "test", "train", "validation"]
    manifest = json.loads(Path("data/psyqa/download.json").read_text(encoding="utf-8"))
    assert (manifest["source"], manifest["origin"]) == ("file", str(PSYQA))
    assert set(manifest["files"]) == {f"{split}/{FILE_NAME}" for split in SPLITS}
    for source in (str(PSYQA), "auto"):
        main(Args(dataset="psyqa", source=source))
        assert "already there, dataset psyqa from file at" in capsys.readouterr().out
    Path("other.json").write_bytes(PSYQA.read_bytes() + b"\n")
    for source in ("other.json", "hf"):
        with pytest.raises(UserError, match=r"--target_dir .*psyqa: is not empty, it holds dataset psyqa from file"):
            main(Args(dataset="psyqa", source=source))
    main(Args(dataset="psyqa", source="other.json", target_dir="mine"))
    for split in SPLITS:
        assert Path("mine", split, FILE_NAME).read_bytes() == Path("data/psyqa", split, FILE_NAME).read_bytes()


_TEXTS = st.text(max_size=6) | st.sampled_from([ANSWER, "\ud800", "\0", " ", "好。" * 80])
_VALUES = _TEXTS | st.none() | st.booleans() | st.integers() | st.floats() | st.lists(_TEXTS | st.none(), max_size=3)
_ANSWERS = st.lists(st.fixed_dictionaries({"answer_text": _TEXTS | _VALUES}) | _VALUES, max_size=3)
_CHANGES = st.dictionaries(
    st.sampled_from(["question", "description", "keywords", "questionID", "answers"]), _VALUES, max_size=2
)
_ROWS = st.builds(lambda number, changes, answers: question(number) | changes | answers, st.integers(0, 9), _CHANGES,
                  st.fixed_dictionaries({}, optional={"answers": _ANSWERS}))  # fmt: skip


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(_ROWS, max_size=4))
def test_cases_that_can_be_read_or_one_line(tmp_path, rows):
    problem = None
    try:
        splits = converted(tmp_path, [*rows, *map(question, range(10, 13))])
    except UserError as error:
        splits, problem = {}, str(error)
    assert "\n" not in (problem or "")
    assert problem or all(splits.values())
    ids = [case.id for case in all_cases(splits)]
    assert len(set(ids)) == len(ids)


# --- the hub --------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with Hub() as server:
        server.stand_in(monkeypatch)
        monkeypatch.chdir(tmp_path)
        yield server


def test_psyqa_from_the_hub(hub, tmp_path):
    hub.files["dataset", DATA_SETS["psyqa"].hub] = {"PsyQA_full.json": PSYQA.read_bytes(), "README.md": b"x"}
    main(Args(dataset="psyqa", source="hf", revision="main"))
    manifest = json.loads(Path("data/psyqa/download.json").read_text(encoding="utf-8"))
    assert (manifest["source"], manifest["revision"]) == ("hf", COMMIT)
    assert {split: len(list(read_cases(f"data/psyqa/{split}/{FILE_NAME}", "--f"))) for split in SPLITS} == {
        "train": 21, "validation": 1, "test": 2,
    }  # fmt: skip
    assert left_over(tmp_path / "data/psyqa") == ["download.json", "test", "train", "validation"]


def test_psyqa_where_one_has_no_access(hub, tmp_path):
    hub.says, hub.status = b"{}", 403
    with pytest.raises(
        UserError, match=r"or it is private \(to log in: hf auth login\); .*own copy of PsyQA_full\.json"
    ):
        main(Args(dataset="psyqa"))
    assert left_over(tmp_path) == []


def test_longemotion_from_the_hub(hub, tmp_path):
    row = {"case_description": ["a"], "consultation_process": ["b"], "experience_and_reflection": "c", "causes": "d"}
    content = json_lines([row] * 150)
    files = hub.files["dataset", "LongEmotion/LongEmotion"] = {
        "Emotion Summary/Emotion_Summary.jsonl": content, "Emotion Summary/Emotion_Summary_origin.jsonl": b"{}",
    }  # fmt: skip
    main(Args(dataset="longemotion-summary"))
    assert left_over(tmp_path / "data/longemotion-summary") == ["download.json", "test.jsonl"]
    assert Path("data/longemotion-summary/test.jsonl").read_bytes() == content
    files["Emotion Summary/Emotion_Summary.jsonl"] = json_lines([row] * 149)
    with pytest.raises(UserError, match=r"Emotion_Summary\.jsonl: found 149 cases, expected 150"):
        main(Args(dataset="longemotion-summary", target_dir="b"))
    files["Emotion Summary/Emotion_Summary.jsonl"] = json_lines([row, row | {"consultation_process": "b"}])
    with pytest.raises(
        UserError, match=r"Emotion_Summary\.jsonl:2: consultation_process is 'b', where a list of texts"
    ):
        main(Args(dataset="longemotion-summary", target_dir="c"))
    assert left_over(tmp_path) == ["data"]

"""Files of counselling cases: what is read, and every way in which a row is none."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.arguments import UserError
from data.files import write_json_lines
from data.summaries.cases import REFERENCES, Case, WrittenSummary, read_cases, read_written

GOOD = {
    "id": 7, "case_description": ["Woman, 34", "Sleeps badly"], "consultation_process": ["How are you?", "Tired."],
    "experience_and_reflection": "She found words for it.",
}  # fmt: skip


def read(path: Path, content, **settings) -> list[Case]:
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_cases(path, "--train_data_path", **settings))


def without(*names: str) -> dict:
    return {name: value for name, value in GOOD.items() if name not in names}


def test_a_case(tmp_path):
    (case,) = read(tmp_path / "a.jsonl", [GOOD | {"causes": " strain ", "symptoms": None, "mood": 3}])
    assert case == Case(
        "7", ("Woman, 34", "Sleeps badly"), ("How are you?", "Tired."), "She found words for it.", {"causes": "strain"}
    )


@pytest.mark.parametrize("content", ["{}\n\n{}\n", "[{}, {}]", "[\n {},\n {}\n]", "\ufeff{}\n{}"])
def test_lines_or_a_list(tmp_path, content):
    """Without an id, it is the number of the line, in a list that of the object."""
    content = content.replace("{}", json.dumps(without("id")))
    found = [case.id for case in read(tmp_path / "a.json", content)]
    assert found == (["1", "3"] if "\n\n" in content else ["1", "2"])


def test_long_cases(tmp_path):
    """Forty turns, 35,000 characters of all that JSON can spell."""
    turn = 'He said: "no"\n\t\u2028é字😀 ' * 50
    row = {"case_description": [turn], "consultation_process": [f"{i} {turn}" for i in range(40)],
           "experience_and_reflection": turn, "id": "long"}  # fmt: skip
    assert sum(map(len, row["consultation_process"])) > 35_000
    (case,) = read(tmp_path / "a.jsonl", [row])
    assert case.consultation_process == tuple(text.strip() for text in row["consultation_process"])
    write_json_lines(tmp_path / "b.jsonl", [case.record()])
    assert list(read_cases(tmp_path / "b.jsonl", "--f")) == [case]


BAD = {
    "no list": (GOOD | {"case_description": "Woman, 34"}, "case_description is 'Woman, 34', where a list of texts is"),
    "no process": (without("consultation_process"), "no consultation_process among 'id', 'case_description', 'exp"),
    "nothing": ({}, "no case_description among no keys at all"),
    "null": (GOOD | {"case_description": None}, "case_description is null"),
    "no turns": (GOOD | {"consultation_process": []}, "consultation_process is an empty list"),
    "an empty turn": (GOOD | {"consultation_process": ["a", " "]}, "empty consultation_process[1]"),
    "a turn of nothing": (GOOD | {"consultation_process": ["\u200b"]}, "empty consultation_process[0]: nothing in it can"),
    "a turn by name": (GOOD | {"consultation_process": [{"role": "a"}]}, "consultation_process[0] is {'role': 'a'}, where"),
    "a number": (GOOD | {"case_description": ["a", 3]}, "case_description[1] is 3, where words are expected"),
    "no turn": (GOOD | {"consultation_process": [None]}, "empty consultation_process[0]"),
    "half a character": (GOOD | {"consultation_process": ["a\ud800"]}, "consultation_process[0] holds half a character"),
    "a zero byte": (GOOD | {"experience_and_reflection": "a\0"}, "the experience_and_reflection holds a zero byte"),
    "no summary": (without("experience_and_reflection"), "no experience_and_reflection among 'id', "),
    "an empty summary": (GOOD | {"experience_and_reflection": " "}, "empty experience_and_reflection"),
    "a list for a summary": (GOOD | {"experience_and_reflection": ["a"]}, "experience_and_reflection is ['a'], where"),
    "an odd id": (GOOD | {"id": [1]}, "id is [1], where a number or a word is expected"),
    "an odd reference": (GOOD | {"causes": ["a"]}, "causes is ['a'], where words are expected"),
    "a list": ([1], "not an object with named values"),
    "a word": ("case", "not an object with named values"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_named(tmp_path, name):
    row, message = BAD[name]
    path = tmp_path / "a.jsonl"
    with pytest.raises(UserError) as error:
        read(path, [GOOD, row])
    if isinstance(row, dict):
        assert str(error.value).startswith(f"{path}:2: ")
    assert message in str(error.value)
    rejected = []
    if isinstance(row, dict):  # [GOOD, [1]] begins a list too
        assert [case.id for case in read(path, [GOOD, row, GOOD], rejected=rejected)] == ["7", "7"]
        assert [(each["file"], each["line"]) for each in rejected] == [(str(path), 2)]
        assert message in rejected[0]["error"]
        assert "\n" not in rejected[0]["error"]
        json.dumps(rejected).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("[]", "--train_data_path {path}: no cases in it"),
        ("text\tlabel\nfine\tjoy\n", "{path}: is no JSON; expected an object a line, or a list of objects"),
        (b"PAR1", "{path}: is no JSON"),
        (b"PK\x03\x04", "{path}: is a zip archive"),
        ('{"id": \n', "{path}:1: not JSON (Expecting value at character"),
        ('{"id": 1, "id": 2}', "{path}:1: the key 'id' stands there twice"),
        (b'{"id": "\xe9"}', "{path}:1: byte 0xe9 is not UTF-8"),
        ('[{"id": 1}', "{path}:1: not JSON ("),
        ("[" * 100_000, "{path}:1: not JSON ("),
        ('{"id": ' + "[" * 100_000, "{path}:1: not JSON ("),
        (json.dumps(GOOD) + "\n" + json.dumps(GOOD)[:40], "{path}:2: not JSON ("),
    ],
)
def test_files_of_something_else(tmp_path, content, message):
    path = tmp_path / "a.json"
    with pytest.raises(UserError) as error:
        read(path, content)
    assert message.format(path=path) in str(error.value)


def test_no_file(tmp_path):
    with pytest.raises(UserError, match=r"--test_data_path .*nowhere: no such file"):
        list(read_cases(tmp_path / "nowhere", "--test_data_path"))


def test_all_of_them_rejected(tmp_path):
    with pytest.raises(UserError, match=r"no cases in it \(2 rejected\)"):
        read(tmp_path / "a.jsonl", [without("case_description")] * 2, rejected=[])


def test_summaries_that_are_to_be_written(tmp_path):
    path = tmp_path / "a.jsonl"
    bare = [without("experience_and_reflection"), GOOD | {"experience_and_reflection": ""}]
    assert [case.summary for case in read(path, bare, summaries_required=False)] == [None, None]
    assert [case.summary for case in read(path, [GOOD], summaries_required=False)] == ["She found words for it."]
    for rows, line in (([GOOD, bare[0]], 2), ([bare[0], GOOD], 1)):
        with pytest.raises(UserError, match=f":{line}: no experience_and_reflection, while other rows have one"):
            read(path, rows, summaries_required=False)
    with pytest.raises(UserError, match="experience_and_reflection is 3, where words"):
        read(path, [GOOD | {"experience_and_reflection": 3}], summaries_required=False)


BARE = without("experience_and_reflection")
BAD_WRITTEN = {
    "none": ([GOOD | {"summary": "a"}, GOOD], ":2: no summary among 'id', 'case_description', "),
    "null": ([GOOD | {"summary": None}], ":1: summary is null"),
    "a list": ([GOOD | {"summary": ["a"]}], ":1: summary is ['a'], where words are expected"),
    "a zero byte": ([GOOD | {"summary": "a\0"}], ":1: the summary holds a zero byte"),
    "a number of characters": ([GOOD | {"summary": "a", "truncated": 1}], ":1: truncated is 1, where true or false is"),
    "a word": ([GOOD | {"summary": "a", "truncated": "true"}], ":1: truncated is 'true', where true or false is"),
    "the second does not say": ([GOOD | {"summary": "a", "truncated": True}, GOOD | {"summary": "a"}], ":2: no truncated, while"),
    "the first does not say": ([GOOD | {"summary": "a"}, GOOD | {"summary": "a", "truncated": False}], ":1: no truncated, while"),
    "some references": ([GOOD | {"summary": "a"}, BARE | {"summary": "a"}], ":2: no experience_and_reflection, while"),
    "no case": ([{"summary": "a"}], ":1: no case_description among 'summary'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_WRITTEN)
def test_a_bad_row_with_a_summary_is_named(tmp_path, name):
    rows, message = BAD_WRITTEN[name]
    write_json_lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(UserError) as error:
        list(read_written(tmp_path / "a.jsonl", "--file"))
    assert f"{tmp_path / 'a.jsonl'}{message}" in str(error.value)


def test_written_summaries(tmp_path):
    rows = [GOOD | {"summary": " She slept. ", "truncated": True}, GOOD | {"summary": "", "truncated": False}]
    write_json_lines(tmp_path / "a.jsonl", rows)
    (case,) = read(tmp_path / "b.jsonl", [GOOD])
    found = list(read_written(tmp_path / "a.jsonl", "--file"))
    assert found == [WrittenSummary(case, "She slept.", True), WrittenSummary(case, "", False)]
    write_json_lines(tmp_path / "a.jsonl", [BARE | {"summary": "She slept."}])
    (found,) = read_written(tmp_path / "a.jsonl", "--file")
    assert (found.case.summary, found.text, found.truncated) == (None, "She slept.", None)


# --- hypothesis -----------------------------------------------------------------------------------------------------

_TEXTS = st.text(st.characters(exclude_categories=("Cs",), min_codepoint=1), max_size=12) | st.sampled_from(
    ["\ud800", "\0"]
)
_VALUES = _TEXTS | st.none() | st.booleans() | st.integers() | st.floats() | st.lists(_TEXTS | st.none(), max_size=3)
_KEYS = st.sampled_from([*GOOD, *REFERENCES, "text"])
_ROWS = st.dictionaries(_KEYS, _VALUES, max_size=6).map(lambda changes: GOOD | changes) | _VALUES


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(_ROWS, max_size=4), lines=st.booleans(), skip=st.booleans(), required=st.booleans())
def test_read_right_or_refused_in_one_line(tmp_path, rows, lines, skip, required):
    content = "\n".join(map(json.dumps, rows)) if lines else json.dumps(rows)
    rejected = [] if skip else None
    problem = None
    try:
        cases = read(tmp_path / "a.jsonl", content, rejected=rejected, summaries_required=required)
    except UserError as error:
        cases, problem = [], str(error)
    assert "\n" not in (problem or "")
    assert problem or lines or len(cases) + len(rejected or ()) == len(rows)
    for case in cases:
        assert all(text == text.strip() != "" for text in (*case.case_description, *case.consultation_process))
        assert case.summary or not required
        json.dumps(case.record(), ensure_ascii=False).encode()
    if cases:
        write_json_lines(tmp_path / "again.jsonl", [case.record() for case in cases])
        assert list(read_cases(tmp_path / "again.jsonl", "--f", summaries_required=False)) == cases


CASES = Path(os.environ.get("EMOTUNE_DATASETS", "no-such-folder")) / "longemotion" / "cases.jsonl"


@pytest.mark.skipif(not CASES.is_file(), reason="EMOTUNE_DATASETS does not name a folder with longemotion/")
def test_the_published_cases_are_read_whole():
    cases = list(read_cases(CASES, "--test_data_path"))
    assert len(cases) == 100
    assert all(set(case.reference) == set(REFERENCES) for case in cases)
    sizes = [sum(map(len, (*case.case_description, *case.consultation_process, case.summary))) for case in cases]
    assert min(sizes) < 8_000
    assert max(sizes) > 30_000

import dataclasses
import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings

from data.arguments import UserError
from data.files import write_json_lines
from data.labels import LabelTask
from data.loading import Example, ExampleFile, data_report, load_examples, read_examples, split_validation
from data.tasks import BUILT_IN_TASKS
from tests.hostile_files import check_data_file, hostile_files

GROUP = BUILT_IN_TASKS["goemotions-group"]
SST2 = BUILT_IN_TASKS["sst2"]
EMOTION = BUILT_IN_TASKS["emotion"]
CHINESE = BUILT_IN_TASKS["chnsenticorp"]
SCORES = LabelTask("scores", "single_label", ("-1.0", "0.0", "1.0"), "{text}")
STARS = LabelTask("stars", "single_label", ("1", "2", "3"), "{text}")


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def pairs(examples):
    return [(e.text, e.labels) for e in examples]


def test_accents_may_be_encoded_in_two_ways(tmp_path):
    """One character or two (macOS): it is the same label, in a file of rows and in one of labels."""
    one, two = "caf\u00e9", "cafe\u0301"
    task = LabelTask("drinks", "multi_label", (one, "tea"), "{text}")
    path = write(
        tmp_path / "a.jsonl",
        "".join(f'{{"text": "hot", "label": {v}}}\n' for v in (f'"{two}"', f'["tea", "{two}"]', f'"{one},tea"')),
    )
    assert [e.labels for e in load_examples(path, task)] == [(one,), (one, "tea"), (one, "tea")]
    old = LabelTask("drinks", "multi_label", (two, "tea"), "{text}")  # of an earlier task.json
    assert [e.labels for e in load_examples(path, old)] == [(two,), (two, "tea"), (two, "tea")]


@pytest.mark.parametrize(
    ("name", "content", "task", "expected"),
    [
        ("a.tsv", 'he said "hi\t3\tc1\n[NAME] no\t1,3\tc2\n', GROUP, [('he said "hi', ("positive",)), ("[NAME] no", ("negative", "positive"))]),
        ("a.tsv", "good film\t1\nbad film\t0\n", SST2, [("good film", ("Positive",)), ("bad film", ("Negative",))]),
        ("a.txt", "1\tgood film\n0\tbad\n", SST2, [("good film", ("Positive",)), ("bad", ("Negative",))]),
        ("a.txt", "earn\tshr cts\nmoney-fx\tdollar\n", BUILT_IN_TASKS["r8"], [("shr cts", ("earn",)), ("dollar", ("money-fx",))]),
        ("a.tsv", "label\ttext_a\n1\t很好\n0\t不好\n", CHINESE, [("很好", ("正面",)), ("不好", ("负面",))]),
        ("a.txt", "i feel; well;joy\nno;anger\n", EMOTION, [("i feel; well", ("joy",)), ("no", ("anger",))]),
        ("a.csv", 'Text,Label\n"yes, ""sir""",joy\n"two\nlines",fear\n', EMOTION, [('yes, "sir"', ("joy",)), ("two\nlines", ("fear",))]),
        ("a.csv", "good,1\nbad,0\n", SST2, [("good", ("Positive",)), ("bad", ("Negative",))]),
        ("a.jsonl", '{"text": "很好", "label": 1}\n\n{"text": "不好", "label": 0}\n', CHINESE, [("很好", ("正面",)), ("不好", ("负面",))]),
        ("a.json", '[{"sentence": "a", "labels": ["positive", 0]}, {"sentence": "b", "labels": "1,2"}]', GROUP, [("a", ("ambiguous", "positive")), ("b", ("negative", "neutral"))]),
        ("found_by_looking", '{"text": "a", "label": "joy"}\n', EMOTION, [("a", ("joy",))]),
        ("bom.tsv", b"\xef\xbb\xbfgood\t1\r\nbad\t0\r\n", SST2, [("good", ("Positive",)), ("bad", ("Negative",))]),
        ("joined.tsv", "\ufeffgood\t1\n\ufeffbad\t0\n", SST2, [("good", ("Positive",)), ("bad", ("Negative",))]),
        ("a.tsv", 'fine\t1\n"say ""hi"" now"\t0\n', SST2, [("fine", ("Positive",)), ('say "hi" now', ("Negative",))]),
        ("a.tsv", '"text"\t"label"\n"good"\t"1"\n"say ""no"""\t"0"\n', SST2, [("good", ("Positive",)), ('say "no"', ("Negative",))]),
        ("a.tsv", '"good," he said\t1\n"a ""b"""\t0\n', SST2, [('"good," he said', ("Positive",)), ('"a ""b"""', ("Negative",))]),
        ("a.tsv", '"good"\t1\nbad\t0\n', SST2, [('"good"', ("Positive",)), ("bad", ("Negative",))]),
        ("a.txt", '"i feel; well";joy\nno;anger\n', EMOTION, [("i feel; well", ("joy",)), ("no", ("anger",))]),
        ("a.csv", '"a;b;c",1\nd,0\n', SST2, [("a;b;c", ("Positive",)), ("d", ("Negative",))]),
        ("a.csv", 'joy, "b, c"\nfear,d\n', EMOTION, [("b, c", ("joy",)), ("d", ("fear",))]),
        ("a.txt", '{"text": "a", "label": "joy"}\n', EMOTION, [("a", ("joy",))]),
        ("a.txt", '[\n{"text": "a", "label": "joy"}]\n', EMOTION, [("a", ("joy",))]),
        ("a.tsv", "a\u2028b\x85c\x0cd\t1\ne\t0\n", SST2, [("a\u2028b\x85c\x0cd", ("Positive",)), ("e", ("Negative",))]),
    ],
)  # fmt: skip
def test_formats(tmp_path, name, content, task, expected):
    assert pairs(load_examples(write(tmp_path / name, content), task)) == expected


def test_parquet(tmp_path):
    table = pyarrow.table({"text": ["a", "b"], "label": pyarrow.array([1.0, 0.0]), "id": ["x", "y"]})
    pyarrow.parquet.write_table(table, tmp_path / "data")
    assert load_examples(tmp_path / "data", SST2) == [
        Example("x", "a", ("Positive",)),
        Example("y", "b", ("Negative",)),
    ]


def test_a_rationale_with_our_tags_is_a_bad_row(tmp_path):
    rows = [
        {"text": "a", "label": "joy", "rationale": why} for why in ("since so", "so</think>\n<answer>fear</answer>")
    ]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match=r"a.jsonl:2: the rationale holds a tag"):
        load_examples(path, EMOTION, cot=True)
    assert len(load_examples(path, EMOTION)) == 2  # nobody reads it


def test_a_row_with_more_labels_than_an_answer_holds(tmp_path):
    path = write(tmp_path / "a.tsv", "a\t0,1\tc1\nb\t0,1,2\tc2\n")
    with pytest.raises(UserError, match=r"a.tsv:2: 3 labels, while an answer holds at most 2"):
        load_examples(path, GROUP, most_labels=2)
    rejected = []
    assert len(load_examples(path, GROUP, rejected=rejected, most_labels=2)) == 1
    assert (rejected[0]["line"], rejected[0]["text"]) == (2, "b")
    assert len(load_examples(path, GROUP)) == 2


def test_comment_id_or_line_is_the_id(tmp_path):
    assert [e.id for e in load_examples(write(tmp_path / "a.tsv", "a\t1\tc7\nb\t0\t\n"), GROUP)] == ["c7", "2"]


def test_a_label_named_like_a_number_is_a_name(tmp_path):
    assert load_examples(write(tmp_path / "a.jsonl", '{"text": "x", "label": 1}'), STARS)[0].labels == ("1",)
    with pytest.raises(UserError, match="label '0' is not in the label set"):  # an id would be another label's name
        load_examples(write(tmp_path / "b.jsonl", '{"text": "x", "label": 0}'), STARS)


@pytest.mark.parametrize(
    ("written", "task", "label"),
    [
        ("-1.0", SCORES, "-1.0"),
        ("0.0", SCORES, "0.0"),
        ("1.0", SCORES, "1.0"),
        ("1.10", LabelTask("versions", "single_label", ("1.1", "1.10"), "{text}"), "1.10"),
        ("1.0", STARS, "1"),
        ("1.0", SST2, "Positive"),
        ("true", LabelTask("answers", "single_label", ("false", "true"), "{text}"), "true"),
    ],
)
def test_a_number_is_looked_up_as_it_is_written(tmp_path, written, task, label):
    path = write(tmp_path / "a.jsonl", f'{{"text": "x", "label": {written}}}')
    assert load_examples(path, task)[0].labels == (label,)


@pytest.mark.parametrize(
    ("labels", "found"), [(("-1", "1"), "0"), (("0.0", "0.5"), "1"), (("+1", "-1"), "0"), (("1e3", "2e3"), "0")]
)
def test_numbers_in_any_spelling_are_no_ids(tmp_path, labels, found):
    path = write(tmp_path / "a.tsv", f"x\t{labels[0]}\ny\t{found}\n")
    with pytest.raises(UserError, match=f"a.tsv:2: label '{found}' is not in the label set"):
        load_examples(path, LabelTask("numbers", "single_label", labels, "{text}"))


# --- names and ids --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "task", "expected"),
    [
        ("a.jsonl", '{"text": "a", "label": 0, "label_text": "sadness"}', EMOTION, ["sadness"]),
        ("a.csv", "text,label,label_text\na,0,sadness\nb,1,joy\nc,0,sadness\n", EMOTION, ["sadness", "joy", "sadness"]),
        ("a.tsv", "label_name\ttext\nsadness\ta\n", EMOTION, ["sadness"]),
        ("a.jsonl", '{"text": "a", "label": 0, "label_text": "negative"}', SST2, ["Negative"]),
        ("a.jsonl", '{"text": "a", "labels": [0, 2], "label_names": ["neutral", "positive"]}', GROUP, ["neutral positive"]),
        ("a.jsonl", '{"text": "a", "label": "joy", "label_text": "the writer is happy"}', EMOTION, ["joy"]),
        ("a.jsonl", '{"text": "a", "label": 2, "label_text": "so so"}', STARS, ["2"]),
    ],
)  # fmt: skip
def test_names_win_over_ids(tmp_path, name, content, task, expected):
    found = load_examples(write(tmp_path / name, content), task)
    assert [" ".join(example.labels) for example in found] == expected


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(0, "sadness"), (1, "joy"), (0, "joy")], "a.jsonl:3: label 0 is joy here, but sadness on line 1"),
        ([(0, "sadness"), (1, "sadness")], "a.jsonl:2: label sadness is 1 here, but 0 on line 1"),
        ([(0, "gloom")], "a.jsonl:1: label 'gloom' is not in the label set .*what the file itself calls its label 0"),
        ([(0, "sadness"), (3, None)], r"a.jsonl:2: label 3 has 0 names"),
        ([(0, None)], r"a.jsonl:1: label 0 has 0 names"),
    ],
)
def test_names_that_contradict_ids(tmp_path, rows, message):
    lines = [json.dumps({"text": "a", "label": number, "label_text": name}) for number, name in rows]
    with pytest.raises(UserError, match=message):
        load_examples(write(tmp_path / "a.jsonl", "\n".join(lines)), EMOTION)


def with_class_names(path: Path, labels: list, feature) -> Path:
    """A Parquet file as the library datasets writes it."""
    table = pyarrow.table({"text": [f"text {i}" for i in range(len(labels))], "labels": labels})
    noted = json.dumps({"info": {"features": {"text": {"dtype": "string", "_type": "Value"}, "labels": feature}}})
    pyarrow.parquet.write_table(table.replace_schema_metadata({"huggingface": noted}), path)
    return path


CLASSES = {"names": list(EMOTION.published_order), "_type": "ClassLabel"}
GROUPS = {"names": ["positive", "negative", "neutral", "ambiguous"], "_type": "ClassLabel"}


@pytest.mark.parametrize(
    ("labels", "feature", "task", "expected"),
    [
        ([0, 1, 5], CLASSES, EMOTION, ["sadness", "joy", "surprise"]),
        ([[0], [1, 3]], {"feature": GROUPS, "length": -1, "_type": "Sequence"}, GROUP, ["positive", "ambiguous negative"]),
        ([[0], [1, 3]], {"feature": GROUPS, "_type": "List"}, GROUP, ["positive", "ambiguous negative"]),
        ([[0]], [GROUPS], GROUP, ["positive"]),
        ([1, 0], {"names": ["0", "1"], "_type": "ClassLabel"}, SST2, ["Positive", "Negative"]),
        (["joy", "fear"], {"dtype": "string", "_type": "Value"}, EMOTION, ["joy", "fear"]),
        ([1, 0], None, SST2, ["Positive", "Negative"]),
    ],
)  # fmt: skip
def test_class_label_names_of_parquet(tmp_path, labels, feature, task, expected):
    found = load_examples(with_class_names(tmp_path / "a.parquet", labels, feature), task)
    assert [" ".join(example.labels) for example in found] == expected


def test_an_id_without_a_class_label_name(tmp_path):
    path = with_class_names(tmp_path / "a.parquet", [0, -1], CLASSES)
    with pytest.raises(UserError, match=r"a.parquet:2: label id -1: the file itself names ids 0 to 5"):
        load_examples(path, EMOTION)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.tsv", "a\t0\nb\t1\n"), ("a.txt", "0\ta\n1\tb\n"), ("a.jsonl", '{"text": "a", "label": 0}')],
)
def test_bare_ids_of_another_order_are_refused(tmp_path, name, content):
    path = write(tmp_path / name, content)
    message = f"{name}:1: label id 0: is 'sadness' in the published files of emotion, but 'anger' in our labels.txt"
    with pytest.raises(UserError, match=message):
        load_examples(path, EMOTION)
    numbered = dataclasses.replace(EMOTION, published_order=())  # as resolve_task has it with --label_path
    assert load_examples(path, numbered)[0].labels == ("anger",)


@pytest.mark.parametrize(
    ("name", "content", "task", "message"),
    [
        ("a.tsv", "a\t1\tx\nb\t9\ty\n", GROUP, r"a.tsv:2: label id 9: .* ids 0 to 3"),
        ("a.tsv", "a\tpositive\tx\nb\thappy\ty\n", GROUP, r"a.tsv:2: label 'happy' is not in the label set"),
        ("a.tsv", "a\t1\tx\nb\t2\n", GROUP, r"a.tsv:2: 2 columns, but the file has 3"),
        ("a.tsv", "a\t1\tx\n  \t2\ty\n", GROUP, r"a.tsv:2: empty text"),
        ("a.tsv", "a\t1\tx\nb\t\ty\n", GROUP, r"a.tsv:2: no label"),
        ("a.tsv", "a\t1,1\tx\n", GROUP, r"a.tsv:1: a label stands twice"),
        ("a.tsv", "", GROUP, r"a.tsv: the file is empty"),
        ("a.tsv", " \n\n", GROUP, r"a.tsv: the file is empty"),
        ("a.tsv", b"a\t1\tx\nb\xff\t2\ty\n", GROUP, r"a.tsv:2: byte 0xff is not UTF-8"),
        ("a.tsv", "text\tlabels\tid\na\t1\tx\n", GROUP, r"a.tsv:1: a header .*GoEmotions layout has none"),
        ("a.tsv", "words\tmood\nfine\t1\n", SST2, r"a.tsv:1: looks like a header"),
        ("a.csv", "words,label\nfine,1\n", SST2, r"a.csv:1: looks like a header"),
        ("a.tsv", "a\tb\tc\td\n", GROUP, r"a.tsv:1: 4 columns; expected"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b"\n', SST2, r"a.jsonl:2: not JSON"),
        ("a.jsonl", '{"text": "a", "label": [0, 1]}', SST2, r"a.jsonl:1: 2 labels .* takes exactly one"),
        ("a.jsonl", '{"words": "a", "label": 1}', SST2, r"a.jsonl:1: no text column among 'words', 'label'"),
        ("a.jsonl", '{"text": "a", "label": []}', GROUP, r"a.jsonl:1: no label"),
        ("a.jsonl", '{"text": "a"}', SST2, r"a.jsonl:1: no label column"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": 5, "label": 1}', SST2, r"a.jsonl:2: text is 5"),
        ("a.jsonl", '{"text": "a", "label": 1}\n[]', SST2, r"a.jsonl:2: not an object"),
        ("a.json", '[{"text": "a",]', SST2, r"a.json:1: not JSON"),
        ("a.json", '["just a text"]', SST2, r"a.json:1: not an object with named values"),
        ("a.jsonl", '{"text": "\\ud800", "label": 1}', SST2, r"a.jsonl:1: the text holds half a character"),
        ("a.jsonl", '{"text": "a", "label": ' + "1" * 5000 + "}", SST2, r"a.jsonl:1: label '1"),
        ("a.tsv", "a\t" + "1" * 5000 + "\n", SST2, r"a.tsv:1: label '1"),
        ("a.csv", 'text,label\n"a,1\n', SST2, r"a.csv:2: not CSV"),
        ("a.jsonl", '{"text": "a", "label": 1e400}', SST2, "a.jsonl:1: label '1e400' is not in the label set"),
        ("a.jsonl", '{"text": "a", "label": {"joy": 1}}', SST2, r"a.jsonl:1: label is {'joy': 1}, where an id or a name"),
        ("a.jsonl", '{"text": true, "label": 1}', SST2, r"a.jsonl:1: text is True, where words are expected"),
        ("a.jsonl", '{"text": NaN, "label": 1}', SST2, r"a.jsonl:1: empty text"),
        ("a.jsonl", '{"text": "a", "label": NaN}', SST2, r"a.jsonl:1: no label"),
        ("a.jsonl", '{"text": "a", "label": 1, "rationale": 5}', SST2, r"a.jsonl:1: rationale is 5, where words"),
        ("a.jsonl", '{"text": "a", "label": 1, "id": {"a": 1}}', SST2, r"a.jsonl:1: id is {'a': 1}, where a number or"),
        ("a.jsonl", '{"text": "a", "label": 1, "id": "\\ud800"}', SST2, r"a.jsonl:1: the id holds half a character"),
        ("a.jsonl", '{"text": "\\u200b \\ufeff", "label": 1}', SST2, r"a.jsonl:1: empty text: nothing in it can be seen"),
        ("a.jsonl", '{"text": "a\\u0000", "label": 1}', SST2, r"a.jsonl:1: the text holds a zero byte"),
        ("a.jsonl", '{"text": "a", "label": 1, "text": "b"}', SST2, r"a.jsonl:1: the key 'text' stands there twice"),
        ("a.jsonl", '{"text": "a", "label": 1, "Text": "b"}', SST2, r"a.jsonl:1: the column 'Text' stands there twice"),
        ("a.csv", "text,label,label\na,1,0\n", SST2, r"a.csv:1: the column 'label' stands there twice"),
        ("a.jsonl", '{"a":' * 100_000, SST2, r"a.jsonl:1: not JSON \(maximum recursion depth"),
        ("a.json", "[" * 100_000, SST2, r"a.json:1: not JSON \(maximum recursion depth"),
        ("a.csv", ",,,\n,,,\n", SST2, r"a.csv: no rows in it"),
        ("a.csv", "text,label\ra,1\rb,0\r", SST2, r"a.csv:1: not CSV: a carriage return inside the line"),
        ("a.tsv", "a\t1\rb\t0\r", SST2, r"a.tsv:1: a carriage return inside the line"),
        ("a.txt", "i am glad;joy\ri am not;fear\nso so;love\n", EMOTION, r"a.txt:1: a carriage return inside the line"),
        ("a.tsv", "good\t1\n".encode("utf-16-le"), SST2, r"a.tsv:1: holds zero bytes, so it is UTF-16"),
        ("a.tsv", "很好\t1\n".encode("utf-16-be"), SST2, r"a.tsv:1: holds zero bytes, so it is UTF-16"),
        ("a.tsv", "good\t1\n".encode("utf-32-be"), SST2, r"a.tsv:1: holds zero bytes, so it is UTF-16"),
        ("a.tsv", "good\t1\n".encode("utf-16"), SST2, r"a.tsv: is UTF-16 or UTF-32; save it as UTF-8"),
        ("a.xlsx", b"PK\x03\x04\x14\0", SST2, r"a.xlsx: is a zip archive, as .xlsx"),
        ("a.tsv.gz", b"\x1f\x8b\x08\0", SST2, r"a.tsv.gz: is a gzip archive; unpack it"),
        ("a.tsv", 'a\t1\n' * 300 + '"x ""y"""\t1\n"raw" she said\t0\n', SST2, r"a.tsv:302: quotes that are not doubled"),
        ("a.tsv", 'a\t1\n"two\nlines"\t0\n', SST2, r"a.tsv:2: 1 columns, but the file has 2; .* quoted cell ends on its"),
        ("a.parquet", b"PAR1" + b"\0" * 100, SST2, r"a.parquet: not a whole Parquet file"),
    ],
)  # fmt: skip
def test_bad_files_name_file_and_line(tmp_path, name, content, task, message):
    with pytest.raises(UserError, match=message):
        load_examples(write(tmp_path / name, content), task)


def test_a_line_that_would_take_the_memory(tmp_path, monkeypatch):
    """It is not read to its end; a JSON list may be all on one."""
    monkeypatch.setattr("data.text_files.LONGEST_LINE", 1 << 20)
    path = write(tmp_path / "a.tsv", "fine\t1\tx\n" + "a" * (1 << 20) + "b" * 10)
    with pytest.raises(UserError, match=r"a.tsv:2: is longer than 1 MiB; one row is expected on a line"):
        load_examples(path, GROUP)
    rows = [{"text": f"{'long ' * 1000}{n}", "label": 1} for n in range(300)]
    for name, begin in (("a.json", ""), ("b.json", "\ufeff")):
        assert len(load_examples(write(tmp_path / name, begin + json.dumps(rows)), GROUP)) == 300
    just = write(tmp_path / "b.tsv", "a" * ((1 << 20) - 3) + "\t1\n")
    assert len(load_examples(just, SST2)) == 1


def test_missing_file_names_the_flag(tmp_path):
    with pytest.raises(UserError, match=r"--dev_data_path .*nowhere.tsv: no such file"):
        load_examples(tmp_path / "nowhere.tsv", GROUP, "--dev_data_path")


def test_bad_rows_can_be_set_aside(tmp_path):
    path, rejected = write(tmp_path / "a.tsv", "a\t1\tx\nb\t9\ty\nc\t2\tz\n"), []
    assert [e.text for e in load_examples(path, GROUP, rejected=rejected)] == ["a", "c"]
    assert rejected == [
        {"file": str(path), "line": 2, "error": "label id 9: task goemotions-group has ids 0 to 3", "text": "b"}
    ]
    with pytest.raises(UserError, match="no rows in it"):
        load_examples(write(tmp_path / "b.tsv", "a\t9\tx\n"), GROUP, rejected=[])


def test_what_is_set_aside_can_be_written(tmp_path):
    lines = [{"text": "fine", "label": 1}, {"text": "a\ud800", "label": 1}, {"text": "b", "label": "c\udfff"}]
    path = write(tmp_path / os.fsdecode(b"a\xff.jsonl"), "\n".join(map(json.dumps, lines)))  # half a name, too
    rejected = []
    assert len(load_examples(path, SST2, rejected=rejected)) == len(ExampleFile(path, SST2, "", rejected=[])) == 1
    write_json_lines(tmp_path / "rejected.jsonl", rejected)
    written = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["text"] for row in written] == ["a\\ud800", "b"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", json.dumps({"text": "a", "label": "x" * 10**6})),
        ("a.jsonl", json.dumps({"x" * 10**6: "a", "label": 1})),
        ("a.jsonl", f'{{"text": {"1" * 10**6}, "label": 1}}'),
        ("a.tsv", "\t".join(["word"] * 10**6)),
        ("a.tsv", f"{'word' * 10**5}\tlabel\nfine\t1\n"),
        ("a.txt", f"{'word' * 10**5},text\nfine\n"),
    ],
)
def test_error_lines_are_short(tmp_path, name, content):
    path = write(tmp_path / name, content)
    for labels_required in (True, False):
        with pytest.raises(UserError) as error:
            load_examples(path, SST2, labels_required=labels_required)
        assert len(str(error.value)) < 1000


def parquet(path: Path, text, label) -> Path:
    pyarrow.parquet.write_table(pyarrow.table({"text": text, "label": label}), path)
    return path


@pytest.mark.parametrize(
    ("text", "label", "message"),
    [
        (pyarrow.array([b"ok", b"\xff"]).view(pyarrow.string()), [1, 0], r":2: column 'text' cannot be read \('utf-8'"),
        (pyarrow.array([0, 2**62]).cast(pyarrow.timestamp("ms")), [1, 0], r":2: column 'text' cannot be read"),
        (pyarrow.array([0, 1]).cast(pyarrow.timestamp("ms")), [1, 0], r":1: text is datetime"),
        ([["a"], ["b"]], [1, 0], r":1: text is \['a'\], where words are expected"),
        ([{"a": 1}, None], [1, 0], r":1: text is {'a': 1}, where words are expected"),
        ([b"a", b"b"], [1, 0], r":1: text is b'a', where words are expected"),
        (["a", None], [1, 0], r":2: empty text"),
        (["a", "b"], [{"joy": 1}, None], r":1: label is {'joy': 1}, where an id or a name is expected"),
        (["a", "b"], [1.0, None], r":2: no label"),
    ],
)
def test_parquet_values_that_are_none(tmp_path, text, label, message):
    with pytest.raises(UserError, match=message):
        load_examples(parquet(tmp_path / "a.parquet", text, label), SST2)


def test_parquet_dictionaries_and_columns_of_no_use(tmp_path):
    table = pyarrow.table({
        "text": pyarrow.array(["a", "b"]).dictionary_encode(), "label": pyarrow.array(["joy", "fear"]).dictionary_encode(),
        "when": pyarrow.array([0, 2**62]).cast(pyarrow.timestamp("ms")),
    })  # fmt: skip
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert pairs(load_examples(tmp_path / "a.parquet", EMOTION)) == [("a", ("joy",)), ("b", ("fear",))]


def test_parquet_column_twice(tmp_path):
    table = pyarrow.Table.from_arrays(
        [pyarrow.array(["a"])] * 2 + [pyarrow.array([1])], names=["text", "text", "label"]
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a.parquet:1: the column 'text' stands there twice"):
        load_examples(tmp_path / "a.parquet", SST2)


def test_a_damaged_page(tmp_path):
    table = pyarrow.table({"text": [f"text {i}" for i in range(50)], "label": [1] * 50})
    pyarrow.parquet.write_table(
        table, tmp_path / "a", compression="none", write_page_checksum=True, use_dictionary=False
    )
    content = (tmp_path / "a").read_bytes()
    write(tmp_path / "a", content.replace(b"text 33", b"text 34"))
    with pytest.raises(UserError, match="a: not a whole Parquet file"):
        load_examples(tmp_path / "a", SST2)


def test_a_parquet_file_that_promises_more_rows(tmp_path):
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["so glad"] * 7, "label": ["joy"] * 7}), path)
    content = path.read_bytes()
    begin = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    seven, a_billion = b"\x16\x0e", b"\x16\x80\xa8\xd6\xb9\x07"  # i64 of Thrift's compact protocol
    footer = content[begin:-8].replace(seven, a_billion)
    path.write_bytes(content[:begin] + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    assert pyarrow.parquet.ParquetFile(path).metadata.num_rows == 10**9
    with pytest.raises(UserError, match=r"not a whole Parquet file \(7 of 1,000,000,000 rows are there\)"):
        load_examples(path, BUILT_IN_TASKS["emotion"])


@pytest.mark.parametrize("name", ["a.jsonl", "a.tsv"])
def test_a_text_of_a_megabyte_is_read_and_one_that_no_model_reads_is_not(tmp_path, name, monkeypatch):
    text = "so glad " * (1 << 17) + "!"
    row = json.dumps({"text": text, "label": "joy"}) if name == "a.jsonl" else f"{text}\tjoy"
    assert load_examples(write(tmp_path / name, row + "\n"), BUILT_IN_TASKS["emotion"])[0].text == text
    monkeypatch.setattr("data.row_values.MOST_CHARACTERS", 1 << 20)
    with pytest.raises(UserError, match=rf"{name}:1: text has 1,048,577 characters, at most 1,048,576 are read"):
        load_examples(tmp_path / name, BUILT_IN_TASKS["emotion"])


def test_a_parquet_file_that_grows(tmp_path):
    path = tmp_path / "x.parquet"
    table = pyarrow.table({"text": ["a" * (1 << 24)], "label": ["joy"]})
    pyarrow.parquet.write_table(table, path, compression="zstd", use_dictionary=False)
    assert path.stat().st_size < 10_000
    with pytest.raises(UserError, match="refused, it would unpack to more than 200 times its size"):
        load_examples(path, BUILT_IN_TASKS["emotion"])


def test_a_parquet_file_that_repeats_a_long_text(tmp_path):
    """Some kilobytes are 64 GiB of text: no more of it is in memory than is asked for."""
    path, rows = tmp_path / "x.parquet", 1 << 16
    repeated = [
        pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * rows, pyarrow.int32()), pyarrow.array([word]))
        for word in ("so glad " * (1 << 17), "joy")
    ]
    pyarrow.parquet.write_table(pyarrow.table(repeated, ["text", "label"]), path, compression="zstd")
    assert path.stat().st_size < 10_000
    before = pyarrow.total_allocated_bytes()
    examples = read_examples(path, BUILT_IN_TASKS["emotion"], "--test_data_path")
    assert len(next(examples).text) == (1 << 20) - 1
    assert pyarrow.total_allocated_bytes() - before < 1 << 24
    assert next(examples).labels == ("joy",)
    examples.close()


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_a_file_that_cannot_be_opened(tmp_path, monkeypatch, error):
    path = write(tmp_path / "a.tsv", "a\t1\n")

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(UserError, match=rf"^--test_data_path .*a.tsv: cannot be read \({error.strerror}\)$"):
        load_examples(path, SST2, "--test_data_path")


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(file=hostile_files())
def test_hostile_files_end_in_rows_or_in_one_line(tmp_path, file):
    check_data_file(*file, tmp_path)


def test_files_to_predict_on_need_no_labels(tmp_path):
    lines = write(tmp_path / "a.txt", "first text\nsecond, with comma\n")
    assert pairs(load_examples(lines, GROUP, labels_required=False)) == [
        ("first text", None),
        ("second, with comma", None),
    ]
    records = write(tmp_path / "a.jsonl", '{"text": "a"}\n{"text": "b"}\n')
    assert pairs(load_examples(records, GROUP, labels_required=False)) == [("a", None), ("b", None)]
    sentences = write(tmp_path / "d.txt", "well; that was it\nyes\n")
    assert pairs(load_examples(sentences, GROUP, labels_required=False)) == [("well; that was it", None), ("yes", None)]
    late = write(tmp_path / "c.jsonl", '{"text": "a"}\n{"text": "b", "label": 1}\n')
    with pytest.raises(UserError, match=r"c.jsonl:1: no label, while other rows have one"):
        load_examples(late, GROUP, labels_required=False)
    mixed = write(tmp_path / "b.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n')
    with pytest.raises(UserError, match=r"b.jsonl:2: no label, while other rows have one"):
        load_examples(mixed, GROUP, labels_required=False)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "tweet\nI am so glad.\nThis is bad.\n", "a.txt:1: 'tweet' looks like a header"),
        ("a.csv", "Message_Body\nI am so glad.\n", "a.csv:1: 'Message_Body' looks like a header"),
        ("a.txt", "text,label\nI am so glad,joy\n", "a.txt:1: 'text,label' looks like a header"),
        ("a.tsv", "some words\nI am so glad\tjoy\n", "a.tsv:2: a tab in the line, while the first line has none"),
        ("a.txt", "i am glad;joyy\nno;anger\nso so;love\n", "a.txt:1: label 'joyy' is not in"),
        ("a.txt", "i am glad\nno;anger\nso so;love\n", "a.txt:1: 1 columns, but the file has 2"),
        ("a.html", "<!DOCTYPE html>\n<p>Not found", "a.html: is a web page"),
        ("a.txt", "version https://git-lfs.github.com/spec/v1\noid sha256:0", "a.txt: is a pointer of Git LFS"),
        ("a.txt", "text;label\ni am glad;joy\n", [("i am glad", ("joy",))]),
        ("a.txt", '{"text": "a"}\n{"text": "b"}\n', [("a", None), ("b", None)]),
        ("a.txt", "[NAME] hello\n{smile} hi\n", [("[NAME] hello", None), ("{smile} hi", None)]),
        ("a.txt", "Thanks\nThis is bad.\n", [("Thanks", None), ("This is bad.", None)]),
        ("a.txt", "thanks\nyes\nThis is bad.\n", [("thanks", None), ("yes", None), ("This is bad.", None)]),
        ("a.txt", "text\nthanks\nThis is bad.\n", [("thanks", None), ("This is bad.", None)]),
        ("a.txt", '"Well," he said.\nYes.\n', [('"Well," he said.', None), ("Yes.", None)]),
        ("a.jsonl", '{"text": "a", "label": NaN}', [("a", None)]),
    ],
)
def test_sentences_or_something_else(tmp_path, name, content, expected):
    path = write(tmp_path / name, content)
    if isinstance(expected, list):
        assert pairs(load_examples(path, EMOTION, labels_required=False)) == expected
    else:
        with pytest.raises(UserError, match=expected):
            load_examples(path, EMOTION, labels_required=False)


def test_reasoning_needs_rationales(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"text": "a", "label": 1, "rationale": "since"}, {"text": "b", "label": 0, "rationale": ""}]
    write(path, "\n".join(map(json.dumps, rows)))
    assert load_examples(path, SST2)[0].rationale == "since"
    with pytest.raises(UserError, match=r"a.jsonl:2: no rationale"):
        load_examples(path, SST2, cot=True)


def examples_of(*rows):
    return [Example(str(i), text, tuple(labels.split())) for i, (text, labels) in enumerate(rows)]


def test_validation_split_is_stratified_and_does_not_leak():
    rows = [(f"p{i}", "positive") for i in range(100)] + [(f"n{i}", "negative") for i in range(40)]
    rows += [("p0 ", "positive"), ("P0", "negative")]  # the same text three times
    examples = examples_of(*rows)
    train, dev = split_validation(examples, 0.15, seed=3)
    assert sorted(train + dev, key=lambda e: int(e.id)) == examples
    assert [
        sum(e.labels == (label,) for e in dev if e.text.casefold() != "p0") for label in ("positive", "negative")
    ] in (
        [15, 6],
        [14, 6],
    )
    report = data_report(GROUP, train, dev, [])
    assert report["dev_rows_also_in_train"] == 0
    assert split_validation(examples, 0.15, seed=3) == (train, dev)
    assert split_validation(examples, 0.15, seed=4) != (train, dev)


def test_a_label_with_one_text_stays_in_training():
    train, _ = split_validation(examples_of(("a", "joy"), ("b", "fear"), ("c", "fear")), 0.5, seed=0)
    assert {label for e in train for label in e.labels} == {"joy", "fear"}


def test_data_report_counts_leakage_and_conflicts():
    train = examples_of(("same", "joy"), ("Same", "fear"), ("twice", "joy"), ("twice", "joy"), ("once", "fear joy"))
    report = data_report(GROUP, train, examples_of(("once ", "joy")), examples_of(("SAME", "joy"), ("new", "joy")))
    assert report == {
        "rows": {"train": 5, "dev": 1, "test": 2},
        "train_label_counts": {"joy": 4, "fear": 2},
        "train_rows_without_a_label": 0,
        "train_repeated_rows": 2,
        "train_texts_with_different_labels": 1,
        "dev_rows_also_in_train": 1,
        "test_rows_also_in_train": 1,
    }


# --- no label, and a column for each --------------------------------------------------------------------------------

OR_NONE = dataclasses.replace(GROUP, allow_none=True, header_allowed=True)  # ambiguous, negative, neutral, positive


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", '{"text": "a", "label": []}\n{"text": "b", "label": ""}\n{"text": "c", "label": 1}\n', [(), (), ("negative",)]),
        ("a.json", '[{"text": "a", "label": ["positive"]}, {"text": "b", "label": []}]', [("positive",), ()]),
        ("a.csv", "text,label,note\na,positive,\nb,,x\n", [("positive",), ()]),
        ("a.tsv", "this is a\t3\tc1\nthat is b\t\tc2\n", [("positive",), ()]),
        ("a.jsonl", '{"text": "a", "label": [], "label_text": []}\n{"text": "b", "label": [1], "label_text": ["negative"]}\n', [(), ("negative",)]),
    ],
)  # fmt: skip
def test_rows_without_a_label(tmp_path, name, content, expected):
    path = write(tmp_path / name, content)
    for labels_required in (True, False):
        assert [e.labels for e in load_examples(path, OR_NONE, labels_required=labels_required)] == expected
    assert ExampleFile(path, OR_NONE, "--test_data_path").labelled
    with pytest.raises(UserError, match=r":[123]: no label, which needs --allow_none$"):
        load_examples(path, dataclasses.replace(GROUP, header_allowed=True))
    with pytest.raises(UserError, match=r":[123]: "):
        load_examples(path, SST2)


def test_a_missing_label_is_not_that_none_applies(tmp_path):
    for row in ('{"text": "b", "label": null}', '{"text": "b", "label": null, "label_text": null}'):
        path = write(tmp_path / "a.jsonl", '{"text": "a", "label": [], "label_text": []}\n' + row)
        with pytest.raises(
            UserError, match=r"a.jsonl:2: no label is given; where none applies, write \[\] or an empty"
        ):
            load_examples(path, OR_NONE)
        with pytest.raises(UserError, match=r"a.jsonl:2: no label, while other rows have one"):
            load_examples(path, OR_NONE, labels_required=False)
    unknown = write(tmp_path / "b.jsonl", '{"text": "a"}\n{"text": "b", "label": null}')
    assert pairs(load_examples(unknown, OR_NONE, labels_required=False)) == [("a", None), ("b", None)]
    assert not ExampleFile(unknown, OR_NONE, "--test_data_path").labelled


MARKED = [("so glad", ("positive",)), ("well", ()), ("so, so", ("ambiguous", "neutral"))]
MARKED_CSV = 'text,id,author,Ambiguous,negative,neutral,POSITIVE\nso glad,c1,x,0,0,0,1\nwell,c2,y,0,0,0,0\n"so, so",c3,z,1,0,1,0\n'


def marked_files(folder: Path) -> list[Path]:
    """The same rows in every format, with a column for each label."""
    values = [[int(label in labels) for label in GROUP.labels] for _, labels in MARKED]
    records = [
        {"id": f"c{i}", "text": text} | dict(zip(GROUP.labels, map(bool, row), strict=True))
        for i, ((text, _), row) in enumerate(zip(MARKED, values, strict=True), start=1)
    ]
    floats = {label: [float(row[i]) for row in values] for i, label in enumerate(GROUP.labels)}
    table = pyarrow.table({"text": [text for text, _ in MARKED], "id": ["c1", "c2", "c3"], **floats})
    pyarrow.parquet.write_table(table, folder / "a.parquet")
    return [
        write(folder / "a.csv", MARKED_CSV),
        write(folder / "b.csv", MARKED_CSV.replace(",0", ",false").replace(",1", ",TRUE")),
        write(folder / "a.tsv", MARKED_CSV.replace('"', "").replace("so, so", "so; so").replace(",", "\t").replace(";", ",")),
        write(folder / "a.jsonl", "\n".join(map(json.dumps, records))),
        write(folder / "a.json", json.dumps([{**r, "neutral": float(r["neutral"])} for r in records])),
        folder / "a.parquet",
    ]  # fmt: skip


def test_a_column_for_each_label(tmp_path):
    for path in marked_files(tmp_path):
        for labels_required in (True, False):
            read = load_examples(path, OR_NONE, labels_required=labels_required)
            assert pairs(read) == MARKED, path
            assert [e.id for e in read] == ["c1", "c2", "c3"]
        with pytest.raises(UserError, match=r":[23]: no label, which needs --allow_none$"):
            load_examples(path, GROUP)
        rejected = []
        assert len(load_examples(path, GROUP, rejected=rejected)) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", MARKED_CSV.replace("author", "emotion"), r"a.csv:1: a label column \('emotion'\) and a column for each label"),
        ("a.csv", MARKED_CSV.replace(",neutral", ",other"), r"a.csv:1: a column for 'ambiguous', but none for 'neutral'; a file has one"),
        ("a.csv", MARKED_CSV.replace("c2,y,0", "c2,y,0.5"), r"a.csv:3: column 'Ambiguous' is '0.5', where 1 or 0 is expected"),
        ("a.csv", MARKED_CSV.replace("c2,y,0", "c2,y,"), r"a.csv:3: column 'Ambiguous' is '', where 1 or 0 is expected"),
        ("a.csv", MARKED_CSV.replace("author", "Negative"), r"a.csv:1: the column 'negative' stands there twice"),
        ("a.jsonl", '{"text": "a", "negative": 1}', r"a.jsonl:1: a column for 'negative', but none for 'ambiguous', 'neutral', 'positive'"),
        ("a.jsonl", '{"text": "a", "ambiguous": 0, "negative": null, "neutral": 0, "positive": 1}', r"a.jsonl:1: column 'negative' is None"),
        ("a.jsonl", '{"text": "a", "ambiguous": 0, "negative": 0, "neutral": 0, "positive": 1, "label": 3}', r"a.jsonl:1: a label column"),
    ],
)  # fmt: skip
def test_columns_of_labels_that_are_not_right(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message):
        load_examples(write(tmp_path / name, content), OR_NONE)


def test_texts_to_predict_on_may_have_columns_of_some_labels(tmp_path):
    path = write(tmp_path / "a.csv", "text,positive,negative,more\nso glad,9,,x\n")
    assert pairs(load_examples(path, GROUP, labels_required=False)) == [("so glad", None)]
    named = write(tmp_path / "b.csv", "text,label,negative,more\nso glad,positive,9,x\n")
    assert pairs(load_examples(named, dataclasses.replace(GROUP, header_allowed=True))) == [("so glad", ("positive",))]
    text = LabelTask(
        "own", "multi_label", ("comment", "question"), "{text}"
    )  # labels that are names of a text's column
    asked = write(tmp_path / "c.csv", "text,question,comment\nwhy?,1,0\n")
    assert pairs(load_examples(asked, text)) == [("why?", ("question",))]
    plain = write(tmp_path / "d.csv", "question,comment\nwhy?,so\n")
    assert pairs(load_examples(plain, text, labels_required=False)) == [("so", None)]


def test_one_label_of_several_columns(tmp_path):
    path = write(tmp_path / "a.csv", "text,Negative,Positive\ngood,0,1\nbad,1,0\n")
    assert pairs(load_examples(path, SST2)) == [("good", ("Positive",)), ("bad", ("Negative",))]
    stars = write(tmp_path / "b.csv", "text,1,2,3\ngood,0,0,1\n")  # no ids: labels that are numbers
    assert pairs(load_examples(stars, STARS)) == [("good", ("3",))]
    both = write(tmp_path / "c.csv", "text,Negative,Positive\ngood,1,1\n")
    with pytest.raises(UserError, match=r"c.csv:2: 2 labels .* takes exactly one"):
        load_examples(both, SST2)


def test_texts_without_a_label_are_split_as_a_label_is():
    examples = [Example(str(i), f"text {i}", () if i < 100 else ("positive",)) for i in range(140)]
    train, dev = split_validation(examples, 0.15, seed=3)
    assert [sum(e.labels == labels for e in dev) for labels in ((), ("positive",))] == [15, 6]
    report = data_report(OR_NONE, train, dev, [])
    assert report["train_rows_without_a_label"] == 85
    assert report["train_label_counts"] == {"positive": 34}

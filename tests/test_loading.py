import json

import pytest

from data.arguments import UserError
from data.loading import Example, data_report, load_examples, split_validation
from data.tasks import BUILT_IN_TASKS, Task

GROUP = BUILT_IN_TASKS["goemotions-group"]
SST2 = BUILT_IN_TASKS["sst2"]
EMOTION = BUILT_IN_TASKS["emotion"]
CHINESE = BUILT_IN_TASKS["chnsenticorp"]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def pairs(examples):
    return [(e.text, e.labels) for e in examples]


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
    ],
)  # fmt: skip
def test_formats(tmp_path, name, content, task, expected):
    assert pairs(load_examples(write(tmp_path / name, content), task)) == expected


def test_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

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
    stars = Task("stars", "single_label", ("1", "2", "3"), "{text}")
    assert load_examples(write(tmp_path / "a.jsonl", '{"text": "x", "label": 1}'), stars)[0].labels == ("1",)
    with pytest.raises(UserError, match="label '0' is not in the label set"):  # an id would be another label's name
        load_examples(write(tmp_path / "b.jsonl", '{"text": "x", "label": 0}'), stars)


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
        ("a.jsonl", '{"text": "a", "label": ' + "1" * 5000 + "}", SST2, r"a.jsonl:1: not JSON"),
        ("a.tsv", "a\t" + "1" * 5000 + "\n", SST2, r"a.tsv:1: label '1"),
        ("a.csv", 'text,label\n"a,1\n', SST2, r"a.csv:2: not CSV"),
    ],
)
def test_bad_files_name_file_and_line(tmp_path, name, content, task, message):
    with pytest.raises(UserError, match=message):
        load_examples(write(tmp_path / name, content), task)


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


def test_files_to_predict_on_need_no_labels(tmp_path):
    lines = write(tmp_path / "a.txt", "first text\nsecond, with comma\n")
    assert pairs(load_examples(lines, GROUP, labels_required=False)) == [("first text", ()), ("second, with comma", ())]
    records = write(tmp_path / "a.jsonl", '{"text": "a"}\n{"text": "b"}\n')
    assert pairs(load_examples(records, GROUP, labels_required=False)) == [("a", ()), ("b", ())]
    sentences = write(tmp_path / "d.txt", "well; that was it\nyes\n")
    assert pairs(load_examples(sentences, GROUP, labels_required=False)) == [("well; that was it", ()), ("yes", ())]
    late = write(tmp_path / "c.jsonl", '{"text": "a"}\n{"text": "b", "label": 1}\n')
    with pytest.raises(UserError, match=r"c.jsonl:1: no label, while other rows have one"):
        load_examples(late, GROUP, labels_required=False)
    mixed = write(tmp_path / "b.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n')
    with pytest.raises(UserError, match=r"b.jsonl:2: no label, while other rows have one"):
        load_examples(mixed, GROUP, labels_required=False)


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
    report = data_report(train, dev, [])
    assert report["dev_rows_also_in_train"] == 0
    assert split_validation(examples, 0.15, seed=3) == (train, dev)
    assert split_validation(examples, 0.15, seed=4) != (train, dev)


def test_a_label_with_one_text_stays_in_training():
    train, _ = split_validation(examples_of(("a", "joy"), ("b", "fear"), ("c", "fear")), 0.5, seed=0)
    assert {label for e in train for label in e.labels} == {"joy", "fear"}


def test_data_report_counts_leakage_and_conflicts():
    train = examples_of(("same", "joy"), ("Same", "fear"), ("twice", "joy"), ("twice", "joy"), ("once", "fear joy"))
    report = data_report(train, examples_of(("once ", "joy")), examples_of(("SAME", "joy"), ("new", "joy")))
    assert report == {
        "rows": {"train": 5, "dev": 1, "test": 2},
        "train_label_counts": {"joy": 4, "fear": 2},
        "train_repeated_rows": 2,
        "train_texts_with_different_labels": 1,
        "dev_rows_also_in_train": 1,
        "test_rows_also_in_train": 1,
    }

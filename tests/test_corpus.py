"""A corpus in parts: files, cuts, what may go on, and the labelling itself, without the Ray that spreads it."""

import json
import pickle
import sys
from pathlib import Path

import pytest

import inference
from data.arguments import UserError
from data.corpus import (
    Corpus,
    CorpusFile,
    added,
    begin_or_continue,
    begin_part,
    counts_of,
    cut,
    finished_parts,
    in_words,
    input_files,
    look_at,
    part_path,
    remove_leftovers,
    write_part,
)
from data.engine.ray_labelling import PART_TRIES, Labeller, Labelling, Share, connected, read, share_out
from data.loading import ExampleFile
from data.tasks import BUILT_IN_TASKS
from scripts import gather, label_corpus
from scripts.label_corpus import Args, contract_of, predictor_settings, settings_of

TASK = BUILT_IN_TASKS["emotion"]
SETTINGS = {"flags": {"precision": "fp32"}, "files": {"--model_path task.json": {"path": "m/task.json", "hash": "ab"}}}


def corpus_of(folder: Path, *sizes: int, rows_per_part: int = 4, limit: int | None = None) -> Corpus:
    """A corpus of one file for each size, in different formats."""
    found, begin = [], 0
    folder.mkdir(exist_ok=True)
    for number, size in enumerate(sizes):
        rows = [{"id": f"r{i}", "text": f"text {i}"} for i in range(begin, begin + size)]
        path = folder / f"{number}.{('jsonl', 'csv', 'tsv')[number % 3]}"
        if path.suffix == ".jsonl":
            lines = [json.dumps(row) for row in rows]
        else:
            lines = [
                ("," if path.suffix == ".csv" else "\t").join(row)
                for row in [["id", "text"], *(r.values() for r in rows)]
            ]
        path.write_text("".join(f"{line}\n" for line in lines))
        found.append(look_at(str(path), TASK, False)[0])
        begin += size
    return cut(found, rows_per_part, limit, False)


def answers(ids) -> list[dict]:
    """Rows of predictions as a part has them."""
    return [
        {"id": id, "text": "x", "gold": None, "labels": ["joy"], "valid": True, "truncated": False, "completion": ""}
        for id in ids
    ]


# --- files ----------------------------------------------------------------------------------------------------------


def test_folders_give_their_data_files_by_name(tmp_path):
    for name in ("b.tsv", "a/z.PARQUET", "a/y.csv", "labels.txt", ".hidden.csv", ".git/x.csv", "notes.md", "c.jsonl"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text("x")
    (tmp_path / "more.json").write_text("x")
    found = input_files([str(tmp_path / "more.json"), str(tmp_path / "in")], tmp_path / "out")
    names = [str(path.relative_to(tmp_path.resolve())) for path in found]
    assert names == ["more.json", "in/a/y.csv", "in/a/z.PARQUET", "in/b.tsv", "in/c.jsonl"]


def test_files_that_cannot_be_input(tmp_path):
    (tmp_path / "in" / "empty").mkdir(parents=True)
    (tmp_path / "in" / "a.csv").write_text("text\nhi\n")
    (tmp_path / "link.csv").symlink_to(tmp_path / "in" / "a.csv")
    for paths, output, message in (
        (["in/empty"], "out", r"--input_path .*empty: no data files \(\.tsv, .*\) in it"),
        (["in", "link.csv"], "out", r"link.csv: .*link.csv is there already, by .*in; a row would count twice"),
        (["in"], "in/out", r"--output_dir .*in/out: lies in --input_path .*in, whose files are read"),
        (["in"], "in", "lies in --input_path"),
        (["nowhere"], "out", "--input_path .*nowhere: no such file"),
    ):
        with pytest.raises(UserError, match=message):
            input_files([str(tmp_path / path) for path in paths], tmp_path / output)


def test_bad_rows_stop_or_are_listed(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id,text\n1,fine\n2,\n3,good\n")
    with pytest.raises(UserError, match=r"a\.csv:3: empty text"):
        look_at(str(path), TASK, False)
    file, rejected = look_at(str(path), TASK, True)
    assert file.rows == 2
    assert [(row["line"], row["error"]) for row in rejected] == [(3, "empty text")]
    ((_, examples),) = cut([file], 5, None, True).examples(0, [1], TASK)
    assert [example.id for example in examples] == ["1", "3"]


# --- parts ----------------------------------------------------------------------------------------------------------


def test_parts_are_those_of_inference_py(tmp_path):
    corpus = corpus_of(tmp_path / "in", 23, rows_per_part=4)
    assert corpus.parts == 6
    for part in range(1, 7):
        file = ExampleFile(corpus.files[0].path, TASK, "--test_data_path", shard=(part, 6))
        assert corpus.named_span(part) == file.span
        assert [part, list(file)] == list(*corpus.examples(0, [part], TASK))


@pytest.mark.parametrize("sizes", [(23,), (1, 1, 1, 20), (10, 3, 10), (4, 4, 4), (2, 30, 1)])
@pytest.mark.parametrize("limit", [None, 3, 17])
def test_whoever_reads_a_part_reads_the_same_rows(tmp_path, sizes, limit):
    """Also where it begins in one file and ends in another, or two files later, and where others are done."""
    corpus = corpus_of(tmp_path / "in", *sizes, rows_per_part=5, limit=limit)
    rows = min(sum(sizes), limit or 1000)
    every = range(1, corpus.parts + 1)
    for todo in (every, every[::2], every[1::3], every[-1:]):
        found = {}
        for number, parts in corpus.readers(todo):
            for part, examples in corpus.examples(number, parts, TASK):
                assert part not in found
                found[part] = [example.id for example in examples]
        assert sorted(found) == list(todo)
        for part, ids in found.items():
            begin, end = corpus.span(part)
            assert ids == [f"r{i}" for i in range(begin, end)]
            assert len(ids) <= 5
    assert corpus.span(corpus.parts)[1] == rows


def test_files_are_read_side_by_side(tmp_path):
    corpus = corpus_of(tmp_path / "in", 8, 8, 8, rows_per_part=4)
    assert corpus.readers(range(1, 7)) == [(0, [1, 2]), (1, [3, 4]), (2, [5, 6])]
    assert corpus.readers([2, 6]) == [(0, [2]), (2, [6])]
    assert corpus.readers([]) == []


@pytest.mark.parametrize("change", ["shorter", "longer"])
def test_a_file_that_changes_meanwhile_is_named(tmp_path, change):
    corpus = corpus_of(tmp_path / "in", 6, 6)
    path = Path(corpus.files[0].path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1] if change == "shorter" else [*lines, '{"id": "new", "text": "new"}\n']))
    with pytest.raises(UserError, match=r"0\.jsonl: was changed while it was labelled: it has not 6 rows any more"):
        list(corpus.examples(0, [1, 2, 3], TASK))


def test_parts_that_have_no_names():
    file = CorpusFile("a.tsv", 1_000_000, "ab")
    with pytest.raises(
        UserError, match=r"--rows_per_part 10: makes 100,000 parts of 1,000,000 rows; .* give 11 or more"
    ):
        cut([file], 10, None, False)
    assert cut([file], 11, None, False).parts == 90_910
    assert cut([file], 10, 50, False).parts == 5


# --- what may go on -------------------------------------------------------------------------------------------------


def test_the_same_goes_on_and_anything_else_is_refused(tmp_path):
    corpus, out = corpus_of(tmp_path / "in", 6, 6), tmp_path / "out"
    settings = begin_or_continue(out, corpus, SETTINGS)
    assert begin_or_continue(out, corpus, SETTINGS) == settings
    files = json.loads((out / "corpus.json").read_text())["files"]
    assert [
        (files[f"--input_path file {i}"]["first_row"], files[f"--input_path file {i}"]["last_row"]) for i in (1, 2)
    ] == [(1, 6), (7, 12)]

    model = {"--model_path task.json": {"path": "m/task.json", "hash": "cd"}}
    flags = {"flags": {"precision": "bf16"}, "files": SETTINGS["files"]}
    Path(corpus.files[1].path).write_text("id,text\n" + "".join(f"r{i},other {i}\n" for i in range(6)))
    changed = cut([look_at(file.path, TASK, False)[0] for file in corpus.files], 4, None, False)
    for other, given, message in (
        (corpus, {"flags": SETTINGS["flags"], "files": model}, "m/task.json: is not what .*corpus.json was begun with"),
        (corpus, flags, "--precision bf16: .*corpus.json began with fp32"),
        (changed, SETTINGS, r"1\.csv: is not what .*corpus.json was begun with: its content differs; choose another"),
        (cut(corpus.files[:1], 4, None, False), SETTINGS, "--input_path file 2: is not there any more"),
    ):
        with pytest.raises(UserError, match=message):
            begin_or_continue(out, other, given)


def test_parts_of_other_predictions_are_left_alone(tmp_path):
    part = tmp_path / "predictions-00001-of-00003.jsonl"
    part.write_text("x")
    with pytest.raises(UserError, match="has parts of other predictions; choose another folder"):
        begin_or_continue(tmp_path, corpus_of(tmp_path / "in", 6), SETTINGS)
    assert part.read_text() == "x"
    assert not (tmp_path / "corpus.json").exists()


def test_finished_parts_are_whole_and_of_these_settings(tmp_path):
    corpus, out = corpus_of(tmp_path / "in", 12), tmp_path / "out"
    settings = begin_or_continue(out, corpus, SETTINGS)
    for part in (1, 2, 3):
        begin, end = corpus.span(part)
        write_part(out, corpus, part, answers(f"r{i}" for i in range(begin, end)), settings)
    assert list(finished_parts(out, corpus, settings)) == [1, 2, 3]
    assert finished_parts(out, corpus, settings)[1]["counts"]["labels"] == {"joy": 4}
    assert not finished_parts(out, corpus, settings | {"flags": {"precision": "bf16"}})
    assert not finished_parts(out, Corpus(corpus.files, 11, 3), settings)

    cut_off = part_path(out, 2, 3)
    cut_off.write_bytes(cut_off.read_bytes()[:-9])
    part_path(out, 3, 3).with_suffix(".json").unlink()
    assert list(finished_parts(out, corpus, settings)) == [1]
    beside = part_path(out, 1, 3).with_suffix(".json")
    beside.write_text(beside.read_text().replace('"rows": 4', '"rows": "four"'))
    assert not finished_parts(out, corpus, settings)


def test_a_part_has_all_of_its_rows_or_is_not_written(tmp_path):
    corpus, out = corpus_of(tmp_path / "in", 12), tmp_path / "out"
    settings = begin_or_continue(out, corpus, SETTINGS)
    with pytest.raises(UserError, match="part 1: 3 rows, expected 4"):
        write_part(out, corpus, 1, answers("abc"), settings)
    assert [begin_part(out, corpus, 1), begin_part(out, corpus, 1), begin_part(out, corpus, 2)] == [1, 2, 1]
    write_part(out, corpus, 1, answers("abcd"), settings)
    assert begin_part(out, corpus, 1) == 1  # a part that was made has no tries behind it
    (out / ".predictions-00001-of-00003.jsonl.x1y2").write_text("half a part")
    remove_leftovers(out)
    assert sorted(path.name for path in out.iterdir()) == [
        "corpus.json", "predictions-00001-of-00003.json", "predictions-00001-of-00003.jsonl",
    ]  # fmt: skip


def test_counts_add_up():
    rows = [
        *answers("ab"),
        {"labels": [], "valid": True, "truncated": True},
        {"labels": [], "valid": False, "truncated": False, "abstained": True},
        {"labels": ["love", "joy"], "valid": True, "truncated": False},
    ]
    one = counts_of(rows)
    total = added([one, counts_of(answers("a"))], TASK)
    assert total["rows"] == 6
    assert (total["none"], total["invalid"], total["truncated"], total["abstained"]) == (1, 1, 1, 1)
    assert total["labels"] == {"anger": 0, "fear": 0, "joy": 4, "love": 1, "sadness": 0, "surprise": 0}
    lines = in_words(total).splitlines()
    assert lines[0].split() == ["joy", "4", "66.7%"]
    assert lines[-1] == "  (1 no label applies, 1 not read, 1 cut, 1 abstained)"


# --- labelling ------------------------------------------------------------------------------------------------------


@pytest.fixture
def args(tiny_model_dir, tmp_path) -> Args:
    corpus_of(tmp_path / "in", 9, 9)
    return Args(
        str(tiny_model_dir), [str(tmp_path / "in")], str(tmp_path / "out"), task="emotion", rows_per_part=5,
        precision="fp32",
    )  # fmt: skip


def labelling_of(args: Args) -> Labelling:
    contract = contract_of(args)
    files = [look_at(str(path), contract.task, False)[0] for path in input_files(args.input_path, args.output_dir)]
    corpus = cut(files, args.rows_per_part, args.limit, False)
    settings = begin_or_continue(args.output_dir, corpus, settings_of(args))
    return Labelling(args.output_dir, corpus, contract.task, predictor_settings(args), settings)


def label_here(labelling: Labelling) -> list[dict]:
    """What Ray does, in this process: everything that is read goes to one actor."""
    corpus, outcomes = labelling.corpus, []
    done = finished_parts(labelling.directory, corpus, labelling.settings)
    labeller = Labeller(labelling)
    for number, parts in corpus.readers(set(range(1, corpus.parts + 1)) - done.keys()):
        for batch in read({"file": [number], "parts": [parts]}, labelling):
            outcomes.append(labeller(batch))
    return outcomes


def test_parts_are_written_as_inference_py_writes_them(args, tmp_path):
    """Byte for byte, and so what reads those reads these."""
    labelling = labelling_of(args)
    assert [outcome["rows"] for outcome in label_here(labelling)] == [[4], [5], [4], [5]]
    whole = tmp_path / "whole.jsonl"
    whole.write_text("".join(json.dumps({"id": f"r{i}", "text": f"text {i}"}) + "\n" for i in range(18)))
    for part in range(1, 5):
        inference.main(
            inference.Args(
                model_path=args.model_path, task="emotion", test_data_path=str(whole), shard=f"{part}/4",
                output_dir=str(tmp_path / "beside"), precision="fp32",
            )
        )  # fmt: skip
        name = f"predictions-{part:05}-of-00004.jsonl"
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "beside" / name).read_bytes()
    gather.main(gather.Args(args.output_dir, args.model_path, "emotion"))
    joined = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in joined] == [f"r{i}" for i in range(18)]
    assert all(row["probabilities"].keys() == set(TASK.labels) for row in joined)


def test_only_what_is_not_there_is_labelled(args, tmp_path):
    labelling = labelling_of(args)
    label_here(labelling)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert label_here(labelling) == []
    part_path(args.output_dir, 2, 4).unlink()
    part_path(args.output_dir, 4, 4).write_bytes(b"")
    assert [outcome["rows"] for outcome in label_here(labelling)] == [[5], [5]]
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_part_that_kills_its_process_is_given_up(args):
    labelling = labelling_of(args)
    for _ in range(PART_TRIES):
        begin_part(args.output_dir, labelling.corpus, 2)
    outcomes = label_here(labelling)
    assert [outcome["rows"][0] for outcome in outcomes] == [4, 0, 4, 5]
    assert outcomes[1]["problem"][0].startswith("part 2: the process that labels it has ended 5 times")


def test_what_goes_wrong_in_a_process_is_one_line(args, tmp_path):
    labelling = labelling_of(args)
    Path(labelling.corpus.files[0].path).write_text('{"id": "1", "text": "hi"}\n')
    assert [batch["problem"][0] for batch in read({"file": [0], "parts": [[1]]}, labelling)] == [
        f"{labelling.corpus.files[0].path}: was changed while it was labelled: it has not 9 rows any more"
    ]
    broken = Labelling(
        labelling.directory, labelling.corpus, labelling.task, labelling.predictor | {"model_path": str(tmp_path)}, {}
    )
    batch = {"part": [1], "examples": [pickle.dumps([])], "problem": [""]}
    (outcome,) = Labeller(broken)(batch)["problem"]
    assert outcome.startswith(f"--model_path {tmp_path}:")


def test_without_ray_one_line_says_what_is_needed(args, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"needs Ray \(pip install -r scripts/requirements-ray.txt\)"):
        label_corpus.main(args)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="needs Ray"), connected("auto", 1):
        pass


@pytest.mark.parametrize(
    ("resources", "asked", "expected"),
    [
        ({"CPU": 16.0}, (2, None, None), Share(2, 8, 0)),
        ({"CPU": 3.0}, (2, None, None), Share(2, 1, 0)),
        ({"CPU": 16.0, "GPU": 4.0}, (4, None, None), Share(4, 4, 1)),
        ({"CPU": 16.0, "GPU": 4.0}, (2, 3, 2), Share(2, 3, 2)),
        ({"CPU": 16.0, "GPU": 4.0}, (8, 1, None), "--workers 8: with 1 GPUs each, the cluster has 4 of them"),
        ({"CPU": 2.0}, (2, 2, None), "--workers 2: with 2 CPUs each, the cluster has 2 of them"),
        ({"CPU": 2.0}, (1, 1, 2), "--workers 1: with 2 GPUs each, the cluster has 0 of them"),
    ],
)
def test_cores_and_gpus_are_shared_out(resources, asked, expected):
    if isinstance(expected, Share):
        assert share_out(resources, *asked) == expected
    else:
        with pytest.raises(UserError, match=expected):
            share_out(resources, *asked)

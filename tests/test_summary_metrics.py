"""Scores of written summaries, by hand; and the program that prints them."""

import json
import math
import os
import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.arguments import UserError
from data.files import write_json_lines
from data.summaries.cases import Case, read_cases
from data.summaries.metrics import summary_metrics
from scripts.summary_scores import Args, main


def case(reference: str | None = None, *texts: str, name: str = "1") -> Case:
    first, *rest = texts or ("Woman, 34",)
    return Case(name, (first,), tuple(rest) or ("How are you?",), reference)


def of_pair(summary: str, reference: str) -> dict:
    return summary_metrics([case(reference)], [summary])


CAT = "the cat sat on the mat"
BY_HAND = {  # summary, reference, precision and recall of ROUGE-1, -2 and -L, BLEU
    "as long": ("the cat on the mat today", CAT, (5 / 6, 5 / 6), (3 / 5, 3 / 5), (5 / 6, 5 / 6),
                (5 / 6 * 3 / 5 * 1 / 4 * 1 / 6) ** 0.25),  # no four in a row: half of one
    "shorter": ("the cat sat on", CAT, (1, 4 / 6), (1, 3 / 5), (1, 4 / 6), math.exp(1 - 6 / 4)),
    "three words": ("the cat sat", CAT, (1, 3 / 6), (1, 2 / 5), (1, 3 / 6), math.exp(1 - 6 / 3)),
    "twice": ("the the the the", CAT, (2 / 4, 2 / 6), (0, 0), (2 / 4, 2 / 6),
              math.exp(1 - 6 / 4) * (1 / 2 * 1 / 6 * 1 / 8 * 1 / 8) ** 0.25),
    "Chinese": ("我今天难过了。", "我今天很难过", (5 / 6, 5 / 6), (3 / 5, 3 / 5), (5 / 6, 5 / 6),
                (5 / 7 * 3 / 6 * 1 / 5 * 1 / 8) ** 0.25),  # the full stop counts for BLEU alone
    "mixed": ("我用 SmolLM2 写", "我用SmolLM2写字", (1, 4 / 5), (1, 3 / 4), (1, 4 / 5), math.exp(1 - 5 / 4)),
    "signs and case": ("Don’t SIT, cat!", "don't sit cat", (1, 1), (1, 1), (1, 1),
                       (1 / 5 * 1 / 8 * 1 / 12 * 1 / 16) ** 0.25),
    "disjoint": ("a dog", CAT, (0, 0), (0, 0), (0, 0), 0),
    "empty": ("", CAT, (0, 0), (0, 0), (0, 0), 0),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_rouge_and_bleu_by_hand(name):
    summary, reference, *rouge, bleu = BY_HAND[name]
    scores = of_pair(summary, reference)
    for kind, (precision, recall) in zip(("rouge1", "rouge2", "rougeL"), rouge, strict=True):
        f1 = 2 * precision * recall / (precision + recall) if precision else 0
        found = [scores[f"{kind}_{what}"] for what in ("precision", "recall", "f1")]
        assert found == pytest.approx([precision, recall, f1]), kind
    assert scores["bleu"] == pytest.approx(bleu)
    assert scores["per_case"] == [{"id": "1", "rougeL_f1": scores["rougeL_f1"]}]


@pytest.mark.parametrize("text", [CAT, "她说出来了，睡得好些。", "她用 app 记录。", "yes"])
def test_a_summary_like_its_reference(text):
    scores = of_pair(text, text)
    assert {value for name, value in scores.items() if re.search("rouge[12L]_", name) and "rouge2" not in name} == {1}
    assert scores["bleu"] == pytest.approx(1)
    assert scores["bleu"] <= 1
    assert scores["rouge2_f1"] == (text != "yes")
    assert scores["reference"] == {name: scores[name] for name in scores["reference"]}


def test_as_the_libraries_cut():
    """Where their own ways of cutting agree with ours: English without signs for ROUGE, Chinese for BLEU."""
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU

    theirs = RougeScorer(["rouge2", "rougeL"]).score(target="The cat sat on the mat", prediction="a cat on the mat sat")
    ours = of_pair("a cat on the mat sat", "The cat sat on the mat")
    assert [ours["rouge2_f1"], ours["rougeL_f1"]] == [theirs["rouge2"].fmeasure, theirs["rougeL"].fmeasure]
    summary, reference = "我今天很难过，但是睡得好些了。", "我今天有点难过，不过睡得好多了。"
    theirs = BLEU(tokenize="zh").corpus_score([summary], [[reference]])
    assert of_pair(summary, reference)["bleu"] == pytest.approx(theirs.score / 100)


def test_many_summaries_that_end_in_a_full_stop(caplog):
    """Of which sacrebleu thinks that they were cut by mistake."""
    assert summary_metrics([case("Yes.")] * 100, ["Yes."] * 100)["bleu"] == pytest.approx(1)
    assert not caplog.records


def test_means_over_the_cases():
    """ROUGE is the mean of each case's; BLEU is of all cases at once."""
    scores = summary_metrics([case(CAT), case(CAT, name="2")], [CAT, "the cat"])
    assert scores["rouge1_f1"] == pytest.approx((1 + 1 / 2) / 2)
    assert scores["bleu"] == pytest.approx(math.exp(1 - 12 / 8))
    assert scores["per_case"][1] == {"id": "2", "rougeL_f1": pytest.approx(1 / 2)}


def test_without_references():
    cases = [case(None, "a b", "c d e f g"), case(None, "x", "a. B")]
    scores = summary_metrics(cases, ["a b a b c", "C d, e f"], [True, False])
    assert scores == {
        "n": 2, "empty_rate": 0, "truncation_rate": 0.5,
        "words_mean": 4.5, "words_median": 4.5, "characters_mean": 8.5, "characters_median": 8.5,
        "distinct_1": 6 / 9, "distinct_2": 6 / 7,  # ab ba bc, cd de ef
        "source_overlap_1": 0.5, "source_overlap_2": 0.25,  # no pair goes over the end of a text
        "source_overlap_4": 0,
    }  # fmt: skip
    assert summary_metrics(cases[:1], ["c d e f, h"])["source_overlap_4"] == 0.5


def test_chinese_without_references():
    scores = summary_metrics([case(None, "我很难过")], ["我很很好。"])
    assert (scores["words_mean"], scores["characters_mean"]) == (4, 5)
    assert (scores["distinct_1"], scores["distinct_2"]) == (3 / 4, 1)
    assert [scores[f"source_overlap_{n}"] for n in (1, 2, 4)] == [3 / 4, 1 / 3, 0]


def test_empty_summaries():
    scores = summary_metrics([case(CAT), case(CAT), case(CAT)], ["", " ", "..."])
    assert (scores["empty_rate"], scores["words_mean"], scores["rougeL_f1"], scores["bleu"]) == (2 / 3, 0, 0, 0)
    nothing = ("distinct_1", "distinct_2", "source_overlap_1", "source_overlap_2", "source_overlap_4")
    assert {scores[name] for name in nothing} == {None}
    with_one = summary_metrics([case(None, "a b")] * 2, ["", "a b"])
    assert with_one["source_overlap_1"] == 1, "an empty summary has copied nothing, and written nothing of its own"


@pytest.mark.parametrize(
    ("cases", "summaries", "truncated"),
    [([], [], None), ([case()], [], None), ([case()], ["a"], []), ([case("a"), case()], ["a", "b"], None)],
)
def test_what_does_not_fit_together(cases, summaries, truncated):
    with pytest.raises(ValueError, match=rf"{len(cases)} cases, "):
        summary_metrics(cases, summaries, truncated)


def test_the_order_of_cases_does_not_matter():
    rng = random.Random(1)

    def draw() -> str:
        return " ".join(rng.choices(["the", "cat", "sat", "on", "a", "mat", "我", "很", "好"], k=rng.randint(0, 12)))

    rows = [(case(draw() or "cat", draw(), name=str(i)), draw(), rng.random() < 0.5) for i in range(20)]
    one = summary_metrics(*zip(*rows, strict=True))
    rng.shuffle(rows)
    other = summary_metrics(*zip(*rows, strict=True))
    per_case = [sorted(scores.pop("per_case"), key=lambda row: row["id"]) for scores in (one, other)]
    assert per_case[0] == per_case[1]
    assert one == other


_TEXTS = st.text(st.sampled_from("ab我。 .\n’'\x1c\x85\u2028\u3000\u0301é😀\r3") | st.characters(), max_size=20)


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.tuples(_TEXTS, _TEXTS, _TEXTS), min_size=1, max_size=4), with_references=st.booleans())
def test_any_text_has_scores(rows, with_references):
    cases = [case(reference if with_references else None, source) for reference, source, _ in rows]
    scores = summary_metrics(cases, [summary for *_, summary in rows])
    json.dumps(scores, allow_nan=False)
    shares = {name: value for name, value in scores.items() if re.match("rouge|bleu|distinct|source|empty", name)}
    assert all(value is None or 0 <= value <= 1 for value in shares.values())
    assert ("bleu" in scores) == ("per_case" in scores) == with_references


# --- the program ----------------------------------------------------------------------------------------------------


def rows_of(*summaries: str, reference: str | None = CAT, **more) -> list[dict]:
    return [case(reference, name=f"c{i}").record() | {"summary": text} | more for i, text in enumerate(summaries)]


def test_the_program(tmp_path, capsys):
    path = tmp_path / "written.jsonl"
    write_json_lines(path, rows_of(CAT, "the cat\nsat", "", "the dog", "a mat", "a", "mat", truncated=False))
    main(Args(file=str(path)))
    said = capsys.readouterr().out
    assert "7 cases, 0.0 % not seen whole by the model" in said
    assert "| ROUGE-L | 35.0 % | 57.1 %    | 28.6 % |" in said
    worst = said.split("the lowest ROUGE-L\n")[1].splitlines()[:6]
    assert worst[:4] == ["    0.0 %  c2: (empty)", "    0.0 %  c5: a", "   25.0 %  c3: the dog", "   25.0 %  c4: a mat"]
    assert worst[4:] == ["   28.6 %  c6: mat", ""]
    found = json.loads((tmp_path / "summary_scores.json").read_text())
    assert (found["file"], found["n"], found["truncation_rate"], len(found["per_case"])) == (str(path), 7, 0, 7)
    assert found["rougeL_f1"] == pytest.approx((1 + 2 / 3 + 2 * 1 / 4 + 2 / 7) / 7)


def test_the_program_without_references_and_elsewhere(tmp_path, capsys):
    path, elsewhere = tmp_path / "written.json", tmp_path / "new" / "scores"
    path.write_text(json.dumps(rows_of("她睡得好些。", "", reference=None)), encoding="utf-8")
    main(Args(file=str(path), output_dir=str(elsewhere)))
    said = capsys.readouterr().out
    assert "ROUGE" not in said
    assert "reference" not in said
    assert re.search(r"copied fours of words +\| 0\.0 % ", said)
    found = json.loads((elsewhere / "summary_scores.json").read_text())
    assert not {"bleu", "reference", "per_case", "truncation_rate"} & found.keys()
    assert found["empty_rate"] == 0.5
    assert not (tmp_path / "summary_scores.json").exists()


def test_nothing_is_written_of_a_bad_file(tmp_path):
    path = tmp_path / "written.jsonl"
    write_json_lines(path, [*rows_of(CAT), case(CAT).record()])
    with pytest.raises(UserError, match=r"written.jsonl:2: no summary among "):
        main(Args(file=str(path)))
    assert [each.name for each in tmp_path.iterdir()] == ["written.jsonl"]


# --- the published cases --------------------------------------------------------------------------------------------

CASES = Path(os.environ.get("EMOTUNE_DATASETS", "no-such-folder")) / "longemotion" / "cases.jsonl"


@pytest.mark.skipif(not CASES.is_file(), reason="EMOTUNE_DATASETS does not name a folder with longemotion/")
def test_the_first_three_sentences_of_published_cases():
    cases = list(read_cases(CASES, "--test_data_path"))
    texts = [" ".join((*case.case_description, *case.consultation_process)) for case in cases]
    scores = summary_metrics(cases, [" ".join(re.split(r"(?<=[.!?])\s+", text)[:3]) for text in texts])
    json.dumps(scores, allow_nan=False)
    assert (scores["words_mean"], scores["reference"]["words_mean"]) == (54.74, 926.02)
    rounded = {name: round(scores[name], 4) for name in ("rouge1_f1", "rouge2_f1", "rougeL_f1", "source_overlap_4")}
    assert rounded == {"rouge1_f1": 0.0576, "rouge2_f1": 0.0112, "rougeL_f1": 0.0416, "source_overlap_4": 0.9666}

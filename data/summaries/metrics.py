"""How good written summaries are: beside the counsellor's own, and by themselves. (no torch)

With a reference, means over the cases, each from 0 to 1 (BLEU: of all cases at once):

- **ROUGE-1, ROUGE-2, ROUGE-L** (Lin, 2004): words, pairs of words, and the longest common subsequence of words that a
  summary shares with its reference; precision (of the summary's), recall (of the reference's) and F1. By rouge-score.
- **BLEU** (Papineni et al., 2002): the same for one to four words in a row, precision only, with a penalty for all
  summaries together being shorter than their references. By sacrebleu (Post, 2018), smoothed as it is there by default.

Without:

- **distinct-1, distinct-2** (Li et al., 2016): how many different words, or pairs of words in a row, all summaries have
  together, as a share of all their words or pairs (in the paper of all words): low where they repeat themselves or each
  other. The more text, the lower: compare over the same cases only.
- **source overlap** (the reverse of the share of novel n-grams of See et al., 2017): the share of a summary's words,
  pairs and fours of words in a row that stand so in one of the case's texts, mean over the summaries that have any.
  Where it is high for fours, a summary is copied.
- Words and characters of a summary; the share of empty ones; the share of cases that the model did not see whole.

A Chinese character is a word: `data/words.py` cuts texts, Chinese, English or mixed. Punctuation counts for BLEU alone,
and so do upper and lower case, as is the custom of both libraries. Words are not stemmed. So figures for English differ
a little from those by the libraries' own cutting, which knows no Chinese.
"""

from collections.abc import Iterable, Sequence
from statistics import fmean, median
from types import SimpleNamespace
from typing import Any

from data.summaries.cases import Case
from data.words import word_spans

ROUGE = ("rouge1", "rouge2", "rougeL")
DISTINCT, OVERLAP = (1, 2), (1, 2, 4)  # words in a row


def summary_metrics(
    cases: Sequence[Case], summaries: Sequence[str], truncated: Sequence[bool] | None = None
) -> dict[str, Any]:
    """Scores of summaries, one of each case; see the top of the file.

    Args:
        cases: at least one; either all have a summary of their own, the reference, or none has.
        summaries: what was written of each; "" where nothing was.
        truncated: of each, whether the model did not see the whole case; None = not known.

    Returns:
        `n`; `empty_rate`; `words_mean`, `words_median`, `characters_mean`, `characters_median`; `distinct_1`, `_2`;
        `source_overlap_1`, `_2`, `_4`: None where no summary has so many words; `truncation_rate` where it is known.
        With references `rouge1_precision`, `rouge1_recall`, `rouge1_f1`, and so for `rouge2` and `rougeL`; `bleu`;
        `reference`: of the references what is said of the summaries without one; `per_case`: `id` and `rougeL_f1`.

    Raises:
        ValueError: no cases, more or fewer of one than of the other, or only some cases have a reference.
    """
    references = [case.summary for case in cases if case.summary is not None]
    lengths = {len(cases), len(summaries), len(cases if truncated is None else truncated)}
    if len(lengths) > 1 or not cases or len(references) not in (0, len(cases)):
        raise ValueError(f"{len(cases)} cases, {len(references)} of them with a reference, {len(summaries)} summaries")
    sources = [[_words(text) for text in (*case.case_description, *case.consultation_process)] for case in cases]
    scores = {"n": len(cases), **_alone(summaries, sources)}
    if truncated is not None:
        scores["truncation_rate"] = fmean(truncated)
    if references:
        rouge = _rouge(summaries, references)
        scores |= {name: fmean(each[name] for each in rouge) for name in rouge[0]}
        scores["bleu"] = _bleu(summaries, references)
        scores["reference"] = _alone(references, sources)
        scores["per_case"] = [
            {"id": case.id, "rougeL_f1": each["rougeL_f1"]} for case, each in zip(cases, rouge, strict=True)
        ]
    return scores


def _tokens(text: str) -> list[str]:
    return [text[begin:end] for begin, end in word_spans(text)]


def _words(text: str) -> list[str]:
    """Words without punctuation, upper case or the typesetter's apostrophe.

    >>> _words("Don’t give up, 好吗？")
    ["don't", 'give', 'up', '好', '吗']
    """
    return [token.lower().replace("’", "'") for token in _tokens(text) if any(map(str.isalnum, token))]


def _in_a_row(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _alone(texts: Sequence[str], sources: Sequence[Sequence[Sequence[str]]]) -> dict[str, Any]:
    """What is said of summaries without a reference; `sources` are the words of each case's texts."""
    words = [_words(text) for text in texts]
    found: dict[str, Any] = {"empty_rate": fmean(not text.strip() for text in texts)}
    for name, sizes in (("words", [len(each) for each in words]), ("characters", [len(text) for text in texts])):
        found |= {f"{name}_mean": fmean(sizes), f"{name}_median": median(sizes)}
    for n in DISTINCT:
        rows = [row for each in words for row in _in_a_row(each, n)]
        found[f"distinct_{n}"] = _share(len(set(rows)), len(rows))
    for n in OVERLAP:
        found[f"source_overlap_{n}"] = _mean(
            _overlap(_in_a_row(each, n), {row for part in source for row in _in_a_row(part, n)})
            for each, source in zip(words, sources, strict=True)
        )
    return found


def _overlap(rows: Sequence[tuple[str, ...]], there: set[tuple[str, ...]]) -> float | None:
    return _share(sum(row in there for row in rows), len(rows))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _rouge(summaries: Sequence[str], references: Sequence[str]) -> list[dict[str, float]]:
    """`rouge1_precision`, `rouge1_recall`, … of each summary."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(ROUGE, tokenizer=SimpleNamespace(tokenize=_words))
    found = []
    for summary, reference in zip(summaries, references, strict=True):
        of_types = scorer.score(target=reference, prediction=summary)
        values = {name: (score.precision, score.recall, score.fmeasure) for name, score in of_types.items()}
        found.append(
            {
                f"{name}_{what}": float(value)
                for name, three in values.items()
                for what, value in zip(("precision", "recall", "f1"), three, strict=True)
            }
        )
    return found


def _bleu(summaries: Sequence[str], references: Sequence[str]) -> float:
    from sacrebleu.metrics import BLEU

    cut, cut_references = ([" ".join(_tokens(text)) for text in texts] for texts in (summaries, references))
    # effective_order counts only for summaries that have no four words in a row at all: they would all score 0
    scorer = BLEU(tokenize="none", force=True, effective_order=True)
    return min(scorer.corpus_score(cut, [cut_references]).score / 100, 1.0)  # e^log(100) is a hair over 100


def format_scores(scores: dict[str, Any], title: str) -> str:
    """`test_summary.txt`: scores of summaries as a person reads them."""
    shown = {
        "ROUGE-1 F1": "rouge1_f1", "ROUGE-2 F1": "rouge2_f1", "ROUGE-L F1": "rougeL_f1", "BLEU": "bleu",
        "cases cut": "truncation_rate", "unfinished": "unfinished_rate", "empty": "empty_rate",
        "distinct-1": "distinct_1", "distinct-2": "distinct_2", "copied words": "source_overlap_1",
        "copied fours": "source_overlap_4",
    }  # fmt: skip
    lines = [title, "", f"{'cases':<16}{scores['n']}"]
    lines += [f"{words:<16}{scores[name]:.4f}" for words, name in shown.items() if scores.get(name) is not None]
    lengths = {"a summary": scores} | ({"a reference": scores["reference"]} if "reference" in scores else {})
    lines += [f"{'words in ' + of:<16} {each['words_mean']:.0f}" for of, each in lengths.items()]
    return "\n".join(lines) + "\n"

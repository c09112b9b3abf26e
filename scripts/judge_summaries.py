"""Have a language model judge summaries of counselling cases: LongEmotion's measure (arXiv 2509.07403).

    # a judge of your own, such as `vllm serve NAME`: judgements.jsonl and judge_scores.json beside the file
    python -m scripts.judge_summaries outputs/summaries.jsonl --judge_url http://127.0.0.1:8000/v1 --judge_model NAME

    # a service; the key is read from EMOTUNE_JUDGE_KEY, else from OPENAI_API_KEY, and never written
    EMOTUNE_JUDGE_KEY=... python -m scripts.judge_summaries outputs/summaries.jsonl \\
        --judge_url https://api.openai.com/v1 --judge_model gpt-4o

The file has a case a line, with a key `summary`, what a model wrote, and the five texts that say what a good one holds:
causes, symptoms, treatment_process, characteristics_of_illness and treatment_effect. These and the summary are sent to
the address. For each of the five, the judge scores factual consistency, completeness and clarity from 1 to 5, and says
why; an answer that cannot be read is asked for again, and then counted as unread, never as a score.

Killed, or stopped by the server, the same command goes on with the summaries that are not judged yet or are unread.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.arguments import UserError, check_at_least, check_output_dir, flag, one_line, run
from data.files import as_json, exclusive, write_json, write_json_lines
from data.report.tables import markdown_table
from data.summaries.cases import REFERENCES, WrittenSummary, read_written
from data.summaries.judge import Judge, Judgement, checked_url
from data.summaries.judge_questions import HIGHEST, LOWEST, QUALITIES, mean_scores, question_hash

JUDGEMENTS_FILE, SCORES_FILE = "judgements.jsonl", "judge_scores.json"
KEYS = ("EMOTUNE_JUDGE_KEY", "OPENAI_API_KEY")  # in the environment; the first that is set
_SAME = ("file", "judge_model", "judge_url")  # of all rows of a file of judgements
Row = dict[str, Any]
Key = tuple[str, str]


@dataclass
class Args:
    file: str | None = flag(None, "the cases with what a model wrote of them; --file itself may be left out")
    judge_url: str | None = flag(None, "OpenAI-compatible address, as far as /v1, such as http://127.0.0.1:8000/v1")
    judge_model: str | None = flag(None, "the judge's name at that address")
    output_dir: str | None = flag(None, "where judgements and scores go; not set = beside the file")
    limit: int | None = flag(None, "judge the first N summaries only")
    concurrency: int = flag(4, "requests at a time")
    timeout: float = flag(60.0, "seconds that the judge may take for an answer")

    def __post_init__(self):
        if not self.file:
            raise UserError("--file is needed: cases with what a model wrote of them")
        for name in ("judge_url", "judge_model"):
            if not getattr(self, name):
                raise UserError(f"--{name} is needed: the model that judges, behind an OpenAI-compatible address")
            if not getattr(self, name).isprintable():
                raise UserError(f"--{name} {one_line(getattr(self, name), 100)}: holds a character that no name has")
        check_at_least(self, limit=1, concurrency=1, timeout=1)
        self.judge_url = checked_url(self.judge_url)
        if self.output_dir is not None:
            check_output_dir(self.output_dir)


def summaries_of(path: str) -> list[WrittenSummary]:
    """The rows of a file of cases with summaries.

    Raises:
        UserError: a bad row, or one without all five reference texts.
    """
    summaries = list(read_written(path, "--file"))
    for written in summaries:
        if lacking := [name for name in REFERENCES if name not in written.case.reference]:
            identity = one_line(written.case.id, 60)
            raise UserError(
                f"{path}: case {identity} has no {', '.join(lacking)}, with which the judge compares a summary"
            )
    return summaries


def key_of(written: WrittenSummary) -> Key:
    """Tells a summary from others: its id, and a hash of what the judge is shown."""
    return written.case.id, question_hash(written.case, written.text)


# --- judgements.jsonl -----------------------------------------------------------------------------------------------


def read_judgements(path: Path, same: Row) -> dict[Key, Row]:
    """The rows of judgements that an earlier start left, by `key_of`; those that could not be read are left out.

    Raises:
        UserError: they are of another file or judge than `same` names, or are none.
    """
    found = {}
    lines = path.read_bytes().splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        row = _row(line)
        if row is None and number == len(lines):
            print(f"{path}:{number}: half a judgement, as after a kill; it is asked for again", file=sys.stderr)
            break
        if row is None:
            raise UserError(f"{path}:{number}: no judgement of this program; choose another --output_dir")
        for name, value in same.items():
            if row[name] != value:
                raise UserError(
                    f"{path}:{number}: a judgement with {name} {one_line(repr(row[name]), 100)}, not {value!r}; "
                    "choose another --output_dir"
                )
        if row["scores"] is not None:
            found[row["id"], row["asked"]] = row
    return found


def _row(line: bytes) -> Row | None:
    """A line of judgements.jsonl; None where it is not whole."""
    try:
        row = json.loads(line)
        scores = row["scores"]
        whole = isinstance(row["id"], str) and all(isinstance(row[name], str) for name in ("asked", *_SAME))
        if scores is not None:
            each = [scores[aspect][quality] for aspect in REFERENCES for quality in QUALITIES]
            whole = whole and all(type(score) is int and LOWEST <= score <= HIGHEST for score in each)
        return row if whole else None
    except (ValueError, RecursionError, LookupError, TypeError):
        return None


def row_of(written: WrittenSummary, judgement: Judgement, same: Row) -> Row:
    """A judgement as a line of judgements.jsonl has it."""
    identity, asked = key_of(written)
    overall = None if judgement.scores is None else mean_scores([judgement.scores])["overall"]
    return {"id": identity, "asked": asked, **same, "overall": overall, **asdict(judgement)}


def judge_rest(judge: Judge, summaries: Sequence[WrittenSummary], rows: dict[Key, Row], path: Path, same: Row) -> None:
    """Have those judged that `rows` lacks; each row is added to it, and to the file as soon as it is there.

    Raises:
        UserError: see `Judge.judge_all`.
    """
    from tqdm import tqdm

    distinct = {key_of(written): written for written in summaries}
    rest = [written for key, written in distinct.items() if key not in rows]
    if not rest:
        return
    if path.exists():
        write_json_lines(path, rows.values())  # without half a line at its end
    with tqdm(
        total=len(distinct), initial=len(distinct) - len(rest), desc="judge", unit="summary", file=sys.stderr
    ) as bar:  # fmt: skip

        def done(place: int, judgement: Judgement) -> None:
            row = row_of(rest[place], judgement, same)
            with path.open("ab") as file:
                file.write(f"{as_json(row, path)}\n".encode(errors="backslashreplace"))
            rows[key_of(rest[place])] = row
            bar.update()

        judge.judge_all(rest, done)


# --- the command ----------------------------------------------------------------------------------------------------


def main(args: Args) -> None:
    path = Path(args.file)
    summaries = summaries_of(args.file)
    output_dir = Path(args.output_dir or path.parent)
    check_output_dir(str(output_dir))
    key = next((os.environ[name] for name in KEYS if os.environ.get(name)), None)
    judge = Judge(args.judge_url, args.judge_model, key, args.timeout, concurrency=args.concurrency)
    same = {"file": path.name, "judge_model": args.judge_model, "judge_url": args.judge_url}
    with exclusive(output_dir, JUDGEMENTS_FILE):
        judgements = output_dir / JUDGEMENTS_FILE
        rows = read_judgements(judgements, same)
        judge_rest(judge, summaries[: args.limit], rows, judgements, same)
        keys = [key_of(written) for written in summaries]
        # in the order of the file, with those of an earlier start behind --limit
        write_json_lines(judgements, (rows[key] for key in keys if key in rows))
        result = same | scores_of([rows[key] for key in keys[: args.limit]])
        write_json(output_dir / SCORES_FILE, result)
    print(summary_of(result))
    print(f"{result['n']:,} summaries, {result['unread']:,} unread; written to {output_dir / SCORES_FILE}")


def scores_of(rows: Sequence[Row]) -> Row:
    """How many summaries there are, how many of their judgements could not be read, and means over the others."""
    read = [row["scores"] for row in rows if row["scores"] is not None]
    return {"n": len(rows), "unread": len(rows) - len(read), "scale": [LOWEST, HIGHEST], **mean_scores(read)}


def summary_of(result: Row) -> str:
    """The scores as a table."""
    if result["overall"] is None:
        return f"No judgement could be read, so that there are no scores; {JUDGEMENTS_FILE} says why."
    scores = result["aspects"] | result["qualities"] | {"overall": result["overall"]}
    rows = [[name, f"{score:.2f}"] for name, score in scores.items()]
    return markdown_table(["judged", f"mean score, {LOWEST} to {HIGHEST}"], rows, padded=True)


if __name__ == "__main__":
    run(main, Args, {}, positional="file")

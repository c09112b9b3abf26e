"""The judge of summaries, against a server that answers rightly, wrongly, late, or not at all."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from data.arguments import UserError
from data.summaries.cases import REFERENCES, Case, WrittenSummary
from data.summaries.judge import Judge
from data.summaries.judge_questions import QUALITIES, UnreadError, mean_scores, question, question_again, read_answer
from scripts.judge_summaries import Args, main
from tests.conftest import ROOT
from tests.judge_server import JudgeServer, Reply, judged

CASE = Case("7", ("Woman, 34",), ("How are you?",), None, {name: f"the {name} {{it}}" for name in REFERENCES})
SCORES = {name: dict.fromkeys(QUALITIES, 4) for name in REFERENCES}
KEY = "sk-very-secret-1234567890"


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for name in ("EMOTUNE_JUDGE_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server():
    with JudgeServer() as server:
        yield server


def judge(server: JudgeServer | str, **settings) -> tuple[Judge, list[float]]:
    """A judge that never waits, and how long it would have."""
    waits = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    return Judge(getattr(server, "url", server), "m", sleep=sleep, **settings), waits


def in_turn(*replies: Reply):
    return lambda body, number: replies[min(number, len(replies) - 1)]


# --- question and answer --------------------------------------------------------------------------------------------


def test_the_question_has_all_that_is_compared():
    asked = question(CASE, "She {slept} again.")
    assert all(f"({name}):\nthe {name} {{it}}" in asked for name in REFERENCES)
    assert "<summary>\nShe {slept} again.\n</summary>" in asked
    form = json.loads(asked[asked.rindex("\n") :])
    assert {name: list(scores) for name, scores in form.items()} == {key: [*QUALITIES, "reason"] for key in REFERENCES}
    chinese = Case("8", ("来访者,女,34岁,失眠",), ("您好",), None, CASE.reference)
    assert "请评判" in question(chinese, "好转")
    assert "JSON" in question(chinese, "好转")  # without the word, servers refuse to answer in JSON
    assert "无法读取:x" in question_again(chinese, "x")
    with pytest.raises(ValueError, match="case 9 has no causes, symptoms"):
        question(Case("9", ("a",), ("b",)), "c")


GOOD = json.dumps(judged())
RIGHT = [
    GOOD, f"```json\n{GOOD}\n```", f"Here {{is}} it:\n{json.dumps(judged(), indent=2)}\nI hope it helps {{:", f"{GOOD}\n{GOOD}",
    f"<think>first {json.dumps(judged(1))}</think>{GOOD}", json.dumps(judged(4.0)), json.dumps(judged() | {"overall": 9}),
    json.dumps({"scale": 5}) + GOOD,
]  # fmt: skip


@pytest.mark.parametrize("text", RIGHT, ids=range(len(RIGHT)))
def test_answers_that_are_read(text):
    scores, reasons = read_answer(text)
    assert scores == SCORES
    assert reasons == {name: f"{name}." for name in REFERENCES}
    assert all(type(score) is int for each in scores.values() for score in each.values())


ASPECT = judged()["causes"]
WRONG = {
    "": "no JSON object with the five",
    "All of them deserve a 4.": "no JSON object with the five",
    GOOD[:-2]: "no JSON object with the five",
    "{" * 5000: "no JSON object with the five",
    '{"a":' * 5000: "no JSON object with the five",
    json.dumps({"scores": judged()}): "no JSON object with the five",
    json.dumps({k: v for k, v in judged().items() if k != "symptoms"}): "symptoms is missing",
    json.dumps(judged(causes=4)): "causes is not an object",
    json.dumps(judged(causes=ASPECT | {"clarity": None})): "causes has no clarity",
    json.dumps(judged(causes=ASPECT | {"clarity": 0})): "clarity of causes is 0, where a whole number from 1 to 5",
    json.dumps(judged(causes=ASPECT | {"clarity": 6})): "clarity of causes is 6",
    json.dumps(judged(causes=ASPECT | {"clarity": 4.5})): "clarity of causes is 4.5",
    json.dumps(judged(causes=ASPECT | {"clarity": "4"})): "clarity of causes is '4'",
    json.dumps(judged(causes=ASPECT | {"clarity": True})): "clarity of causes is True",
    json.dumps(judged(causes=ASPECT | {"clarity": [4]})): "clarity of causes is [4]",
    json.dumps(judged(causes=ASPECT | {"clarity": float("nan")})): "clarity of causes is nan",
    GOOD + json.dumps(judged(3)): "several JSON objects",
    GOOD.replace('"clarity": 4', '"clarity": 4, "clarity": 5'): "a key stands twice",
    "x" * 200_000: "200,000 characters",
}  # fmt: skip


@pytest.mark.parametrize(("text", "problem"), WRONG.items(), ids=WRONG.values())
def test_answers_that_are_not(text, problem):
    with pytest.raises(UnreadError, match=re.escape(problem)):
        read_answer(text)


def test_means():
    one = {name: dict.fromkeys(QUALITIES, 2) for name in REFERENCES}
    two = {name: {"factual_consistency": 5, "completeness": 4, "clarity": 3} for name in REFERENCES}
    two["causes"] = dict.fromkeys(QUALITIES, 1)
    found = mean_scores([one, two])
    assert found["aspects"] == {"causes": 1.5, **dict.fromkeys(REFERENCES[1:], 3.0)}
    assert found["qualities"] == pytest.approx({"factual_consistency": 3.1, "completeness": 2.7, "clarity": 2.3})
    assert found["overall"] == pytest.approx((30 + 48 + 3) / 30)
    assert mean_scores([])["overall"] is None


# --- the server -----------------------------------------------------------------------------------------------------


def test_what_is_sent(server):
    judgement = judge(server, api_key=KEY)[0].judge(CASE, "She sleeps again.")
    assert (judgement.scores, judgement.asks, judgement.answer) == (SCORES, 1, None)
    assert server.keys == [f"Bearer {KEY}"]
    (body,) = server.requests
    assert body == {
        "model": "m", "messages": [{"role": "user", "content": question(CASE, "She sleeps again.")}], "temperature": 0,
        "response_format": {"type": "json_object"},
    }  # fmt: skip


def test_no_key_is_sent_where_there_is_none(server):
    judge(server.url + "/")[0].judge(CASE, "s")
    judge(server.url + "/chat/completions")[0].judge(CASE, "s")
    assert server.keys == [None, None]


def test_garbage_then_right(server):
    server.reply = in_turn(Reply("four\ud800"), Reply(GOOD))
    judgement = judge(server)[0].judge(CASE, "s")
    assert (judgement.scores, judgement.asks) == (SCORES, 2)
    first, second = (body["messages"] for body in server.requests)
    assert second[0] == first[0]
    assert second[1] == {"role": "assistant", "content": "four?"}
    assert "no JSON object" in second[2]["content"]


@pytest.mark.parametrize("content", ["garbage", "", None])
def test_garbage_for_good_is_no_score(server, content):
    server.reply = in_turn(Reply(content))
    judgement = judge(server, asks=3)[0].judge(CASE, "s")
    assert (judgement.scores, judgement.asks, judgement.answer) == (None, 3, content or "")
    assert "no JSON object" in judgement.problem
    assert len(server.requests) == 3


def test_a_server_without_response_format(server):
    def reply(body, number):
        return Reply(status=400, body="response_format?") if "response_format" in body else Reply(GOOD)

    server.reply = reply
    someone, waits = judge(server, concurrency=1)
    found = []
    someone.judge_all([WrittenSummary(CASE, "s")] * 3, lambda place, judgement: found.append(judgement.scores))
    assert found == [SCORES] * 3
    assert waits == []
    assert ["response_format" in body for body in server.requests] == [True, False, False, False]


def test_waiting_as_long_as_the_server_asks(server):
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=100))
    server.reply = in_turn(
        Reply(status=429, headers={"Retry-After": "7"}), Reply(status=503, headers={"Retry-After": later}),
        Reply(status=500, headers={"Retry-After": "soon"}), Reply(status=502), Reply(GOOD),
    )  # fmt: skip
    someone, waits = judge(server, backoff=0.25)
    assert someone.judge(CASE, "s").scores == SCORES
    assert waits == [7, pytest.approx(100, abs=5), 1, 2]


def test_a_server_that_asks_for_too_long(server):
    server.reply = in_turn(Reply(status=429, headers={"Retry-After": "86400"}, body="quota"))
    someone, waits = judge(server)
    with pytest.raises(UserError, match=r"HTTP status 429 \(quota\); it asks to wait for 86,400 s"):
        someone.judge(CASE, "s")
    assert waits == []


def test_a_server_that_stays_broken(server):
    server.reply = in_turn(Reply(status=500, body="<h1>broken\n</h1>" * 1000))
    someone, waits = judge(server, backoff=1, retries=3)
    with pytest.raises(UserError) as error:
        someone.judge(CASE, "s")
    assert str(error.value).startswith(f"--judge_url {server.url}: HTTP status 500 (<h1>broken\\n</h1>")
    assert str(error.value).endswith("4 times")
    assert len(str(error.value)) < 500
    assert waits == [1, 2, 4]


@pytest.mark.parametrize("status", [401, 403, 404, 301])
def test_what_no_retry_helps(server, status):
    server.reply = in_turn(Reply(status=status, body=f"no, {KEY} is wrong", headers={"Location": "/v1/other"}))
    someone, waits = judge(server, api_key=KEY)
    with pytest.raises(UserError, match=rf"{server.url}: HTTP status {status} \(no, … is wrong\)") as error:
        someone.judge(CASE, "s")
    assert KEY not in str(error.value)
    assert waits == []
    assert len(server.requests) == 1
    if status == 401:
        assert str(error.value).endswith("; EMOTUNE_JUDGE_KEY or OPENAI_API_KEY holds the key")


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_that_is_refused_while_others_are_not(server, status):
    """Such as one that is too long, or that a filter takes offence at: the others are judged."""
    server.reply = lambda body, number: (
        Reply(status=status, body="filtered") if "blood" in body["messages"][0]["content"] else Reply(GOOD)
    )
    found = {}
    someone, waits = judge(server, concurrency=1)
    someone.judge_all([WrittenSummary(CASE, text) for text in ("blood", "a", "blood", "b", "blood")], found.__setitem__)
    assert [found[place].scores for place in range(5)] == [None, SCORES, None, SCORES, None]
    assert found[0].problem == f"--judge_url {server.url}: HTTP status {status} (filtered)"
    assert found[0].answer is None
    assert waits == []
    assert ["response_format" in body for body in server.requests] == [
        True,
        False,
        True,
        True,
        False,
        True,
        True,
        False,
    ]


def test_a_server_that_takes_none(server):
    server.reply = in_turn(Reply(status=400, body="temperature?"))
    found = []
    with pytest.raises(UserError, match=rf"--judge_url {server.url}: HTTP status 400 \(temperature\?\)"):
        judge(server, concurrency=1)[0].judge_all(
            [WrittenSummary(CASE, "s")] * 9, lambda place, judgement: found.append(place)
        )
    assert found == [0, 1]
    assert judge(server)[0].judge(CASE, "s").problem.endswith("HTTP status 400 (temperature?)")


def test_nobody_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    someone, waits = judge(url, retries=5)
    with pytest.raises(UserError, match=rf"--judge_url {url}: no answer \(.*\), 2 times"):
        someone.judge(CASE, "s")
    assert waits == [1]


def test_an_answer_that_does_not_come(server):
    over = threading.Event()
    server.reply = lambda body, number: Reply(GOOD) if number else (over.wait(10), Reply(GOOD))[1]
    someone, waits = judge(server, timeout=0.2)
    assert someone.judge(CASE, "s").scores == SCORES
    assert waits == [1]
    server.reply = lambda body, number: (over.wait(10), Reply(GOOD))[1]
    with pytest.raises(UserError, match=r"no answer within 0.2 s, 2 times"):
        judge(server, timeout=0.2, retries=1)[0].judge(CASE, "s")
    over.set()


@pytest.mark.parametrize(
    "body", ["<html>hello</html>", "[]", "{}", '{"choices": []}', '{"choices": [{"message": {"content": [1]}}]}', "["]
)
def test_an_address_of_something_else(server, body):
    server.reply = in_turn(Reply(body=body))
    with pytest.raises(UserError, match=f"--judge_url {server.url}: is not OpenAI-compatible"):
        judge(server)[0].judge(CASE, "s")


def test_an_endless_answer(server):
    server.reply = in_turn(Reply(body="x" * (2 << 20)))
    with pytest.raises(UserError, match="more than 1 MiB"):
        judge(server)[0].judge(CASE, "s")


@pytest.mark.parametrize("key", ["", "two words", "ключ", "line\nbreak"])
def test_keys_that_cannot_be_sent(key):
    with pytest.raises(UserError, match="the key of the judge") as error:
        Judge("http://127.0.0.1:9/v1", "m", key)
    assert not key or key not in str(error.value)


# --- the command ----------------------------------------------------------------------------------------------------


def write(path, number: int, **changes):
    rows = [
        {"id": i, "case_description": ["Woman"], "consultation_process": ["Hello"], "summary": f"number {i}."}
        | CASE.reference | changes
        for i in range(number)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return rows


def scored_by_number(body: dict, number: int) -> Reply:
    """The summary's number, from 1 to 5, is its score; the first ones come last."""
    i = int(re.search(r"number (\d+)\.", body["messages"][0]["content"])[1])
    time.sleep(0.02 * (4 - i % 5))
    return Reply(json.dumps(judged(1 + i % 5)))


def run(tmp_path, server, **settings) -> dict:
    main(Args(file=str(tmp_path / "written.jsonl"), judge_url=server.url, judge_model="m", **settings))
    return json.loads((tmp_path / "judge_scores.json").read_text(encoding="utf-8"))


def rows_of(tmp_path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "judgements.jsonl").read_text(encoding="utf-8").splitlines()]


def test_scores_in_the_order_of_the_file(tmp_path, server, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "not-this-one")
    monkeypatch.setenv("EMOTUNE_JUDGE_KEY", KEY)
    write(tmp_path / "written.jsonl", 10)
    server.reply = scored_by_number
    scores = run(tmp_path, server, concurrency=5)
    assert scores == {
        "file": "written.jsonl", "judge_model": "m", "judge_url": server.url, "n": 10, "unread": 0, "scale": [1, 5],
        "overall": 3.0, "aspects": dict.fromkeys(REFERENCES, 3.0), "qualities": dict.fromkeys(QUALITIES, 3.0),
    }  # fmt: skip
    assert [(row["id"], row["overall"]) for row in rows_of(tmp_path)] == [(str(i), 1.0 + i % 5) for i in range(10)]
    assert set(server.keys) == {f"Bearer {KEY}"}
    said = capsys.readouterr()
    assert "10 summaries, 0 unread" in said.out
    assert not any(KEY in text for text in (said.out, said.err))
    assert not any(KEY in path.read_text(encoding="utf-8") for path in tmp_path.iterdir())


def test_nothing_is_asked_twice(tmp_path, server):
    rows = write(tmp_path / "written.jsonl", 6)
    server.reply = scored_by_number
    assert run(tmp_path, server, limit=2)["n"] == 2
    assert len(server.requests) == 2
    assert run(tmp_path, server)["n"] == 6
    assert len(server.requests) == 6
    rows[0]["summary"] = "number 4."
    (tmp_path / "written.jsonl").write_text("\n".join(map(json.dumps, [rows[0], *rows])), encoding="utf-8")
    assert run(tmp_path, server, limit=2)["overall"] == 5.0
    assert len(server.requests) == 7
    assert len(rows_of(tmp_path)) == 7  # those behind --limit stay


def test_unread_answers_are_counted_and_asked_for_again(tmp_path, server):
    write(tmp_path / "written.jsonl", 3)
    server.reply = lambda body, number: (
        Reply("no idea") if "number 1." in body["messages"][0]["content"] else scored_by_number(body, number)
    )
    scores = run(tmp_path, server)
    assert (scores["n"], scores["unread"], scores["overall"]) == (3, 1, 2.0)
    row = rows_of(tmp_path)[1]
    assert (row["scores"], row["overall"], row["answer"], row["asks"]) == (None, None, "no idea", 3)
    server.requests.clear()
    server.reply = scored_by_number
    assert run(tmp_path, server)["unread"] == 0
    assert len(server.requests) == 1


def test_nothing_could_be_read(tmp_path, server, capsys):
    write(tmp_path / "written.jsonl", 1, summary="")
    server.reply = in_turn(Reply("no idea"))
    assert run(tmp_path, server)["overall"] is None
    assert "No judgement could be read" in capsys.readouterr().out


def test_judgements_of_another_judge_stay(tmp_path, server):
    write(tmp_path / "written.jsonl", 2)
    run(tmp_path, server)
    before = (tmp_path / "judgements.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"judgements.jsonl:1: a judgement with judge_model 'm', not 'other'"):
        main(Args(file=str(tmp_path / "written.jsonl"), judge_url=server.url, judge_model="other"))
    (tmp_path / "written.jsonl").rename(tmp_path / "after.jsonl")
    with pytest.raises(UserError, match=r"with file 'written.jsonl', not 'after.jsonl'; choose another --output_dir"):
        main(Args(file=str(tmp_path / "after.jsonl"), judge_url=server.url, judge_model="m"))
    assert (tmp_path / "judgements.jsonl").read_bytes() == before


def test_somebody_elses_file_stays(tmp_path, server):
    write(tmp_path / "written.jsonl", 2)
    (tmp_path / "judgements.jsonl").write_text('{"mine": 1}\n{"mine": 2}\n')
    with pytest.raises(UserError, match=r"judgements.jsonl:1: no judgement of this program; choose another"):
        run(tmp_path, server)
    assert (tmp_path / "judgements.jsonl").read_text() == '{"mine": 1}\n{"mine": 2}\n'
    assert server.requests == []


def test_a_server_that_stops_half_way(tmp_path, server):
    write(tmp_path / "written.jsonl", 4)
    server.reply = lambda body, number: scored_by_number(body, number) if number < 2 else Reply(status=401, body="")
    with pytest.raises(UserError, match=r"401 \(nothing more\).*and neither is set"):
        run(tmp_path, server, concurrency=1)
    assert len(rows_of(tmp_path)) == 2
    assert not (tmp_path / "judge_scores.json").exists()
    server.reply = scored_by_number
    run(tmp_path, server)
    assert len(server.requests) == 3 + 2


def test_nobody_there_leaves_nothing_behind(tmp_path, server):
    write(tmp_path / "written.jsonl", 2)
    server.reply = in_turn(Reply(status=401))
    with pytest.raises(UserError, match="HTTP status 401"):
        run(tmp_path, server, output_dir=str(tmp_path / "new" / "folder"))
    assert [path.name for path in tmp_path.iterdir()] == ["written.jsonl"]


def test_it_goes_on_after_a_kill(tmp_path, server):
    write(tmp_path / "written.jsonl", 6)
    over = threading.Event()
    server.reply = lambda body, number: scored_by_number(body, number) if number < 3 else (over.wait(20), Reply())[1]
    flags = ["--judge_url", server.url, "--judge_model", "m", "--concurrency", "1"]
    command = [sys.executable, "-m", "scripts.judge_summaries", str(tmp_path / "written.jsonl"), *flags]
    environment = os.environ | {"EMOTUNE_JUDGE_KEY": KEY}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as child:
        deadline = time.monotonic() + 60
        while len(server.requests) < 4 and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
        said = child.stderr.read()
    over.set()
    assert len(rows_of(tmp_path)) == 3, said
    assert KEY not in said
    with (tmp_path / "judgements.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"id": "3", "asked"')  # half a row
    server.reply = scored_by_number
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert len(server.requests) == 4 + 3
    assert "judgements.jsonl:4: half a judgement" in done.stderr
    assert "6 summaries, 0 unread" in done.stdout
    assert [row["id"] for row in rows_of(tmp_path)] == list("012345")
    assert not any(KEY in text for text in (done.stdout, done.stderr, (tmp_path / "judgements.jsonl").read_text()))

"""A language model that judges summaries of counselling cases, behind any OpenAI-compatible address. (no torch)

What it is asked, and whose measure this is, stands in data/summaries/judge_questions.py.
"""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from data.arguments import UserError, one_line
from data.summaries.cases import Case, WrittenSummary
from data.summaries.judge_questions import UnreadError, question, question_again, read_answer

LONGEST_WAIT = 600  # seconds: a server that asks for more is not waited for
_RETRIED = (408, 425, 429)  # and all from 500
_OF_ONE = (400, 413, 422)  # what is wrong with one request, such as its length or what a filter makes of it
_MOST_REFUSALS = 3  # in a row from the first on: then it is the server, or the model, that takes none of them
_MOST_BYTES = 1 << 20  # of what a server answers
_REPEATED = 4000  # characters of an unread answer that the judge is shown again
_SECRET = 8  # characters from which a key is one; servers without keys are given "EMPTY" or "none"


class RefusedError(UserError):
    """A server does not take one request, and may well take others."""


@dataclass(frozen=True)
class Judgement:
    """What the judge says of one summary.

    Attributes:
        scores: aspect -> quality -> 1 to 5; None where no answer could be read.
        reasons: aspect -> a sentence.
        problem, answer: of an unread one, what was wrong with its last answer, and that answer; None where the server
            refused to give one.
        asks: how often it was asked for.
    """

    scores: dict[str, dict[str, int]] | None
    reasons: dict[str, str] = field(default_factory=dict)
    problem: str | None = None
    answer: str | None = None
    asks: int = 1


def checked_url(url: str) -> str:
    """An address without what clients add to it: `http://host:8000/v1/` -> `http://host:8000/v1`.

    Raises:
        UserError: it is none of http or https, or holds what may be a secret.
    """
    import httpx

    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise UserError(f"--judge_url {one_line(url, 200)}: is no address ({one_line(error, 100)})") from error
    if parsed.userinfo or parsed.query or parsed.fragment:  # not shown: it would be kept in files, too
        raise UserError("--judge_url: holds a password, a query or a fragment; a key goes into EMOTUNE_JUDGE_KEY")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UserError(
            f"--judge_url {one_line(url, 200)}: is no address; expected one such as http://127.0.0.1:8000/v1"
        )
    return url.rstrip("/").removesuffix("/chat/completions")


class Judge:
    """A model behind an OpenAI-compatible address, at temperature 0.

    Args:
        url: up to what stands before `/chat/completions`.
        model: its name there.
        api_key: sent as a bearer token; never shown or written, also where the server repeats it.
        timeout: seconds for an answer.
        retries: how often a request is sent again that was not answered, or with status 408, 425, 429 or from 500. An
            address at which nobody has answered yet gets one.
        asks: how often one judgement is asked for at most, where answers cannot be read.
        concurrency: requests at a time.
        backoff: seconds before the first retry, twice as many before each one after it; a server's `Retry-After`
            counts where it is longer.
        sleep: what waits.

    Raises:
        UserError: a bad address or key.
    """

    def __init__(
        self, url: str, model: str, api_key: str | None = None, timeout: float = 60, retries: int = 5, asks: int = 3,
        concurrency: int = 4, backoff: float = 1, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ):  # fmt: skip
        self.url, self.model = checked_url(url), model
        if api_key is not None and not re.fullmatch(r"[!-~]+", api_key):
            raise UserError("the key of the judge holds a space or a character that no key has, or is empty")
        self._key, self._timeout, self._retries, self._asks = api_key, timeout, retries, asks
        self._concurrency, self._backoff, self._sleep = concurrency, backoff, sleep
        self._json_mode = True  # until a server refuses it
        self._answered = self._worked = False  # whether there was any answer yet, and one that is none of an error
        self._refusals = 0

    def judge(self, case: Case, summary: str) -> Judgement:
        """One judgement; see `judge_all`."""
        found: list[Judgement] = []
        self.judge_all([WrittenSummary(case, summary)], lambda _, judgement: found.append(judgement))
        return found[0]

    def judge_all(self, summaries: Iterable[WrittenSummary], done: Callable[[int, Judgement], None]) -> None:
        """Judge summaries of cases, several at a time.

        Args:
            summaries: what is judged.
            done: is called with a summary's place (from 0) and judgement as soon as it is there.

        Raises:
            ValueError: a case lacks reference texts.
            UserError: the server refuses all of them, or does not answer; what was judged before has been handed to
                `done`. One that it refuses while it takes others is unread.
        """
        try:
            asyncio.run(self._judge_all(summaries, done))
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _judge_all(self, summaries, done) -> None:
        import httpx

        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        try:
            client = httpx.AsyncClient(headers=headers, timeout=self._timeout)
        except (ImportError, ValueError, httpx.InvalidURL) as error:  # as a SOCKS proxy needs another package
            raise UserError(f"--judge_url {self.url}: cannot be asked through the proxy ({one_line(error)})") from error
        waiting = iter(enumerate(summaries))
        async with client, asyncio.TaskGroup() as group:
            for _ in range(self._concurrency):
                group.create_task(self._work(client, waiting, done))

    async def _work(self, client, waiting, done) -> None:
        for place, written in waiting:
            done(place, await self._judged(client, written.case, written.text))

    async def _judged(self, client, case: Case, summary: str) -> Judgement:
        first = {"role": "user", "content": question(case, summary)}
        messages = [first]
        for ask in range(1, self._asks + 1):
            try:
                answer = await self._answer(client, messages)
            except RefusedError as error:
                self._refusals += 1
                if not self._worked and self._refusals >= _MOST_REFUSALS:
                    raise
                return Judgement(None, problem=str(error), asks=ask)
            try:
                return Judgement(*read_answer(answer), asks=ask)
            except UnreadError as error:
                problem = str(error)
            messages = [
                first,
                {"role": "assistant", "content": answer[:_REPEATED].strip() or "…"},
                {"role": "user", "content": question_again(case, problem)},
            ]
        return Judgement(None, problem=problem, answer=answer, asks=ask)

    async def _answer(self, client, messages: list[dict[str, str]]) -> str:
        """What the model says; waits and sends again where that may help."""
        import httpx

        json_mode, failures = self._json_mode, 0
        while True:
            wait, retries = 0.0, self._retries
            try:
                status, headers, text = await self._post(client, messages, json_mode)
            except (httpx.RequestError, TimeoutError) as error:
                problem = f"no answer ({one_line(error)})"
                if isinstance(error, httpx.TimeoutException | TimeoutError):
                    problem = f"no answer within {self._timeout:g} s"
                elif not self._answered:
                    retries = min(1, retries)
            else:
                self._answered = True
                if status == 200:
                    self._worked = True
                    self._json_mode = self._json_mode and json_mode
                    return self._content(text)
                if status in _OF_ONE and json_mode:  # a server that knows no response_format says so in this way
                    json_mode = False
                    continue
                problem = f"HTTP status {status} ({one_line(text.strip(), 300) or 'nothing more'})"
                if status not in _RETRIED and status < 500:
                    refused = RefusedError if status in _OF_ONE else UserError
                    raise refused(f"--judge_url {self.url}: {problem}{self._hint(status)}")
                wait = _retry_after(headers.get("Retry-After", ""))
            failures += 1
            if failures > retries:
                raise UserError(f"--judge_url {self.url}: {problem}, {failures} times")
            if wait > LONGEST_WAIT:
                raise UserError(f"--judge_url {self.url}: {problem}; it asks to wait for {wait:,.0f} s")
            await self._sleep(max(wait, self._backoff * 2 ** (failures - 1)))

    async def _post(self, client, messages: list[dict[str, str]], json_mode: bool):
        """Status, headers and text of one answer, all within the timeout."""
        body = {"model": self.model, "messages": messages, "temperature": 0}
        if json_mode:
            body["response_format"] = {"type": "json_object"}
        content = bytearray()
        async with (
            asyncio.timeout(self._timeout),
            client.stream("POST", f"{self.url}/chat/completions", json=body) as response,
        ):
            async for chunk in response.aiter_bytes():
                content += chunk
                if len(content) > _MOST_BYTES:
                    raise UserError(f"--judge_url {self.url}: its answer has more than {_MOST_BYTES >> 20} MiB")
        return response.status_code, response.headers, self._without_key(content.decode("utf-8", "replace"))

    def _content(self, text: str) -> str:
        try:
            content = json.loads(text)["choices"][0]["message"]["content"]
        except (ValueError, RecursionError, LookupError, TypeError) as error:
            raise UserError(
                f"--judge_url {self.url}: is not OpenAI-compatible; it answers {one_line(text.strip(), 200)!r}"
            ) from error
        if not isinstance(content, str | None):
            raise UserError(
                f"--judge_url {self.url}: is not OpenAI-compatible; content is {one_line(repr(content), 60)}"
            )
        # half a character, which JSON can spell, can be neither sent nor written
        return self._without_key((content or "").encode("utf-8", "replace").decode())

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "…") if len(self._key or "") >= _SECRET else text

    def _hint(self, status: int) -> str:
        if status in (401, 403):
            return "; EMOTUNE_JUDGE_KEY or OPENAI_API_KEY holds the key" + ("" if self._key else ", and neither is set")
        return "; is there a /v1 missing, or --judge_model another?" if status == 404 else ""


def _retry_after(value: str) -> float:
    """Seconds of a `Retry-After`, which may also be a date; 0 where it is neither."""
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", value.strip()):
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value).astimezone(UTC) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return 0.0

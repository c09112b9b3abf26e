"""A small OpenAI-compatible server on 127.0.0.1 that judges as a test tells it to."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from data.summaries.cases import REFERENCES
from data.summaries.judge_questions import QUALITIES


def judged(score: int = 4, **changes) -> dict:
    """A right answer, all scores the same; `changes` are made to its aspects."""
    return {name: dict.fromkeys(QUALITIES, score) | {"reason": f"{name}."} for name in REFERENCES} | changes


@dataclass
class Reply:
    """What is sent back: the words of the model, or with another status than 200 the body itself."""

    content: str | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None


@dataclass
class JudgeServer:
    """`reply` gets the body of a request and its number, from 0; `requests` and `keys` collect what was sent."""

    reply: Callable[[dict, int], Reply] = lambda body, number: Reply(json.dumps(judged()))
    requests: list[dict] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    url: str = ""

    def __enter__(self):
        handler = type("Handler", (_Handler,), {"judge": self, "lock": threading.Lock()})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    judge: JudgeServer
    lock: threading.Lock
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            number = len(self.judge.requests)
            self.judge.requests.append(body)
            self.judge.keys.append(self.headers["Authorization"])
        if self.path != "/v1/chat/completions":
            reply = Reply(status=404, body="no such page")
        else:
            reply = self.judge.reply(body, number)
        text = reply.body
        if text is None:
            text = json.dumps({"choices": [{"message": {"role": "assistant", "content": reply.content}}]})
        try:
            self.send_response(reply.status)
            for name, value in ({"Content-Length": str(len(text.encode()))} | reply.headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text.encode())
        except OSError:
            pass  # the client has hung up, as after its timeout

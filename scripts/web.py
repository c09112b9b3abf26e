"""A page to try a model on, at http://127.0.0.1:7860 and for this machine alone.

    python -m scripts.web --model_path outputs/merged
    python -m scripts.web --model_path models/smollm2-135m-instruct --task emotion --port 8080

One text with the probability of each label, several texts (one a line), or a file in any layout that inference.py
reads; what was predicted for several can be saved as predictions.csv.
"""

import csv
import html
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from data.arguments import UserError, check_at_least, flag, run
from data.contract import Precision, contract_for
from data.engine.models import check_model_path
from data.engine.predictor import Predictor, check_promise
from data.files import exclusive
from data.labels import DEMO_TEXTS
from data.loading import read_examples
from data.predictions import Prediction
from data.tasks import Task, check_has_labels

if TYPE_CHECKING:
    from gradio import Blocks

# more is for inference.py, which goes on where it was stopped
MOST_ROWS = 10_000  # of a file, or lines
MOST_CHARACTERS = 100_000  # of a text; no model reads as much of one
MOST_IN_ALL = 5_000_000  # characters of all rows
MOST_BYTES = 20_000_000  # of a file
KEPT_SECONDS = 3600  # a table to be saved
HOSTS = ("127.0.0.1", "localhost", "[::1]")
FOLDER = "emotune-web-"
# what makes a spreadsheet take a cell for a formula (OWASP, "CSV Injection"), the full-width signs of Chinese included
FORMULA = re.compile(r"[=+\-@\t\r\n＝＋－＠]")
HEADER = ["text", "labels", "confidence"]


@dataclass
class Args:
    model_path: str | None = flag(None, "hub id, or a directory: an untuned model, a run, or a merged model")
    task: str | None = flag(None, "task to ask an untuned model for: a built-in task, single_label or multi_label")
    label_path: str | None = flag(None, "labels.txt of your own task: one label a line, line number = id")
    objective: Literal["generate", "score"] | None = flag(None, "how an untuned model answers (default: generate)")
    coverage: float | None = flag(
        None, "also give the set of labels that holds this share of the right ones, such as 0.9, which the model was "
        "calibrated for (--coverage in training, or scripts.calibrate)",
    )  # fmt: skip
    max_set_size: int | None = flag(None, "with --coverage: abstain where the set has more labels (default: never)")
    port: int = flag(7860, "port of the page; 0 = any that is free")
    batch_size: int = flag(32, "texts a batch")
    precision: Precision = flag(
        "auto", "number format of the weights; auto = bf16 or fp32, whichever is faster by measure; on a GPU "
        "bf16, or fp16 where it has no bf16",
    )  # fmt: skip
    device: str | None = flag(None, "cpu, cuda, cuda:1, mps ... (default: the first GPU, else the CPU)")

    def __post_init__(self):
        if self.model_path is None:
            raise UserError("--model_path is needed: a hub id or a directory")
        check_at_least(self, port=0, batch_size=1)
        if self.port > 65535:
            raise UserError(f"--port {self.port}: must be at most 65535")


def free_port(port: int) -> int:
    """`port`, or any free one for 0.

    Raises:
        UserError: something else listens there, or this user may not.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(f"--port {port}: {error.strerror}; choose another") from error
        return probe.getsockname()[1]


# --- who may ask, and what stays ------------------------------------------------------------------------------------


class SameSite:
    """ASGI middleware: refuses what a page of another site asks for in the user's browser."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        origin = dict(scope.get("headers", ())).get(b"origin", b"").decode("latin-1")
        own = re.fullmatch(rf"https?://({'|'.join(map(re.escape, HOSTS))})(:\d+)?", origin)
        if origin and not own:
            from starlette.responses import PlainTextResponse

            await PlainTextResponse("asked for by a page of another site", status_code=403)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


@contextmanager
def private_folder() -> Iterator[None]:
    """A folder for uploads and tables, and all else that is temporary, which goes when the block ends.

    One whose process was killed goes when the next begins.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{FOLDER}*"):
        with suppress(UserError, OSError):  # in use, or another user's
            if left.is_dir() and not left.is_symlink() and os.access(left, os.W_OK):
                with exclusive(left, "page"):
                    shutil.rmtree(left)
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix=FOLDER, ignore_cleanup_errors=True) as folder, exclusive(folder, "page"):
        os.environ["GRADIO_TEMP_DIR"] = tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = before


# --- what the page shows --------------------------------------------------------------------------------------------


def check_texts(texts: Iterable[str]) -> list[str]:
    """The texts that are not empty.

    Raises:
        UserError: too many or too long ones for a page that is waited for, or one that is not Unicode.
    """
    kept, characters = [], 0
    for text in texts:
        if len(text) > MOST_CHARACTERS:
            raise UserError(f"a text of {len(text):,} characters: at most {MOST_CHARACTERS:,} are read")
        if not text.strip():
            continue
        if not text.isprintable() and re.search(r"[\ud800-\udfff]", text):
            raise UserError("a text holds half a character (a lone surrogate)")
        kept.append(text)
        characters += len(text)
        if len(kept) > MOST_ROWS or characters > MOST_IN_ALL:
            raise UserError(
                f"more than {MOST_ROWS:,} rows or {MOST_IN_ALL:,} characters: use inference.py --test_data_path"
            )
    return kept


def answer(predictor: Predictor, text: str) -> tuple[str, dict[str, float]]:
    """The labels of one text in words, and the probability of each label."""
    if not check_texts([text]):
        return "", {}
    prediction = predictor.predict(text)
    promised = f"\n\nSet: {prediction.set_in_words}" if prediction.label_set is not None else ""
    return f"### {_labels(prediction)}{promised}", prediction.probabilities or {}


def table(predictor: Predictor, texts: Iterable[str]) -> tuple[list[list[str]], str | None]:
    """A row for each text, and the same as a CSV file with the probabilities.

    A cell of the file that a spreadsheet would take for a formula begins with an apostrophe.
    """
    texts = check_texts(texts)
    if not texts:
        return [], None
    predictions = predictor.predict_batch(texts)
    rows = [
        [text, _labels(p), f"{p.confidence:.1%}", *([] if p.label_set is None else [p.set_in_words])]
        for text, p in zip(texts, predictions, strict=True)
    ]
    path = Path(tempfile.mkdtemp(prefix="emotune-")) / "predictions.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as file:  # with a mark by which Excel knows UTF-8
        writer = csv.writer(file)
        writer.writerow(map(plain_cell, [*header(predictor), *predictor.task.labels]))
        for (text, labels, _, *promised), p in zip(rows, predictions, strict=True):
            probabilities = (p.probabilities or {}).values()
            writer.writerow(
                [
                    plain_cell(text),
                    plain_cell(labels),
                    f"{p.confidence:.6f}",
                    *map(plain_cell, promised),
                    *(f"{value:.6f}" for value in probabilities),
                ]
            )
    return rows, str(path)


def header(predictor: Predictor) -> list[str]:
    """The columns of the table."""
    return HEADER if predictor.promised is None else [*HEADER, f"{predictor.promised.level:g} set"]


def plain_cell(text: str) -> str:
    """`=1+1` -> `'=1+1`: a text that no spreadsheet calculates."""
    return f"'{text}" if FORMULA.match(text) else text


def texts_of(path: str, task: Task) -> Iterator[str]:
    """The texts of an uploaded file, one by one."""
    return (example.text for example in read_examples(path, task, "file", labels_required=False))


def _labels(prediction: Prediction) -> str:
    return prediction.in_words("–")


def build(predictor: Predictor, title: str) -> "Blocks":
    """The page."""
    import gradio

    def shown(function: Callable) -> Callable:
        """A mistake becomes a message of the page."""

        @wraps(function)
        def wrapper(value):
            try:
                return function(value)
            except UserError as error:
                raise gradio.Error(html.escape(str(error), quote=False), print_exception=False) from error

        return wrapper

    @shown
    def read(text: str) -> tuple[str, dict[str, float]]:
        return answer(predictor, text)

    @shown
    def read_all(texts: str) -> tuple[list, str | None]:
        return table(predictor, texts.split("\n"))

    @shown
    def read_file(path: str | None) -> tuple[list, str | None]:
        if path is None:
            return [], None
        try:
            return table(predictor, texts_of(path, predictor.task))
        except UserError as error:
            raise UserError(str(error).replace(str(path), Path(path).name)) from error
        finally:
            Path(path).unlink(missing_ok=True)  # Gradio lets nobody name a file that was not uploaded

    task = predictor.task
    kind = "one a text" if task.kind == "single_label" else "one or more a text"
    with gradio.Blocks(title=f"EmoTune: {title}", analytics_enabled=False, delete_cache=(60, KEPT_SECONDS)) as page:
        gradio.Markdown(f"## EmoTune\n`{title}`, task {task.name}: {len(task.labels)} labels, {kind}")
        with gradio.Tab("One text"):
            text = gradio.Textbox(label="Text", lines=3, placeholder=DEMO_TEXTS[0], elem_id="text")
            button = gradio.Button("Read", variant="primary", elem_id="read")
            labels = gradio.Markdown(elem_id="labels")
            bars = gradio.Label(label="Probabilities", num_top_classes=10, show_heading=False, elem_id="bars")
            gradio.Examples([[example] for example in DEMO_TEXTS], text)
            asked = [button.click, text.submit]
            gradio.on(asked, read, text, [labels, bars], api_name="read")
        with gradio.Tab("Several"):
            several = gradio.Textbox(label="Texts, one a line", lines=6, elem_id="several")
            read_several = gradio.Button("Read all", variant="primary", elem_id="read-several")
            upload = gradio.File(label="or a file: TSV, CSV, JSON Lines, Parquet, text", type="filepath", height=140)
            found = gradio.Dataframe(headers=header(predictor), label="Labels", wrap=True, elem_id="found")
            saved = gradio.DownloadButton("Save as CSV")
            read_several.click(read_all, several, [found, saved], api_name="read_all")
            upload.change(read_file, upload, [found, saved], api_name="read_file")
    return page


def main(args: Args) -> None:
    check_model_path(args.model_path)
    contract = contract_for(args.model_path, args.task, args.label_path, objective=args.objective)
    check_has_labels(contract.task, args.task, args.model_path, "the page")
    check_promise(contract, args.coverage, args.max_set_size, args.model_path)
    port = free_port(args.port)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):  # an exit that leaves nothing behind
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with private_folder():
        serve(args, port)


def serve(args: Args, port: int) -> None:
    """Load the model and show the page until it is stopped."""
    try:
        import gradio  # which looks for its temporary folder here
    except ImportError as error:
        raise UserError("the page needs Gradio (pip install -r requirements.txt)") from error
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    predictor = Predictor(
        args.model_path, args.task, label_path=args.label_path, batch_size=args.batch_size, precision=args.precision,
        device=args.device, objective=args.objective, coverage=args.coverage, max_set_size=args.max_set_size,
    )  # fmt: skip
    page = build(predictor, Path(args.model_path).name)
    fonts = ["system-ui", "Segoe UI", "Roboto", "Noto Sans CJK SC", "sans-serif"]  # none from elsewhere
    print(f"http://127.0.0.1:{port} (Ctrl-C ends it)", flush=True)
    page.launch(
        server_name="127.0.0.1", server_port=port, share=False, quiet=True, max_file_size=MOST_BYTES, show_error=True,
        run_history=False,  # of the browser, which would keep the texts
        # a name of another site may lead to this machine (DNS rebinding)
        app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS), Middleware(SameSite)]},
        theme=gradio.themes.Default(font=fonts, font_mono=["monospace"]),
    )  # fmt: skip


if __name__ == "__main__":
    run(main, Args, {})

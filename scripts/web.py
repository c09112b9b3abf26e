"""A page to try a model on, at http://127.0.0.1:7860 and for this machine alone.

    python -m scripts.web --model_path outputs/merged
    python -m scripts.web --model_path models/smollm2-135m-instruct --task emotion --port 8080

One text with the probability of each label, several texts (one a line), or a file in any layout that inference.py
reads; what was predicted for several can be saved as predictions.csv.
"""

import csv
import os
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from data.arguments import UserError, check_at_least, flag, run
from data.engine.models import check_model_path
from data.engine.predictor import DEMO_TEXTS, Predictor
from data.labels import Prediction
from data.loading import load_examples
from data.tasks import Task

if TYPE_CHECKING:
    from gradio import Blocks

MOST_ROWS = 10_000  # of a file: more are for inference.py, which goes on where it was stopped
HEADER = ["text", "labels", "confidence"]


@dataclass
class Args:
    model_path: str | None = flag(None, "hub id, or a directory: an untuned model, a run, or a merged model")
    task: str | None = flag(None, "task to ask an untuned model for: a built-in task, single_label or multi_label")
    label_path: str | None = flag(None, "labels.txt of your own task: one label a line, line number = id")
    objective: Literal["generate", "score"] | None = flag(None, "how an untuned model answers (default: generate)")
    port: int = flag(7860, "port of the page; 0 = any that is free")
    batch_size: int = flag(32, "texts a batch")
    precision: Literal["bf16", "fp16", "fp32"] = flag("bf16", "number format of the weights")
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


# --- what the page shows --------------------------------------------------------------------------------------------


def answer(predictor: Predictor, text: str) -> tuple[str, dict[str, float]]:
    """The labels of one text in words, and the probability of each label."""
    if not text.strip():
        return "", {}
    prediction = predictor.predict(text)
    return f"### {_labels(prediction)}", prediction.probabilities or {}


def table(predictor: Predictor, texts: Sequence[str]) -> tuple[list[list[str]], str | None]:
    """A row for each text, and the same as a CSV file with the probabilities."""
    texts = [text for text in texts if text.strip()]
    if not texts:
        return [], None
    predictions = predictor.predict_batch(texts)
    rows = [[text, _labels(p), f"{p.confidence:.1%}"] for text, p in zip(texts, predictions, strict=True)]
    path = Path(tempfile.mkdtemp(prefix="emotune-")) / "predictions.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as file:  # with a mark by which Excel knows UTF-8
        writer = csv.writer(file)
        writer.writerow([*HEADER, *predictor.task.labels])
        for (text, labels, _), p in zip(rows, predictions, strict=True):
            probabilities = (p.probabilities or {}).values()
            writer.writerow([text, labels, f"{p.confidence:.6f}", *(f"{value:.6f}" for value in probabilities)])
    return rows, str(path)


def texts_of(path: str, task: Task) -> list[str]:
    """The texts of an uploaded file."""
    examples = load_examples(path, task, "file", labels_required=False)
    if len(examples) > MOST_ROWS:
        raise UserError(f"{len(examples)} rows: for more than {MOST_ROWS}, use inference.py --test_data_path")
    return [example.text for example in examples]


def _labels(prediction: Prediction) -> str:
    return ", ".join(prediction.labels) or "–"


def build(predictor: Predictor, title: str) -> "Blocks":
    """The page."""
    import gradio

    def read_file(path: str | None) -> tuple[list, str | None]:
        if path is None:
            return [], None
        try:
            return table(predictor, texts_of(path, predictor.task))
        except UserError as error:
            raise gradio.Error(str(error).replace(str(path), Path(path).name)) from error

    task = predictor.task
    kind = "one a text" if task.kind == "single_label" else "one or more a text"
    with gradio.Blocks(title=f"EmoTune: {title}", analytics_enabled=False) as page:
        gradio.Markdown(f"## EmoTune\n`{title}`, task {task.name}: {len(task.labels)} labels, {kind}")
        with gradio.Tab("One text"):
            text = gradio.Textbox(label="Text", lines=3, placeholder=DEMO_TEXTS[0], elem_id="text")
            button = gradio.Button("Read", variant="primary", elem_id="read")
            labels = gradio.Markdown(elem_id="labels")
            bars = gradio.Label(label="Probabilities", num_top_classes=10, show_heading=False, elem_id="bars")
            gradio.Examples([[example] for example in DEMO_TEXTS], text)
            asked = [button.click, text.submit]
            gradio.on(asked, lambda t: answer(predictor, t), text, [labels, bars], api_name="read")
        with gradio.Tab("Several"):
            several = gradio.Textbox(label="Texts, one a line", lines=6, elem_id="several")
            read_several = gradio.Button("Read all", variant="primary", elem_id="read-several")
            upload = gradio.File(label="or a file: TSV, CSV, JSON Lines, Parquet, text", type="filepath", height=140)
            found = gradio.Dataframe(headers=HEADER, label="Labels", wrap=True, elem_id="found")
            saved = gradio.DownloadButton("Save as CSV")
            read_several.click(lambda t: table(predictor, t.split("\n")), several, [found, saved], api_name="read_all")
            upload.change(read_file, upload, [found, saved], api_name="read_file")
    return page


def main(args: Args) -> None:
    check_model_path(args.model_path)
    port = free_port(args.port)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise UserError("the page needs Gradio (pip install -r requirements.txt)") from error
    predictor = Predictor(
        args.model_path, args.task, label_path=args.label_path, batch_size=args.batch_size, precision=args.precision,
        device=args.device, objective=args.objective, probabilities=True,
    )  # fmt: skip
    page = build(predictor, Path(args.model_path).name)
    fonts = ["system-ui", "Segoe UI", "Roboto", "Noto Sans CJK SC", "sans-serif"]  # none from elsewhere
    print(f"http://127.0.0.1:{port} (Ctrl-C ends it)", flush=True)
    page.launch(
        server_name="127.0.0.1", server_port=port, share=False, quiet=True,
        theme=gradio.themes.Default(font=fonts, font_mono=["monospace"]),
    )  # fmt: skip


if __name__ == "__main__":
    run(main, Args, {})

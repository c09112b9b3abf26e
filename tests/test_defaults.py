"""What main_SFT.py takes where no flag says: by model, data set, tuning and objective."""

import json

import pytest

from data.arguments import UserError
from data.labels import LabelTask
from data.tasks import BUILT_IN_TASKS
from main_SFT import Args, warm_up, with_defaults

OWN = LabelTask("own", "multi_label", ("owl", "wren"), "Which? {text}")
NAMES = (
    "objective", "head", "prompt", "learning_rate", "lora_r", "lora_alpha", "lora_dropout", "num_epochs", "batch_size",
    "warmup_steps", "weight_decay", "eval_steps", "save_steps", "save_total_limit",
)  # fmt: skip
LONG_CASES = {  # --task emotion-summary
    "tuning": "qlora", "lora_r": 64, "lora_alpha": 16, "lora_dropout": 0.05, "learning_rate": 2e-4, "batch_size": 2,
    "gradient_accumulation_steps": 8, "num_epochs": 3.0, "max_length": 8192, "gradient_checkpointing": True,
    "objective": "generate", "head": None, "prompt": "task",
}  # fmt: skip
OF_LABEL_TASKS = {
    "tuning": "lora", "gradient_accumulation_steps": 1, "max_length": 512, "gradient_checkpointing": False,
}  # fmt: skip


@pytest.fixture
def filled(tmp_path):
    """Fill in the flags of a run on a decoder ("qwen2") or an encoder ("bert"); only its config.json is read."""

    def fill(task: str, model: str = "qwen2", **flags) -> Args:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model}))
        args = Args(model_path=str(tmp_path), task=task, train_data_path="x", **flags)
        return with_defaults(args, BUILT_IN_TASKS.get(task, OWN))

    return fill


@pytest.mark.parametrize(
    ("task", "model", "flags", "expected"),
    [
        # the data set's own settings, by tuning
        ("sst2", "qwen2", {}, ("classify", "mlp", "task", 5e-4, 64, 16, 0.1, 8, 8, 0, 0.01, 100, 200, 2)),
        ("sst2", "qwen2", {"tuning": "full"}, ("classify", "linear", "task", 2e-5, 16, 32, 0.0, 5, 4, 0, 0.01, 50, 100, 2)),
        ("chnsenticorp", "qwen2", {"tuning": "qlora"}, ("score", None, "task", 1e-4, 8, 16, 0.05, 3, 8, 0, 0.01, 100, 100, 3)),
        ("emotion", "qwen2", {}, ("classify", "linear", "text_only", 2e-4, 8, 16, 0.0, 3, 8, 500, 0.01, None, None, 2)),
        # no settings for this tuning, or this task
        ("emotion", "qwen2", {"tuning": "full"}, ("generate", None, "task", 2e-5, 16, 32, 0.0, 3, 8, 0, 0.01, None, None, 2)),
        ("emotion", "qwen2", {"tuning": "head"}, ("classify", "linear", "task", 1e-3, 16, 32, 0.0, 3, 8, 0, 0.01, None, None, 2)),
        ("goemotions-group", "qwen2", {}, ("generate", None, "task", 2e-4, 16, 32, 0.0, 3, 8, 0, 0.01, None, None, 2)),
        ("multi_label", "qwen2", {"tuning": "qlora"}, ("generate", None, "task", 2e-4, 16, 32, 0.0, 3, 8, 0, 0.01, None, None, 2)),
        # another objective than the data set's: neither its wording nor its head
        ("emotion", "qwen2", {"objective": "generate"}, ("generate", None, "task", 2e-4, 8, 16, 0.0, 3, 8, 500, 0.01, None, None, 2)),
        ("sst2", "qwen2", {"objective": "score"}, ("score", None, "task", 5e-4, 64, 16, 0.1, 8, 8, 0, 0.01, 100, 200, 2)),
        ("chnsenticorp", "qwen2", {"objective": "classify"}, ("classify", "linear", "task", 1e-4, 8, 16, 0.05, 3, 8, 0, 0.01, 100, 100, 3)),
        # an encoder: a head that reads the text alone
        ("sst2", "bert", {}, ("classify", "mlp", "text_only", 5e-4, 64, 16, 0.1, 8, 8, 0, 0.01, 100, 200, 2)),
        ("chnsenticorp", "bert", {}, ("classify", "linear", "text_only", 1e-4, 8, 16, 0.05, 3, 8, 0, 0.01, 100, 100, 3)),
        ("chnsenticorp", "bert", {"tuning": "full"}, ("classify", "linear", "text_only", 1e-4, 16, 32, 0.0, 2, 16, 0, 0.01, 200, 200, 2)),
        ("chnsenticorp", "qwen2", {"tuning": "full"}, ("generate", None, "task", 2e-5, 16, 32, 0.0, 3, 8, 0, 0.01, None, None, 2)),
        ("goemotions-group", "bert", {"tuning": "full"}, ("classify", "linear", "text_only", 2e-5, 16, 32, 0.0, 3, 8, 0, 0.01, None, None, 2)),
        # what is given stays
        ("sst2", "qwen2", {"batch_size": 3, "eval_steps": 7, "head": "linear"}, ("classify", "linear", "task", 5e-4, 64, 16, 0.1, 8, 3, 0, 0.01, 7, None, 2)),  # 200 would be no multiple of 7
        ("emotion", "qwen2", {"warmup_steps": 0, "lora_dropout": 0.2, "prompt": "task"}, ("classify", "linear", "task", 2e-4, 8, 16, 0.2, 3, 8, 0, 0.01, None, None, 2)),
    ],
)  # fmt: skip
def test_layers(filled, task, model, flags, expected):
    args = filled(task, model, **flags)
    assert dict(zip(NAMES, (getattr(args, name) for name in NAMES), strict=True)) == dict(
        zip(NAMES, expected, strict=True)
    )


def test_nothing_else_is_filled_in(filled):
    args = filled("sst2")
    given = Args(model_path=args.model_path, task="sst2", train_data_path="x")
    changed = {name for name, value in vars(args).items() if value != getattr(given, name)}
    assert changed <= {*NAMES, "warmup_ratio", *OF_LABEL_TASKS}


def values(args: Args, names) -> dict:
    return {name: getattr(args, name) for name in names}


@pytest.mark.parametrize("task", ["sst2", "emotion", "chnsenticorp", "goemotions-original", "multi_label"])
def test_tasks_of_labels_have_short_texts(filled, task):
    assert values(filled(task), OF_LABEL_TASKS) == OF_LABEL_TASKS


@pytest.mark.parametrize("task", ["emotion-summary", "emotion-summary-en", "emotion-summary-zh"])
def test_summaries_of_long_cases(filled, task):
    assert values(filled(task), LONG_CASES) == LONG_CASES
    adapter_on_the_whole = values(filled(task, tuning="lora"), LONG_CASES)
    assert adapter_on_the_whole == LONG_CASES | {"tuning": "lora"}
    whole = filled(task, tuning="full")
    assert (whole.max_length, whole.gradient_checkpointing, whole.batch_size, whole.learning_rate) == (
        8192, True, 8, 2e-5,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tuning", "lora"), ("lora_r", 8), ("lora_alpha", 32), ("lora_dropout", 0.0), ("learning_rate", 1e-5),
        ("batch_size", 1), ("gradient_accumulation_steps", 1), ("num_epochs", 1.0), ("max_length", 4096),
        ("gradient_checkpointing", False),
    ],
)  # fmt: skip
def test_each_value_of_summaries_gives_way_to_its_flag(filled, name, value):
    assert values(filled("emotion-summary", **{name: value}), LONG_CASES) == LONG_CASES | {name: value}


@pytest.mark.parametrize("objective", ["generate", "score"])
def test_an_encoder_has_to_classify(filled, objective):
    with pytest.raises(UserError, match=f"--objective {objective}: .* is an encoder, which has to use classify"):
        filled("chnsenticorp", "bert", objective=objective)


def test_an_encoder_writes_no_summaries(filled):
    with pytest.raises(UserError, match=r"^--task emotion-summary: .* is an encoder, which writes nothing$"):
        filled("emotion-summary", "bert")


def test_flags_are_checked_against_what_was_filled_in(filled):
    with pytest.raises(UserError, match="--head mlp: needs --objective classify; score has no head"):
        filled("chnsenticorp", head="mlp")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, (0.05, 500)),  # the data set's own
        ({"warmup_steps": 0}, (0.05, 0)),
        ({"warmup_ratio": 0.2}, (0.2, 0)),
        ({"warmup_ratio": 0.2, "warmup_steps": 0}, (0.2, 0)),
        ({"warmup_steps": 7}, (0.05, 7)),
    ],
)
def test_the_warm_up_that_was_asked_for(filled, flags, expected):
    args = filled("emotion", **flags)
    assert (args.warmup_ratio, args.warmup_steps) == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"warmup_ratio": 0.2, "warmup_steps": 7}, "--warmup_steps 7 and --warmup_ratio 0.2: give one of them"),
        ({"warmup_ratio": 0.2, "lr_scheduler_type": "constant"}, "--warmup_ratio 0.2: does nothing without another"),
        ({"warmup_steps": 7, "lr_scheduler_type": "constant"}, "--warmup_steps 7: does nothing without another"),
    ],
)
def test_a_warm_up_that_there_is_not(filled, flags, message):
    with pytest.raises(UserError, match=message):
        filled("emotion", **flags)


def test_a_warm_up_as_long_as_the_run(filled, capsys):
    """160 rows in batches of 8 are 20 steps an epoch, and 60 in three."""
    task = BUILT_IN_TASKS["emotion"]
    assert warm_up(filled("emotion", warmup_steps=59), task, 160) == 59
    with pytest.raises(UserError, match="--warmup_steps 60: must be fewer than the run's 60 steps"):
        warm_up(filled("emotion", warmup_steps=60), task, 160)
    with pytest.raises(UserError, match="--warmup_steps 60: must be fewer than the run's 30 steps"):
        warm_up(filled("emotion", warmup_steps=60, gradient_accumulation_steps=2), task, 160)
    assert not capsys.readouterr().out
    assert warm_up(filled("emotion"), task, 160) == 0.05
    assert "the 500 steps of warm-up that emotion takes by default are not fewer than the run's 60" in (
        capsys.readouterr().out
    )
    assert warm_up(filled("emotion"), task, 16_000) == 500
    assert warm_up(filled("emotion", max_steps=1), task, 160) == 0  # else its only step is taken at a rate of 0

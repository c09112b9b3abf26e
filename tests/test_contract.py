import dataclasses
import json

import pytest

from data.arguments import UserError
from data.conformal import Promise
from data.contract import Contract, check_run_settings, contract_for
from data.encoding import Encoder
from data.learning.checkpoints import check_same_task
from data.loading import load_examples
from data.sampling import Sampling
from data.summaries.encoding import SummaryEncoder
from data.tasks import BUILT_IN_TASKS, of_built_in, resolve_task, with_prompt
from tests.conftest import make_tokenizer

GROUP = BUILT_IN_TASKS["goemotions-group"]
LABELS = "ambiguous\nnegative\nneutral\npositive\n"


@pytest.fixture
def run_dir(tmp_path):
    Contract(GROUP, max_length=300, base_model="models/base", seed=7).save(tmp_path)
    (tmp_path / "labels.txt").write_text(LABELS)
    (tmp_path / "other.txt").write_text(LABELS.replace("neutral", "mixed"))
    return tmp_path


def test_what_is_saved_is_loaded(run_dir):
    contract = Contract.load(run_dir)
    assert contract == Contract(GROUP, max_length=300, base_model="models/base", seed=7)
    content = json.loads((run_dir / "task.json").read_text())
    assert content["format_version"] == 1
    assert content["task"]["labels"] == list(GROUP.labels)
    assert content["task"]["template_hash"] == GROUP.template_hash
    assert content["library_versions"]["torch"]


def test_the_prompt_is_saved_with_it(tmp_path, tokenizer):
    contract = Contract(GROUP)
    encoder = contract.encoder(tokenizer)
    contract.frozen(encoder).save(tmp_path)
    loaded = Contract.load(tmp_path)
    assert loaded.prompt == encoder.prompt
    assert dataclasses.replace(loaded, prompt=None) == contract
    other = make_tokenizer()
    other.chat_template = "on another day: {{ messages[0]['content'] }}"
    assert loaded.encoder(other).prompt_ids(["so glad"]) == encoder.prompt_ids(["so glad"])


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([1, 2], "prompt"),
        ({"head": [1], "tail": [2]}, "prompt.answer_prefix"),
        ({"head": [1], "tail": [2], "answer_prefix": "", "end": 3, "more": 1}, "prompt.more"),
        ({"head": ["1"], "tail": [2], "answer_prefix": "", "end": 3}, "prompt.head.0 is '1'"),
        ({"head": [1], "tail": [-2], "answer_prefix": "", "end": 3}, "a token id is below 0"),
        ({"head": [1], "tail": [2], "answer_prefix": "", "end": 10**30}, "prompt"),
        ({"head": [1], "tail": [2], "answer_prefix": "!", "end": 3}, "prompt.answer_prefix is '!'"),
    ],
)
def test_a_prompt_that_is_none(run_dir, prompt, message):
    path = run_dir / "task.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prompt": prompt}))
    with pytest.raises(UserError, match=f"task.json: not a task.json that EmoTune wrote .*{message}"):
        Contract.load(run_dir)


def test_flags_that_agree_are_taken(run_dir):
    for flags in (
        {},
        {"task_name": "goemotions-group"},
        {"label_path": str(run_dir / "labels.txt")},
        {"max_length": 300},
    ):
        assert contract_for(str(run_dir), **flags) == Contract.load(run_dir)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"task_name": "goemotions-ekman"}, r"--task goemotions-ekman contradicts .*task.json: id 0 is 'anger'"),
        (
            {"label_path": "other.txt"},
            r"--label_path .*other.txt contradicts .*task.json: id 2 is 'mixed' .* 'neutral'",
        ),
        ({"max_length": 512}, r"--max_length 512 contradicts .*trained with 300"),
        ({"cot": True}, r"--cot on contradicts .*trained with off"),
    ],
)
def test_flags_that_contradict_name_both_values(run_dir, flags, message):
    if "label_path" in flags:
        flags = {"label_path": str(run_dir / flags["label_path"])}
    with pytest.raises(UserError, match=message):
        contract_for(str(run_dir), **flags)


def test_whether_no_label_may_apply(run_dir, tmp_path):
    allowed = dataclasses.replace(GROUP, allow_none=True, most_labels=3)
    Contract(allowed).save(tmp_path / "none")
    loaded = contract_for(str(tmp_path / "none"), allow_none=True)
    assert (loaded.task, loaded.task.most_labels) == (allowed, 3)
    assert contract_for(str(tmp_path / "none")) == loaded
    for directory, flag, trained in ((tmp_path / "none", False, "on"), (run_dir, True, "off")):
        with pytest.raises(UserError, match=rf"--allow_none o(n|ff) contradicts .*task.json: trained with {trained}"):
            contract_for(str(directory), allow_none=flag)
    check_same_task(str(run_dir), dataclasses.replace(GROUP, most_labels=2))  # as of earlier versions: any number
    with pytest.raises(UserError, match="learns task goemotions-group"):
        check_same_task(str(run_dir), dataclasses.replace(GROUP, allow_none=True))
    with pytest.raises(ValueError, match="allow_none: objective score asks which"):
        Contract(allowed, objective="score")


def test_whether_no_label_may_apply_to_an_untuned_model(tmp_path):
    def asked(**flags):
        return contract_for(str(tmp_path), **flags).task

    assert not asked(task_name="goemotions-group").allow_none
    task = asked(task_name="goemotions-group", allow_none=True)
    assert (task.allow_none, task.most_labels) == (True, 5)
    assert of_built_in(task).header_allowed is False
    (tmp_path / "labels.txt").write_text("joy\nNONE\n")
    for flags, message in (
        (dict(task_name="sst2"), "--allow_none: task sst2: is single_label, so each text has a label"),
        (dict(task_name="goemotions-group", objective="score"), "--allow_none: needs --objective generate or classify"),
        (dict(task_name="emotion-summary"), "--allow_none: task emotion-summary has no labels"),
        (dict(label_path=str(tmp_path / "labels.txt")), "--allow_none: task .*: label 'NONE' is what the answer is"),
    ):
        with pytest.raises(UserError, match=message):
            asked(**flags, allow_none=True)


def test_an_edited_prompt_is_noticed(run_dir):
    path = run_dir / "task.json"
    path.write_text(path.read_text().replace("Which does the writer", "What does the writer"))
    with pytest.raises(UserError, match="the prompt template has hash"):
        Contract.load(run_dir)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"format_version": 99}'])
def test_a_broken_task_json_is_one_clear_error(tmp_path, content):
    (tmp_path / "task.json").write_text(content)
    with pytest.raises(UserError, match=r"task.json"):
        Contract.load(tmp_path)


def test_an_adapter_without_task_json_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"adapter without task.json"):
        contract_for(str(tmp_path), "goemotions-group")


def test_an_untuned_model_needs_a_task(tmp_path):
    with pytest.raises(UserError, match="name --task or --label_path"):
        contract_for(str(tmp_path))
    assert contract_for(str(tmp_path), "sst2").task is BUILT_IN_TASKS["sst2"]


def test_a_run_knows_ids_of_another_order(tmp_path):
    task = BUILT_IN_TASKS["emotion"]
    (tmp_path / "labels.txt").write_text("".join(f"{label}\n" for label in task.labels))
    Contract(task).save(tmp_path)
    assert contract_for(str(tmp_path)).task.published_order == task.published_order
    assert contract_for(str(tmp_path), label_path=str(tmp_path / "labels.txt")).task.published_order == ()


def test_a_run_cannot_be_continued_as_another(tmp_path):
    path = tmp_path / "args.json"
    path.write_text(json.dumps({"learning_rate": 1e-4, "max_steps": 10}))
    check_run_settings(path, {"learning_rate": 1e-4, "max_steps": 20, "new_flag": 1}, may_change=("max_steps",))
    with pytest.raises(UserError, match=r"--learning_rate 0.001: .* began with 0.0001"):
        check_run_settings(path, {"learning_rate": 1e-3}, may_change=())
    path.write_text("[]")
    with pytest.raises(UserError, match=r"args.json: not a JSON object .*, so the run there cannot be continued"):
        check_run_settings(path, {"learning_rate": 1e-4}, may_change=())


def test_switches_of_a_run_that_an_earlier_version_began(tmp_path):
    """They were "on" and "off" where they are true and false now."""
    path = tmp_path / "args.json"
    path.write_text(json.dumps({"constrained": "off", "calibration": "on", "cot": False, "prefix_sharing": "on"}))
    check_run_settings(path, {"constrained": False, "calibration": True, "cot": False, "prefix_sharing": "on"}, ())
    with pytest.raises(UserError, match=r"--constrained on: .* began with off"):
        check_run_settings(path, {"constrained": True}, ())
    with pytest.raises(UserError, match=r"--cot on: .* began with off"):
        check_run_settings(path, {"cot": True}, ())


def test_a_task_of_the_users_own_survives(tmp_path):
    own = dataclasses.replace(GROUP, name="birds", kind="single_label", labels=("owl", "wren"))
    Contract(own).save(tmp_path)
    assert contract_for(str(tmp_path)).task == own


# --- what stands in run directories ---------------------------------------------------------------------------------

LIBRARIES = {"torch": "2.13.0+cpu", "transformers": "5.17.0", "trl": "1.16.0", "peft": "0.21.2"}
OF_A_GROUP_RUN = """{
  "format_version": 1,
  "task": {
    "name": "goemotions-group",
    "kind": "multi_label",
    "labels": [
      "ambiguous",
      "negative",
      "neutral",
      "positive"
    ],
    "template": "Emotions: {labels}\\nWhich does the writer of the comment feel? {answer_form}\\n\\nComment:\\n{text}",
    "use_chat_template": true,
    "template_hash": "aa4d35202b299b32"
  },
  "cot": false,
  "objective": "generate",
  "head": null,
  "thresholds": null,
  "temperature": 1.0,
  "max_length": 300,
  "base_model": "models/base",
  "base_revision": null,
  "base_fingerprint": "0123abcd",
  "seed": 7,
  "library_versions": {
    "torch": "2.13.0+cpu",
    "transformers": "5.17.0",
    "trl": "1.16.0",
    "peft": "0.21.2"
  }
}
"""
OF_A_HEAD_ON_EMOTION = """{
  "format_version": 1,
  "task": {
    "name": "emotion",
    "kind": "single_label",
    "labels": [
      "anger",
      "fear",
      "joy",
      "love",
      "sadness",
      "surprise"
    ],
    "template": "{text}",
    "use_chat_template": false,
    "template_hash": "ada0db1bcc3bb7d1"
  },
  "cot": false,
  "objective": "classify",
  "head": "linear",
  "thresholds": null,
  "temperature": 1.5,
  "max_length": 300,
  "base_model": "models/base",
  "base_revision": null,
  "base_fingerprint": null,
  "seed": 7,
  "library_versions": {
    "torch": "2.13.0+cpu",
    "transformers": "5.17.0",
    "trl": "1.16.0",
    "peft": "0.21.2"
  }
}
"""
OF_OWN_LABELS = """{
  "format_version": 1,
  "task": {
    "name": "birds",
    "kind": "multi_label",
    "labels": [
      "owl",
      "wren"
    ],
    "template": "Labels: {labels}\\nWhich fits the text? {answer_form}\\n\\nText:\\n{text}",
    "use_chat_template": true,
    "template_hash": "bdd470108e8da38e"
  },
  "cot": false,
  "objective": "generate",
  "head": null,
  "thresholds": null,
  "temperature": 1.0,
  "max_length": 300,
  "base_model": "models/base",
  "base_revision": null,
  "base_fingerprint": null,
  "seed": 7,
  "library_versions": {
    "torch": "2.13.0+cpu",
    "transformers": "5.17.0",
    "trl": "1.16.0",
    "peft": "0.21.2"
  }
}
"""


def own_task(folder):
    (folder / "birds").mkdir()
    (folder / "birds" / "labels.txt").write_text("owl\nwren\n")
    return resolve_task(None, str(folder / "birds" / "labels.txt"))


@pytest.mark.parametrize(
    ("written", "asked", "prompt"),
    [
        (
            OF_A_GROUP_RUN,
            lambda folder: with_prompt(BUILT_IN_TASKS["goemotions-group"], "instruction_first"),
            "Emotions: ambiguous, negative, neutral, positive\nWhich does the writer of the comment feel? Answer with "
            "all that apply, separated by commas.\n\nComment:\nhow nice\n\nAnswer:",
        ),
        (
            OF_A_HEAD_ON_EMOTION,
            lambda folder: with_prompt(BUILT_IN_TASKS["emotion"], "text_only"),
            "how nice",
        ),
        (
            OF_OWN_LABELS,
            own_task,
            "Labels: owl, wren\nWhich fits the text? Answer with all that apply, separated by commas.\n\nText:\n"
            "how nice\n\nAnswer:",
        ),
    ],
)
def test_a_task_json_of_version_1(tmp_path, plain_tokenizer, written, asked, prompt):
    """As EmoTune has written it: it loads, a run on the same flags goes on, and the model is asked the same."""
    checkpoint = tmp_path / "checkpoint-6"
    checkpoint.mkdir()
    (checkpoint / "task.json").write_text(written, encoding="utf-8")
    contract, task = Contract.load(checkpoint), asked(tmp_path)
    assert contract.task == task
    assert (contract.task.instruction_first, contract.task.header_allowed) == (
        task.instruction_first,
        task.header_allowed,
    )
    check_same_task(str(checkpoint), task)
    encoder = Encoder(contract.task, plain_tokenizer, objective=contract.objective)
    assert plain_tokenizer.decode(encoder.prompt_ids(["how nice"])[0]) == prompt
    assert contract.library_versions == LIBRARIES
    contract.save(tmp_path)
    kept = json.loads((tmp_path / "task.json").read_text(encoding="utf-8"))["task"]
    assert kept == json.loads(written)["task"] | {"allow_none": False, "most_labels": 5}


def test_a_promise_is_kept_in_task_json(tmp_path):
    contract = Contract(GROUP, objective="classify", coverage=Promise(0.9, 0.1234567890123, 99))
    contract.save(tmp_path)
    assert Contract.load(tmp_path) == contract
    with pytest.raises(ValueError, match="coverage: only labels without reasoning have probabilities"):
        dataclasses.replace(contract, objective="generate", cot=True)


def test_headers_are_refused_as_the_name_says(tmp_path):
    (tmp_path / "task.json").write_text(OF_A_GROUP_RUN)
    (tmp_path / "dev.tsv").write_text("text\tlabels\tid\nfine\t3\tc1\n")
    with pytest.raises(UserError, match=r"dev.tsv:1: a header .*GoEmotions layout has none"):
        load_examples(tmp_path / "dev.tsv", Contract.load(tmp_path).task)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("task", "labels"), None, "task.labels is None: "),
        (("task", "labels"), "negative", "task.labels is 'negative': "),
        (("task", "labels"), ["a", 3], "task.labels.1 is 3: "),
        (("task", "labels"), ["a", "a"], "a label stands twice"),
        (("task", "kind"), "several", "task.kind is 'several': "),
        (("task", "template"), ["{text}"], "task.template is "),
        (("task", "use_chat_template"), 1, "task.use_chat_template is 1: "),
        (("task",), [], "task is [], expected an object"),
        (("format_version",), "1", "format_version is '1', expected a whole number"),
        (("format_version",), 2, "format version 2; this EmoTune reads version 1"),
        (("cot",), "off", "cot is 'off': "),
        (("objective",), "guess", "objective is 'guess': "),
        (("head",), "linear", "head linear: objective generate has none"),
        (("temperature",), 0, "temperature 0.0: must be above 0"),
        (("temperature",), "1", "temperature is '1': "),
        (("temperature",), float("nan"), "temperature is "),
        (("thresholds",), {"neutral": 0.5}, "thresholds: are of ['neutral']"),
        (("thresholds",), dict.fromkeys(GROUP.labels, 1.5), "threshold of ambiguous is 1.5: must be from 0 to 1"),
        (("thresholds",), dict.fromkeys(GROUP.labels, "0.5"), "thresholds.ambiguous is '0.5': "),
        (("coverage",), 0.9, "coverage is 0.9: "),
        (("coverage",), {"level": 0.9, "cutoff": 0.2}, "coverage.rows"),
        (("coverage",), {"level": 0.9, "cutoff": "0.2", "rows": 99}, "coverage.cutoff is '0.2': "),
        (("coverage",), {"level": 1.9, "cutoff": 0.2, "rows": 99}, "level 1.9: must be from 0.01 to 0.9999"),
        (("coverage",), {"level": 0.9, "cutoff": 1.2, "rows": 99}, "cutoff 1.2: must be from 0 to 1"),
        (("coverage",), {"level": 0.9, "cutoff": 0.2, "rows": 8}, "rows 8: level 0.9 needs at least 9"),
        (("coverage",), {"level": 0.9, "cutoff": 0.2, "rows": 99, "of": 1}, "coverage.of is 1: "),
        (("max_length",), 0, "max_length 0: must be at least 1 and"),
        (("max_length",), 10**30, "must be at least 1 and below 2**31"),
        (("max_length",), 300.5, "max_length is 300.5: "),
        (("seed",), None, "seed is None: "),
        (("base_model",), None, "base_model is None: "),
        (("library_versions",), {"torch": 2}, "library_versions.torch is 2: "),
        (("unheard_of",), 1, "unheard_of is 1: "),
        (("task", "unheard_of"), 1, "task.unheard_of is 1: "),
    ],
)
def test_every_field_of_a_task_json_is_checked(run_dir, place, value, message):
    path = run_dir / "task.json"
    content = json.loads(path.read_text())
    holder = content if len(place) == 1 else content[place[0]]
    holder[place[-1]] = value
    path.write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        Contract.load(run_dir)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("missing", ["kind", "labels", "template", "name"])
def test_a_task_that_is_not_whole_is_not_filled_in(tmp_path, missing):
    content = json.loads(OF_A_GROUP_RUN)
    del content["task"][missing]
    (tmp_path / "task.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"not a task.json that EmoTune wrote .*{missing}"):
        Contract.load(tmp_path)


# --- runs that write summaries --------------------------------------------------------------------------------------

ENGLISH = BUILT_IN_TASKS["emotion-summary-en"]
DRAWN = Sampling(max_new_tokens=300, temperature=0.5, top_p=0.9, top_k=0, repetition_penalty=1.2)


@pytest.fixture
def counsellor(tmp_path):
    Contract(ENGLISH, max_length=4096, sampling=DRAWN, base_model="models/base", seed=7).save(tmp_path)
    return tmp_path


def test_what_is_saved_of_summaries_is_loaded(counsellor, tokenizer):
    contract = Contract.load(counsellor)
    assert contract == Contract(ENGLISH, max_length=4096, sampling=DRAWN, base_model="models/base", seed=7)
    content = json.loads((counsellor / "task.json").read_text())
    assert content["task"] | {"template": ""} == {
        "name": "emotion-summary-en", "kind": "emotion-summary", "language": "en", "template": "",
        "use_chat_template": True, "template_hash": ENGLISH.template_hash,
    }  # fmt: skip
    encoder = contract.encoder(tokenizer)
    assert isinstance(encoder, SummaryEncoder)
    assert encoder.answer_tokens == 300
    contract.frozen(encoder).save(counsellor)
    assert Contract.load(counsellor).prompt == encoder.prompt


@pytest.mark.parametrize("flags", [{}, {"task_name": "emotion-summary"}, {"task_name": "emotion-summary-en"},
                                   {"max_length": 4096}, {"sampling": {"top_k": None}}, {"objective": "generate"}])  # fmt: skip
def test_flags_that_agree_with_a_run_of_summaries(counsellor, flags):
    assert contract_for(str(counsellor), **flags) == Contract.load(counsellor)


def test_flags_draw_in_another_way(counsellor):
    contract = contract_for(str(counsellor), sampling={"top_k": 5, "temperature": 0, "top_p": None})
    assert contract.sampling == dataclasses.replace(DRAWN, top_k=5, temperature=0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"task_name": "emotion-summary-zh"}, "--task emotion-summary-zh contradicts .*trained as emotion-summary-en"),
        ({"task_name": "sst2"}, "--task sst2 contradicts .*: id 0 is 'Negative' in the first, 'nothing' in the second"),
        ({"label_path": "other.txt"}, "--label_path .*other.txt contradicts .*: id 0 is 'ambiguous'"),
        ({"max_length": 512}, "--max_length 512 contradicts .*trained with 4096"),
        ({"cot": True}, "--cot on contradicts .*trained with off"),
        ({"objective": "score"}, "--objective score contradicts .*trained with generate"),
        ({"sampling": {"top_p": 2.0}}, "--top_p 2.0: must be above 0 and at most 1"),
    ],
)
def test_flags_that_contradict_a_run_of_summaries(counsellor, flags, message):
    (counsellor / "other.txt").write_text(LABELS)
    if "label_path" in flags:
        flags = {"label_path": str(counsellor / flags["label_path"])}
    with pytest.raises(UserError, match=f"^{message}"):
        contract_for(str(counsellor), **flags)


def test_how_labels_are_drawn_is_no_question(run_dir):
    with pytest.raises(UserError, match=r"^--top_k: is for tasks whose answer is free text \(emotion-summary\)$"):
        contract_for(str(run_dir), sampling={"temperature": None, "top_k": 5})


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("sampling",), None, "sampling: missing with this task"),
        (("sampling",), [], "sampling is []: "),
        (("sampling", "temperature"), "0.7", "sampling.temperature is '0.7': "),
        (("sampling", "temperature"), -1, "temperature -1.0: must be 0 "),
        (("sampling", "top_k"), 2.5, "sampling.top_k is 2.5: "),
        (("sampling", "top_p"), float("nan"), "sampling.top_p is "),
        (("sampling", "max_new_tokens"), 10**30, "max_new_tokens"),
        (("sampling", "beams"), 4, "sampling.beams is 4: "),
        (("task", "language"), "fr", "task.language is 'fr': "),
        (("task", "kind"), "multi_label", "task.labels"),
        (("task", "template"), "no place for a case", "the prompt template has {text} 0 times"),
        (("task", "labels"), ["a", "b"], "task.labels is ['a', 'b']: "),
        (("cot",), True, "cot: a summary has no reasoning before it"),
        (("objective",), "score", "objective score: task emotion-summary-en has generate alone"),
        (("thresholds",), {"joy": 0.5}, "thresholds: are of ['joy']"),
    ],
)
def test_every_field_of_a_task_json_of_summaries_is_checked(counsellor, place, value, message):
    test_every_field_of_a_task_json_is_checked(counsellor, place, value, message)


def test_labels_that_are_drawn(run_dir):
    test_every_field_of_a_task_json_is_checked(
        run_dir, ("sampling",), dataclasses.asdict(DRAWN), "sampling: nothing is drawn with this task"
    )


@pytest.mark.parametrize("missing", ["kind", "template", "name", "language"])
def test_a_task_of_summaries_that_is_not_whole(counsellor, missing):
    content = json.loads((counsellor / "task.json").read_text())
    del content["task"][missing]
    (counsellor / "task.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"not a task.json that EmoTune wrote"):
        Contract.load(counsellor)

import json
import re
from itertools import combinations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from data.answers import AnswerTrie, answer_grammar
from data.encoding import MAX_ANSWER_LABELS, Encoder
from data.engine import readers
from data.engine.constrained import ConstrainedWriter
from data.engine.models import load_model
from data.engine.tree_attention import computes_spans, enable_packing, ordinary_attention, read_on
from data.labels import CUSTOM_TEMPLATE, LabelTask
from data.tasks import BUILT_IN_TASKS, LABEL_TASKS, Task
from tests.conftest import CHAT_TEMPLATE, ROOT, make_tokenizer

ENDS_ODDLY = ("fear (mild)", "a.", "why?", "joy", "{text}", "\u2402", "sad…", "100%", "\u2403 \ue000")
ODD = ("a", "ab", "a b", "U.S.", "money-fx", "负面", "100 %", '"quoted"')
TEXTS = [
    "thanks a lot",
    "no",
    "thanks a lot",
    "what a terrible, terrible day that was for all of us",
    "ok then",
    "so proud!! 🎉",
]


def paths(node, written=()):
    """Every way from `node` to an end."""
    if not node.children:
        yield list(written)
    for token, child in node.children.items():
        yield from paths(child, (*written, token))


def sentences(grammar: str, rule: str = "root"):
    """Every string of a grammar of quoted strings and rule names."""
    rules = dict(line.split(" ::= ", 1) for line in grammar.splitlines())
    for alternative in re.findall(r'((?:"(?:\\.|[^"\\])*"|[^"|])+)', rules[rule]):
        literal, name = re.fullmatch(r'\s*("(?:\\.|[^"\\])*")\s*([\w-]*)\s*', alternative).groups()
        text = literal[1:-1].replace('\\"', '"').replace("\\\\", "\\")
        for rest in sentences(grammar, name) if name else [""]:
            yield text + rest


def answers_of(task: Task) -> set[tuple[str, ...]]:
    if task.kind == "single_label":
        return {(label,) for label in task.labels}
    most = min(MAX_ANSWER_LABELS, len(task.labels))
    return {chosen for count in range(1, most + 1) for chosen in combinations(task.labels, count)}


TASKS = [
    LabelTask("odd", "single_label", ODD, CUSTOM_TEMPLATE),
    LabelTask("odd", "multi_label", ODD, CUSTOM_TEMPLATE),
    LabelTask("ends-oddly", "multi_label", ENDS_ODDLY, CUSTOM_TEMPLATE),
    LabelTask("ends-oddly", "multi_label", ENDS_ODDLY[1::-1], CUSTOM_TEMPLATE),
    BUILT_IN_TASKS["goemotions-group"],
    BUILT_IN_TASKS["chnsenticorp"],
]


@pytest.mark.parametrize("cot", [False, True])
@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.name}-{task.kind}")
@pytest.mark.parametrize("chat", [False, True])
def test_trie_and_grammar_hold_the_valid_answers_and_no_others(tokenizer, plain_tokenizer, task, cot, chat):
    encoder = Encoder(task, tokenizer if chat else plain_tokenizer, cot)
    spelt = list(paths(AnswerTrie(encoder).root))
    assert all(ids[-1] == encoder.end_id for ids in spelt)
    texts = [encoder.tokenizer.decode(ids[:-1]) for ids in spelt]
    assert len(set(texts)) == len(texts)
    behind = task.reasoning("since so") if cot else ""
    read = [task.parse(behind + text, cot) for text in texts]
    assert all(prediction.valid for prediction in read)
    assert {prediction.labels for prediction in read} == answers_of(task)
    assert sorted(sentences(answer_grammar(encoder))) == sorted(texts)


@pytest.mark.parametrize("name", LABEL_TASKS)
def test_what_training_writes_is_a_path(tokenizer, name):
    task = BUILT_IN_TASKS[name]
    encoder = Encoder(task, tokenizer)
    trie = AnswerTrie(encoder)
    several = [task.labels[:2], task.labels[-3:], task.labels[:MAX_ANSWER_LABELS]]
    for labels in [*((label,) for label in task.labels), *(several if task.kind == "multi_label" else [])]:
        node = trie.root
        for token in encoder.target_ids(labels):
            assert token in trie.token_ids
            node = node.children[token]
        assert not node.children


@pytest.mark.parametrize("cot", [False, True])
@pytest.mark.parametrize("task", TASKS, ids=lambda task: f"{task.name}-{task.kind}")
@pytest.mark.parametrize("chat", [False, True])
def test_inference_allows_every_answer_that_training_teaches(joining_tokenizer, task, cot, chat):
    """Also where a tokenizer joins a label's last character with the comma behind it."""
    joining_tokenizer.chat_template = CHAT_TEMPLATE if chat else None
    encoder = Encoder(task, joining_tokenizer, cot, max_length=2048)
    trie = AnswerTrie(encoder)
    reasoning = encoder.reasoning_ids("since so") if cot else []
    for labels in answers_of(task):
        target = encoder.target_ids(labels, "since so" if cot else None)
        assert target[: len(reasoning)] == reasoning
        node = trie.root
        for token in target[len(reasoning) :]:
            node = node.children[token]
        assert not node.children
        assert len(target) <= encoder.answer_tokens
        read = task.parse(encoder.decode(target), cot)
        assert (read.labels, read.valid) == (labels, True)


@pytest.fixture(scope="module")
def joining_tokenizer():
    """One that writes punctuation and the comma behind it as one token, as large vocabularies do."""
    tokenizer = make_tokenizer()
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    model = content["model"]
    for first in (")", ".", "?", "%"):
        model["vocab"][first + ","] = max(*model["vocab"].values(), 1) + 1
        model["merges"].append([first, ","])
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)), eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(min_size=1, max_size=6) | st.sampled_from(ENDS_ODDLY), min_size=2, max_size=4), st.booleans())
def test_any_labels_are_written_and_read_back_or_refused(joining_tokenizer, labels, cot):
    joining_tokenizer.chat_template = CHAT_TEMPLATE
    try:
        task = LabelTask("any", "multi_label", tuple(labels), CUSTOM_TEMPLATE)
    except ValueError:
        return
    encoder = Encoder(task, joining_tokenizer, cot, max_length=2048)
    for ids in paths(AnswerTrie(encoder).root):
        read = task.parse((task.reasoning("so") if cot else "") + encoder.decode(ids), cot)
        assert read.valid
        assert ids == encoder.answer_ids(read.labels)


def test_the_joining_tokenizer_joins(joining_tokenizer):
    assert ")," in joining_tokenizer.tokenize("fear (mild), joy")


@pytest.mark.parametrize("cot", [False, True])
@pytest.mark.parametrize("name", LABEL_TASKS)
def test_ordinary_answers_are_spelt_as_a_whole(tokenizer, name, cot):
    """So that runs of earlier versions, which learnt the whole string, stay valid."""
    assert_spelt_as_a_whole(Encoder(BUILT_IN_TASKS[name], tokenizer, cot, max_length=2048))


def assert_spelt_as_a_whole(encoder):
    task, rationale = encoder.task, "Since so, or not?" if encoder.cot else None
    several = task.kind == "multi_label"
    for labels in [*((label,) for label in task.labels), *(combinations(task.labels[-6:], 3) if several else [])]:
        whole = encoder.token_ids(task.target(labels, rationale))
        assert encoder.target_ids(labels, rationale) == [*whole, encoder.end_id]


@pytest.mark.real
@pytest.mark.parametrize("cot", [False, True])
@pytest.mark.parametrize("name", LABEL_TASKS)
def test_ordinary_answers_of_a_real_tokenizer(name, cot):
    from data.engine.models import load_tokenizer

    real = load_tokenizer(str(ROOT / "models" / "smollm2-135m-instruct"))
    assert_spelt_as_a_whole(Encoder(BUILT_IN_TASKS[name], real, cot, max_length=2048))


def test_an_answer_of_many_labels_ends(tokenizer):
    task = BUILT_IN_TASKS["goemotions-original"]
    encoder = Encoder(task, tokenizer)
    node = AnswerTrie(encoder).root
    for token in encoder.target_ids(task.labels[:MAX_ANSWER_LABELS])[:-1]:
        node = node.children[token]
    assert list(node.children) == [encoder.end_id]


# --- writing them ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    return load_model(str(tiny_model_dir), "fp32", "cpu")


def written_by_hand(model, prompt, node):
    """One row, no cache, every token asked for: the plain path."""
    ids, log_prob = list(prompt), 0.0
    while node.children:
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        tokens = list(node.children)
        log_probs = logits[tokens].log_softmax(-1)
        best = int(log_probs.argmax())
        log_prob += float(log_probs[best])
        ids.append(tokens[best])
        node = node.children[tokens[best]]
    return ids[len(prompt) :], log_prob


@pytest.fixture(params=["tree", "cache", "step by step"])
def read_in(request, model, monkeypatch):
    """The ways a writer has its texts read."""
    if request.param == "tree":
        assert enable_packing(model, 512)
        assert computes_spans(model)
    else:
        monkeypatch.setattr(readers, "keeps_whole_cache", lambda _: request.param == "cache")
    yield
    model.set_attn_implementation("sdpa")


@pytest.mark.usefixtures("read_in")
@pytest.mark.parametrize("name", ["goemotions-original", "goemotions-group", "emotion", "sst2"])
def test_the_writer_writes_what_each_row_alone_would(model, tokenizer, name):
    encoder = Encoder(BUILT_IN_TASKS[name], tokenizer)
    trie, prompts = AnswerTrie(encoder), encoder.prompt_ids(TEXTS)
    writer = ConstrainedWriter(model, trie, encoder.head_ids, tokenizer.pad_token_id)
    with torch.inference_mode(), ordinary_attention(model):
        by_hand = [written_by_hand(model, prompt, trie.root) for prompt in prompts]
    vocabulary = model.get_output_embeddings()
    for _ in range(2):  # what is shared by all batches is as it was
        answers, log_probs = writer.write(prompts)
        assert model.get_output_embeddings() is vocabulary
        assert answers == [ids for ids, _ in by_hand]
        assert log_probs == pytest.approx([log_prob for _, log_prob in by_hand], abs=1e-5)
    for prompt, (ids, log_prob) in zip(prompts, by_hand, strict=True):  # few texts: the tree looks ahead
        (alone,), (alone_log_prob,) = writer.write([prompt])
        assert alone == ids
        assert alone_log_prob == pytest.approx(log_prob, abs=1e-5)
    if name == "goemotions-original":
        assert len({len(ids) for ids in answers}) > 1


def test_one_label_is_written_in_one_pass(model, tokenizer, monkeypatch):
    encoder = Encoder(BUILT_IN_TASKS["emotion"], tokenizer)
    assert max(len(encoder.answer_ids([label])) for label in encoder.task.labels) > 2  # several tokens and the end
    enable_packing(model, 512)
    writer = ConstrainedWriter(model, AnswerTrie(encoder), encoder.head_ids, tokenizer.pad_token_id)
    passes = []
    monkeypatch.setattr(readers, "read_on", lambda *args: (passes.append(1), read_on(*args))[1])
    writer.write(encoder.prompt_ids(["thanks a lot"]))
    assert len(passes) == 1
    model.set_attn_implementation("sdpa")


@pytest.mark.usefixtures("read_in")
def test_a_prompt_without_a_common_beginning(model, plain_tokenizer):
    encoder = Encoder(BUILT_IN_TASKS["chnsenticorp"], plain_tokenizer)
    trie = AnswerTrie(encoder)
    prompts = [plain_tokenizer(text)["input_ids"] for text in TEXTS]
    with torch.inference_mode(), ordinary_attention(model):
        by_hand = [written_by_hand(model, prompt, trie.root)[0] for prompt in prompts]
    assert ConstrainedWriter(model, trie, [], 0).write(prompts)[0] == by_hand

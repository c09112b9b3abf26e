from math import exp

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.answers import AnswerTrie
from data.encoding import Encoder
from data.engine import readers
from data.engine.answer_tree import AnswerTree
from data.engine.constrained import ConstrainedWriter
from data.engine.models import load_model
from data.engine.tree_attention import computes_spans, enable_packing, ordinary_attention, read_on
from data.labels import CUSTOM_TEMPLATE, LabelTask
from data.marginals import bounds
from data.tasks import BUILT_IN_TASKS

TEXTS = ["thanks a lot", "no", "what a terrible, terrible day that was for all of us"]
# labels that begin alike, that begin another, that share all tokens but the last
LABELS = ["a", "ab", "a b", "joy", "joyful", "joy of life", "sadness", "sadder", "U.S.", "负面", "love", "neutral"]


def paths(node, written=()):
    """Every way from `node` to an end."""
    if not node.children:
        yield written
    for token, child in node.children.items():
        yield from paths(child, (*written, token))


def by_hand(model, prompt, trie) -> dict[tuple[int, ...], float]:
    """Log-probability of each answer, one whole sequence at a time."""
    found = {}
    for ids in paths(trie.root):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 :]
        node, log_prob = trie.root, 0.0
        for row, token in zip(logits, ids, strict=False):
            tokens = list(node.children)
            log_prob += float(row[tokens].log_softmax(-1)[tokens.index(token)])
            node = node.children[token]
        found[ids] = log_prob
    return found


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    return load_model(str(tiny_model_dir), "fp32", "cpu")


@pytest.fixture(params=["tree", "cache", "anew"])
def read_in(request, model, monkeypatch):
    """The ways a tree has its texts read."""
    if request.param == "tree":
        assert enable_packing(model, 512)
        assert computes_spans(model)
    else:
        monkeypatch.setattr(readers, "keeps_whole_cache", lambda _: request.param == "cache")
    yield request.param
    model.set_attn_implementation("sdpa")


def tree_of(model, encoder):
    return AnswerTree(model, AnswerTrie(encoder), encoder.head_ids, encoder.tokenizer.pad_token_id)


def logs(branches):
    return {branch.token_ids: branch.log_prob for branch in branches}


def mass_of(expansion):
    return sum(branch.probability for branch in [*expansion.whole, *expansion.closed])


def check(expansion, whole, written):
    """An expansion against the log-probabilities of all answers, and what the writer writes."""
    assert mass_of(expansion) == pytest.approx(1, abs=1e-5)
    assert len(logs(expansion.whole)) == len(expansion.whole)
    for ids, log_prob in logs(expansion.whole).items():
        assert log_prob == pytest.approx(whole[ids], abs=1e-5, rel=3e-6)
    below = [{ids for ids in whole if ids[: len(b.token_ids)] == b.token_ids} for b in expansion.closed]
    assert sorted([*logs(expansion.whole), *(ids for those in below for ids in those)]) == sorted(whole)
    for branch, those in zip(expansion.closed, below, strict=True):
        assert len(those) > 1
        assert branch.probability == pytest.approx(sum(exp(whole[ids]) for ids in those), abs=1e-6)
    hidden = sum(exp(whole[ids]) for those in below for ids in those)
    assert expansion.pruned_mass == pytest.approx(hidden, abs=1e-5)
    (ids, log_prob) = written
    assert list(expansion.greedy.token_ids) == ids
    assert expansion.greedy.log_prob == pytest.approx(log_prob, abs=1e-5)
    assert expansion.greedy in expansion.whole


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_answers_are_as_probable_as_one_sequence_at_a_time(model, tokenizer, read_in, data):
    labels = tuple(data.draw(st.lists(st.sampled_from(LABELS), min_size=2, max_size=5, unique=True)))
    kind = data.draw(st.sampled_from(["single_label", "multi_label"]))
    texts = data.draw(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=3))
    pruned_mass = data.draw(st.sampled_from([0.0, 0.01, 0.3]))
    max_tokens = data.draw(st.sampled_from([0, 7, 512]))
    encoder = Encoder(LabelTask("any", kind, labels, CUSTOM_TEMPLATE), tokenizer)
    trie, prompts = AnswerTrie(encoder), encoder.prompt_ids(texts)
    needed = [[list(data.draw(st.sampled_from(sorted(paths(trie.root)))))] for _ in texts]
    expansions = tree_of(model, encoder).expand(prompts, pruned_mass, max_tokens, needed)
    writer = ConstrainedWriter(model, trie, encoder.head_ids, tokenizer.pad_token_id)
    written = list(zip(*writer.write(prompts), strict=True))
    model_inputs = zip(expansions, prompts, needed, written, strict=True)
    for expansion, prompt, (gold,), alone in model_inputs:
        with ordinary_attention(model):
            whole = by_hand(model, prompt, trie)
        check(expansion, whole, alone)
        assert tuple(gold) in logs(expansion.whole)
        if max_tokens == 512:
            assert expansion.pruned_mass <= pruned_mass + 1e-6
        longest = max(map(len, whole))
        assert expansion.tokens <= max(max_tokens, 2 * longest)  # the two that are read in any case


@pytest.mark.usefixtures("read_in")
@pytest.mark.parametrize("name", ["goemotions-group", "emotion", "goemotions-ekman"])
def test_the_answers_of_a_built_in_task(model, tokenizer, name):
    encoder = Encoder(BUILT_IN_TASKS[name], tokenizer)
    trie, prompts = AnswerTrie(encoder), encoder.prompt_ids(TEXTS)
    tree = tree_of(model, encoder)
    written = ConstrainedWriter(model, trie, encoder.head_ids, tokenizer.pad_token_id).write(prompts)
    vocabulary = model.get_output_embeddings()
    for _ in range(2):  # what is shared by all calls is as it was
        expansions = tree.expand(prompts, 0.0, 10_000)
        assert model.get_output_embeddings() is vocabulary
        for expansion, ids, log_prob in zip(expansions, *written, strict=True):
            assert list(expansion.greedy.token_ids) == ids
            assert expansion.greedy.log_prob == pytest.approx(log_prob, abs=1e-5)
            assert expansion.pruned_mass == pytest.approx(0, abs=1e-6)
            assert mass_of(expansion) == pytest.approx(1, abs=1e-5)
            assert len(expansion.whole) == len(list(paths(trie.root)))
    whole = [logs(expansion.whole) for expansion in expansions]
    for pruned in (0.01, 0.2):
        for expansion, all_of_them, *one in zip(tree.expand(prompts, pruned), whole, *written, strict=True):
            check(expansion, all_of_them, one)
            assert expansion.pruned_mass <= pruned + 1e-6
            assert expansion.tokens <= 512
    for prompt, all_of_them in zip(prompts, whole, strict=True):  # few texts: the tree looks ahead
        (alone,) = tree.expand([prompt], 0.0)
        assert logs(alone.whole) == pytest.approx(all_of_them, abs=1e-5, rel=3e-6)  # of numbers down to -20


@pytest.mark.usefixtures("read_in")
@pytest.mark.parametrize("name", ["goemotions-group", "goemotions-ekman", "goemotions-original"])
@pytest.mark.parametrize(("pruned_mass", "max_tokens"), [bounds(None), (0.05, 512), (0.3, 40), (0.0, 60)])
def test_an_expansion_is_the_same_in_any_batch(model, tokenizer, name, pruned_mass, max_tokens):
    encoder = Encoder(BUILT_IN_TASKS[name], tokenizer)
    tree = tree_of(model, encoder)
    prompts = encoder.prompt_ids([f"{TEXTS[i % 3]} {i}" for i in range(24)])
    (alone,) = tree.expand(prompts[:1], pruned_mass, max_tokens)
    for count in (3, 24):  # few, for which the tree looks ahead, and too many for that
        other = tree.expand(prompts[:count], pruned_mass, max_tokens)[0]
        assert other.tokens == alone.tokens
        for ours, theirs in ((alone.whole, other.whole), (alone.closed, other.closed)):
            ours, theirs = ({b.token_ids: b.probability for b in some} for some in (ours, theirs))
            assert theirs == pytest.approx(ours, abs=1e-6)  # of the same keys


def test_few_answers_take_one_pass(model, tokenizer, monkeypatch):
    encoder = Encoder(BUILT_IN_TASKS["sst2"], tokenizer)
    enable_packing(model, 512)
    tree = tree_of(model, encoder)
    passes = []
    monkeypatch.setattr(readers, "read_on", lambda *args: (passes.append(1), read_on(*args))[1])
    tree.expand(encoder.prompt_ids(["thanks a lot"]))
    assert len(passes) == 1
    model.set_attn_implementation("sdpa")

"""What our classes replace in those of other libraries is still there, is called as before, and nothing else is hit.

A library's update that renames a method would not fail by itself: ours would never be called again. So the table below
says what is meant to be replaced, and all else must not have a name of the base's.

Ours are read from their source, since some are made inside functions; the bases are the libraries' own classes.
"""

import ast
import builtins
import inspect
import pkgutil
import textwrap
from dataclasses import dataclass
from functools import cache

import pytest

from tests.test_rooms import CODE, module_of


@dataclass(frozen=True)
class Over:
    """What one of our classes does to those it stands on.

    Attributes:
        bases: the libraries' classes that it is put over, each on its own.
        replaces: their methods and class attributes that it has instead of theirs.
        sets: their attributes that its methods set on `self`.
    """

    bases: str
    replaces: str = ""
    sets: str = ""


SEQUENCE_CLASSIFIERS = "transformers:Qwen2ForSequenceClassification transformers:LlamaForSequenceClassification"
TABLE = {
    "data.learning.label_evaluation:LabelEvaluationMixin": Over(
        "transformers:Trainer trl:SFTTrainer trl:GRPOTrainer",
        "__init__ _determine_best_metric create_model_card _save",
    ),
    "data.learning.faults:StopAtFaults": Over(
        "transformers:Trainer trl:SFTTrainer trl:GRPOTrainer", "compute_loss _get_grad_norm log save_model"
    ),
    "data.learning.checkpoints:WholeCheckpoints": Over(
        "transformers:Trainer trl:SFTTrainer trl:GRPOTrainer",
        "_save_checkpoint _init_training_state _load_from_checkpoint _load_optimizer_and_scheduler _load_best_model",
    ),
    "data.learning.objectives:LabelTraining": Over(
        "transformers:Trainer trl:SFTTrainer", "__init__ compute_loss prediction_step evaluate _get_train_sampler"
    ),
    "data.learning.objectives:ClassifierTraining": Over("transformers:Trainer", "losses"),
    "data.engine.padding:LikeLengths": Over("torch.utils.data:Sampler", "__init__ __iter__"),
    "data.engine.padding:KeptTogether": Over("torch.utils.data:Sampler", "__init__ __iter__"),
    "data.learning.objectives:ContrastiveTraining": Over("trl:SFTTrainer", "losses"),
    "data.learning.group_training:GroupTraining": Over(
        "trl:GRPOTrainer",
        "__init__ _tokenize_prompts _generate_single_turn _generate_and_score_completions _prepare_inputs "
        "_get_train_sampler _save_rng_state _load_rng_state _get_per_token_logps_and_entropies log evaluate",
        "eos_token_ids log_completions _buffered_inputs _step control",
    ),
    "data.learning.exact:ExactTraining": Over(
        "transformers:Trainer", "__init__ losses log evaluate _save_rng_state _load_rng_state", "control"
    ),
    "data.learning.reasoned:ReasonedTraining": Over("transformers:Trainer", "__init__ losses _worth"),
    "data.learning.group_training:FolderClient": Over(
        "trl.generation.vllm_generation:VLLMClient", "init_communicator update_named_params"
    ),
    "data.learning.rewards:RewardWriter": Over("transformers:TrainerCallback", "on_log"),
    "data.learning.termination:SaveWhenTerminated": Over(
        "transformers:TrainerCallback", "__init__ on_step_end on_save"
    ),
    "scripts.benchmark.sft:StepIsTurn": Over("transformers:TrainerCallback", "on_train_begin on_step_end"),
    "scripts.benchmark.grpo:StepIsTurn": Over("transformers:TrainerCallback", "on_train_begin on_step_end"),
    "data.engine.classifier:LastTokenClassifier": Over(SEQUENCE_CLASSIFIERS, "_keep_in_fp32_modules_strict forward"),
    "data.engine.classifier:WithHead": Over(
        f"{SEQUENCE_CLASSIFIERS} transformers:BertForSequenceClassification", "__init__ _init_weights"
    ),
    "data.engine.classifier:HeadLayer": Over("torch.nn:Linear"),
    "data.engine.classifier:MLPHead": Over("torch.nn:Module", "__init__ forward"),
    "data.engine.constrained:_AllWhole": Over("transformers:StoppingCriteria", "__init__ __call__"),
    "data.engine.span_attention:_SpanAttention": Over("torch.autograd:Function", "forward backward"),
    "data.engine.weightless:_FusedAttention": Over("torch.autograd:Function", "forward backward"),
    "data.engine.live_memory:LiveMemory": Over(
        "torch.utils._python_dispatch:TorchDispatchMode", "__init__ __torch_dispatch__"
    ),
    "data.arguments:_Parser": Over("transformers:HfArgumentParser", "error _parse_dataclass_field"),
    "data.arguments:_HelpFormatter": Over(
        "argparse:ArgumentDefaultsHelpFormatter argparse:RawDescriptionHelpFormatter",
        "_format_action_invocation _get_help_string",
    ),
}
PAIRS = [(ours, base) for ours, over in TABLE.items() for base in over.bases.split()]


# --- our classes, as they are written -------------------------------------------------------------------------------


@cache
def our_classes() -> dict[str, ast.ClassDef]:
    """`data.engine.classifier:WithHead` -> its source, wherever in the file it stands."""
    trees = ((module_of(path), ast.parse(path.read_text(encoding="utf-8"))) for path in CODE)
    return {
        f"{module}:{node.name}": node
        for module, tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }


def own_methods(node: ast.ClassDef) -> dict[str, ast.FunctionDef]:
    return {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}


def own_members(node: ast.ClassDef) -> set[str]:
    """Methods and class attributes."""
    values = [item for item in node.body if isinstance(item, (ast.Assign, ast.AnnAssign))]
    targets = [target for item in values for target in getattr(item, "targets", [getattr(item, "target", None)])]
    return own_methods(node).keys() | {target.id for target in targets}


def of_self(node: ast.AST, context: type) -> set[str]:
    """The x of every `self.x` that is set (`ast.Store`) or read (`ast.Load`; of `super().x`, too)."""
    return {
        item.attr
        for item in ast.walk(node)
        if isinstance(item, ast.Attribute)
        and isinstance(item.ctx, context)
        and (ast.unparse(item.value) in ("self", "super()"))
    }


def parents(ours: str) -> list[str]:
    """The classes of the table that this one is written under, and theirs."""
    written = [ast.unparse(base) for base in our_classes()[ours].bases]
    above = [name for name in TABLE if name.partition(":")[2] in written]
    return above + [name for parent in above for name in parents(parent)]


def from_parents(ours: str) -> set[str]:
    nodes = [our_classes()[parent] for parent in parents(ours)]
    return {name for node in nodes for name in own_members(node) | of_self(node, ast.Store)}


# --- the libraries' classes -----------------------------------------------------------------------------------------


@cache
def names_in(base: str) -> frozenset[str]:
    """All that a library's class has: methods, class attributes, and what its methods set on `self`."""
    kind = pkgutil.resolve_name(base)
    set_on_self = (of_self(ast.parse(_source(one)), ast.Store) for one in kind.__mro__)
    return frozenset(dir(kind)).union(*set_on_self)


def _source(one: type) -> str:
    try:
        return textwrap.dedent(inspect.getsource(one))
    except (OSError, TypeError):  # written in C
        return ""


def parameters_in(base: str, method: str) -> list[inspect.Parameter] | None:
    """Without `self`; None where it is no method written in Python."""
    function = inspect.getattr_static(pkgutil.resolve_name(base), method, None)
    is_static = isinstance(function, staticmethod)
    function = getattr(function, "__func__", function)
    if not inspect.isfunction(function):
        return None
    return list(inspect.signature(function).parameters.values())[not is_static :]


# --- the tests ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ours", "base"), PAIRS)
def test_what_is_replaced_is_there_and_nothing_else_is(ours, base):
    node, over = our_classes()[ours], TABLE[ours]
    replaces, sets = set(over.replaces.split()), set(over.sets.split())
    members, stores = own_members(node), of_self(node, ast.Store)
    known = names_in(base) | from_parents(ours)
    assert replaces - known == set(), f"{base} has them no more: ours are never called"
    assert sets - known == set(), f"{base} has them no more: setting them does nothing"
    assert replaces - members == set(), f"{ours} has them no more: the table is out of date"
    assert sets - stores == set(), f"{ours} sets them no more: the table is out of date"
    assert (members | stores) & known - replaces - sets == set(), f"{base} has them, too: by accident?"
    assert of_self(node, ast.Load) - members - stores - known == set(), f"{ours} uses what {base} does not have"


@pytest.mark.parametrize(("ours", "base"), PAIRS)
def test_ours_are_called_as_theirs(ours, base):
    methods = own_methods(our_classes()[ours])
    for name in methods.keys() & set(TABLE[ours].replaces.split()):
        theirs = parameters_in(base, name)
        if theirs is not None:
            assert not misfits(methods[name], theirs), f"{name}: {misfits(methods[name], theirs)}"


def misfits(method: ast.FunctionDef, theirs: list[inspect.Parameter]) -> list[str]:
    """Where a call that suits a base's method does not suit ours.

    Args:
        method: ours.
        theirs: the base's parameters.
    """
    args = method.args
    is_static = any(ast.unparse(decorator) == "staticmethod" for decorator in method.decorator_list)
    ours = [argument.arg for argument in args.posonlyargs + args.args][not is_static :]
    needed = ours[: len(ours) - len(args.defaults)]
    named = {*ours, *(argument.arg for argument in args.kwonlyargs)}
    by_name = [p.name for p in theirs if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    by_place = [p.name for p in theirs if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes_any = any(p.kind == p.VAR_POSITIONAL for p in theirs)
    found = [f"{name} is not taken" for name in by_name if name not in named and args.kwarg is None]
    if method.name == "__init__":  # a new object is made by us, so it may need more
        return found
    found += [f"{one} stands where {other} did" for one, other in zip(ours, by_place, strict=False) if one != other]
    found += [f"{name} is needed" for name in needed if name not in by_name and not takes_any]
    return found


def test_the_table_has_every_class_over_a_librarys():
    """Those with a base that is neither ours nor Python's own, mixins that call `super()`, and all under them."""
    ours = {name.partition(":")[2] for name in our_classes()}
    listed = {name.partition(":")[2] for name in TABLE}
    for name, node in our_classes().items():
        bases = {ast.unparse(base) for base in node.bases}
        is_mixin = not bases and "super()" in ast.unparse(node)
        foreign = bases - ours - {"ABC", "Protocol", "NamedTuple", "TypedDict", *vars(builtins)}
        adds_something = not isinstance(node.body[-1], ast.Pass)
        if adds_something and (is_mixin or foreign or bases & listed):
            assert name in TABLE


def test_trl_makes_its_vllm_client_under_the_name_that_is_replaced():
    """`weights_through_a_folder` puts another class in the place of `VLLMClient` in that module."""
    from trl.generation import vllm_generation

    from data.learning.group_training import weights_through_a_folder

    usual = vllm_generation.VLLMClient
    with weights_through_a_folder():
        assert vllm_generation.VLLMClient.__mro__[1] is usual
    assert vllm_generation.VLLMClient is usual
    methods = vars(vllm_generation.VLLMGeneration).values()
    assert any("VLLMClient" in m.__code__.co_names for m in methods if inspect.isfunction(m))

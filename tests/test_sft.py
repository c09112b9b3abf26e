import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback
from transformers.utils import chat_template_utils

import main_grpo
import main_SFT
from data.arguments import UserError
from data.contract import Contract
from data.encoding import Encoder
from data.engine.models import compile_layers, load_model, load_tokenizer
from data.engine.packing import pack
from data.engine.span_attention import SPAN_ATTENTION
from data.learning.checkpoints import find_checkpoint
from data.learning.checksums import write_checksums
from data.learning.objectives import AnswerCollator, LabelTraining, LossSettings, PackingCollator, answer_rows
from data.learning.trainers import Data, load_data
from data.loading import Example, load_examples
from data.tasks import BUILT_IN_TASKS, resolve_task
from inference import Predictor
from main_SFT import MAY_CHANGE, Args, load_trainable_model, main, share_batches
from tests.conftest import ROOT, SAMPLE

ORIGINAL = BUILT_IN_TASKS["goemotions-original"]


@pytest.fixture
def args(tiny_model_dir, tmp_path) -> Args:
    for split, rows in (("train", 24), ("dev", 8), ("test", 6)):
        lines = (SAMPLE / f"{split}.tsv").read_text(encoding="utf-8").splitlines(keepends=True)[:rows]
        (tmp_path / f"{split}.tsv").write_text("".join(lines), encoding="utf-8")
    return Args(
        model_path=str(tiny_model_dir),
        label_path=str(SAMPLE / "labels.txt"),
        train_data_path=str(tmp_path / "train.tsv"),
        dev_data_path=str(tmp_path / "dev.tsv"),
        output_dir=str(tmp_path / "run"),
        precision="fp32",
        max_steps=6,
        batch_size=4,
        learning_rate=1e-2,
        eval_steps=2,
        logging_steps=1,
    )


def adapter(directory) -> dict[str, torch.Tensor]:
    return load_file(Path(directory) / "adapter_model.safetensors")


def test_the_loss_is_on_the_answer_only(tokenizer):
    encoder = Encoder(ORIGINAL, tokenizer)
    (row,) = answer_rows([Example("1", "thank you", ("gratitude", "joy"))], encoder)
    learnt = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    assert learnt == [label for label in row["labels"] if label != -100]
    assert tokenizer.decode(learnt) == "gratitude, joy<|im_end|>"
    assert row["labels"][-len(learnt) :] == learnt
    assert tokenizer.decode(row["input_ids"]).endswith("<|im_start|>assistant\ngratitude, joy<|im_end|>")


def test_what_is_learnt_is_what_inference_asks(tokenizer):
    encoder = Encoder(ORIGINAL, tokenizer)
    (row,) = answer_rows([Example("1", "thank you", ("joy",))], encoder)
    (prompt,) = encoder.prompt_ids(["thank you"])
    assert row["input_ids"][: len(prompt)] == prompt
    assert row["input_ids"][len(prompt) :] == encoder.target_ids(("joy",))


def test_a_batch_ends_with_its_answers():
    rows = [
        {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "weight": 1.0, "id": "a"},
        {"input_ids": [4], "labels": [4], "weight": 2.0, "id": "b"},
    ]
    batch = AnswerCollator(pad_id=9)(rows)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [9, 9, 4]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch["labels"].tolist() == [[-100, 2, 3], [-100, -100, 4]]
    assert batch["weight"].tolist() == [1.0, 2.0]
    assert batch["ids"] == ["a", "b"]


def plain_loss(model, rows, num_items):
    """Row by row, every position projected: what the fast loss must equal."""
    total = 0.0
    for row in rows:
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        labels = torch.tensor(row["labels"])[1:]
        total = total + torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
    return total / num_items


def bare_trainer(processes: int = 1) -> LabelTraining:
    """No more of a trainer than what compute_loss reads."""
    trainer = LabelTraining.__new__(LabelTraining)
    trainer.args = SimpleNamespace(average_tokens_across_devices=True)
    trainer.accelerator = SimpleNamespace(num_processes=processes, autocast=nullcontext)
    trainer.loss_settings = LossSettings()
    return trainer


@pytest.mark.parametrize("attention", ["eager", "sdpa", SPAN_ATTENTION, "padded"])
@pytest.mark.parametrize("num_items_in_batch", [None, 100])
def test_loss_and_gradients_equal_the_plain_path(tiny_model_dir, tokenizer, num_items_in_batch, attention):
    examples = load_examples(SAMPLE / "dev.tsv", ORIGINAL)[:6]
    rows = list(answer_rows(examples, Encoder(ORIGINAL, tokenizer)))
    batch = (AnswerCollator(tokenizer.pad_token_id) if attention == "padded" else PackingCollator())(rows)
    model = load_model(str(tiny_model_dir), "fp32", "cpu", attention="eager")
    answer_tokens = sum(label != -100 for row in rows for label in row["labels"])
    plain = plain_loss(model, rows, num_items_in_batch or answer_tokens)
    plain.backward()
    plain_gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()

    trainer = bare_trainer()
    if attention != "padded":
        model.set_attn_implementation(attention)
    assert (batch["labels"][:, 1:] != -100).sum() == answer_tokens  # what Transformers counts num_items_in_batch by
    fast = trainer.compute_loss(model, batch, num_items_in_batch=num_items_in_batch)
    fast.backward()
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=0)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, plain_gradients[name], atol=1e-5, rtol=0, msg=name)


def losses_of(output_dir) -> list[float]:
    history = json.loads((Path(output_dir) / "trainer_state.json").read_text())["log_history"]
    return [entry[name] for entry in history for name in ("loss", "eval_loss") if name in entry]


def test_the_same_run_with_and_without_sharing(args, capsys):
    """Same seed, fp32, no dropout: step by step the same losses, gradients accumulated, and the same adapter."""
    found = {}
    for sharing in ("on", "off"):
        output_dir = f"{args.output_dir}-{sharing}"
        main(
            dataclasses.replace(
                args, output_dir=output_dir, prefix_sharing=sharing, gradient_accumulation_steps=2, max_steps=4
            )
        )
        found[sharing] = losses_of(output_dir)
        assert ("prefix sharing on:" in capsys.readouterr().out) is (sharing == "on")
    assert len(found["on"]) == 6  # 4 steps, 2 evaluations
    assert found["on"] == pytest.approx(found["off"], abs=1e-4)
    shared, plain = (adapter(f"{args.output_dir}-{sharing}") for sharing in ("on", "off"))
    for name, tensor in plain.items():
        torch.testing.assert_close(shared[name], tensor, atol=1e-3, rtol=0, msg=name)


def test_two_processes_have_the_gradients_of_one(tiny_model_dir, tokenizer, tmp_path):
    """Each process packs its own half of the batch under DDP (gloo); together, the gradients of the plain path."""
    examples = load_examples(SAMPLE / "dev.tsv", ORIGINAL)[:5]
    rows = list(answer_rows(examples, Encoder(ORIGINAL, tokenizer)))
    model = load_model(str(tiny_model_dir), "fp32", "cpu", attention="eager")
    answer_tokens = sum(label != -100 for row in rows for label in row["labels"])
    plain = plain_loss(model, rows, answer_tokens)
    plain.backward()
    torch.save({"rows": rows, "answer_tokens": answer_tokens}, tmp_path / "batch.pt")
    environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    done = subprocess.run(
        [sys.executable, "-c", TWO_HALVES, str(tiny_model_dir), str(tmp_path)], cwd=ROOT, timeout=120,
        env=os.environ | environment | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0
    halves = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    torch.testing.assert_close((halves[0]["loss"] + halves[1]["loss"]) / 2, plain, atol=1e-5, rtol=0)
    for name, parameter in model.named_parameters():
        for half in halves:
            torch.testing.assert_close(half["gradients"][name], parameter.grad, atol=1e-5, rtol=0, msg=name)


TWO_HALVES = """
import os, sys
from tests.test_sft import half_of_the_batch
children = [os.fork() or half_of_the_batch(rank, *sys.argv[1:]) for rank in range(2)]
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


def half_of_the_batch(rank: int, model_dir: str, folder: str) -> None:
    """What one of two processes does; in a process of its own, which ends here."""
    os.environ["RANK"] = str(rank)
    torch.distributed.init_process_group("gloo")
    batch = torch.load(f"{folder}/batch.pt")
    mine = batch["rows"][rank * 3 : rank * 3 + 3]  # three and two: not the same number of tokens
    (row,) = pack([r["input_ids"] for r in mine], [[label != -100 for label in r["labels"]] for r in mine])
    model = load_model(model_dir, "fp32", "cpu", attention=SPAN_ATTENTION)
    trainer = bare_trainer(processes=2)
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    inputs = {"row": row, "weight": torch.ones(len(mine))}
    loss = trainer.compute_loss(wrapped, inputs, num_items_in_batch=batch["answer_tokens"])
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    torch.save({"loss": loss.detach(), "gradients": gradients}, f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    os._exit(0)  # at the ordinary end, one waits now and then for the other, which has gone


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# --- the loss of the validation rows ---------------------------------------------------------------------------------

EVALUATED = {
    "generate": dict(task=ORIGINAL),
    "score": dict(task=BUILT_IN_TASKS["goemotions-group"], objective="score"),
    "classify": dict(task=BUILT_IN_TASKS["goemotions-group"], objective="classify", head="linear"),
    "contrastive": dict(
        task=BUILT_IN_TASKS["goemotions-group"], objective="score", score_loss="contrastive", head=None
    ),
}  # fmt: skip


def of_many_lengths(task) -> list[Example]:
    """Eleven rows whose texts and answers differ in length."""
    return [Example(str(i), f"text {i} " + "and more " * (i % 4), task.labels[: 1 + i % 3]) for i in range(11)]


def evaluated_loss(way: str, model_dir: str, folder: str, batch_size: int, sharing: str) -> float:
    """`eval_loss` of `of_many_lengths`."""
    flags = dict(EVALUATED[way])
    task = flags.pop("task")
    examples = of_many_lengths(task)
    args = Args(
        model_path=model_dir, task=task.name, train_data_path="x", output_dir=folder, precision="fp32",
        tuning="lora", lora_r=4, lora_alpha=8, lora_dropout=0.0, max_length=512, gradient_checkpointing=False,
        gradient_accumulation_steps=1, num_epochs=1.0, batch_size=batch_size, learning_rate=1e-3, warmup_ratio=0.0,
        warmup_steps=0, weight_decay=0.0, save_total_limit=1, prefix_sharing=sharing, **{"objective": "generate"} | flags,
    )  # fmt: skip
    data = Data(task, examples, examples, [], [], {})
    contract = Contract(task, objective=args.objective, head=args.head, base_model=model_dir)
    torch.manual_seed(0)
    model = load_trainable_model(args, contract)
    encoder = contract.encoder(load_tokenizer(model_dir))
    trainer = main_SFT.build_trainer(args, data, model, encoder, contract)
    for name, parameter in trainer.model.named_parameters():
        if "score" in name:  # a new head is zero, and so is an adapter
            torch.nn.init.normal_(parameter, std=0.5)
    loop = trainer.evaluation_loop(trainer.get_eval_dataloader(), "Evaluation", prediction_loss_only=True)
    assert loop.num_samples == len(trainer.eval_dataset)
    return loop.metrics["eval_loss"]


@pytest.mark.parametrize("way", EVALUATED)
def test_the_loss_of_the_validation_rows_depends_on_them_alone(tiny_model_dir, tmp_path, way):
    found = {
        (batch_size, sharing): evaluated_loss(way, str(tiny_model_dir), str(tmp_path), batch_size, sharing)
        for batch_size, sharing in ((1, "off"), (3, "off"), (8, "off"), (1, "on"), (3, "on"), (8, "on"))
    }
    assert found == pytest.approx(dict.fromkeys(found, found[1, "off"]), rel=1e-6)


def test_the_loss_of_the_validation_rows_is_a_mean_over_answer_tokens(tiny_model_dir, tmp_path):
    found = evaluated_loss("generate", str(tiny_model_dir), str(tmp_path), 8, "on")
    rows = list(answer_rows(of_many_lengths(ORIGINAL), Encoder(ORIGINAL, load_tokenizer(str(tiny_model_dir)))))
    answer_tokens = sum(label != -100 for row in rows for label in row["labels"])
    model = load_model(str(tiny_model_dir), "fp32", "cpu", attention="eager")
    with torch.no_grad():
        assert found == pytest.approx(float(plain_loss(model, rows, answer_tokens)), rel=1e-6)


def test_the_best_checkpoint_by_its_loss(args):
    main(dataclasses.replace(args, metric_for_best="loss"))
    history = json.loads((Path(args.output_dir) / "trainer_state.json").read_text())["log_history"]
    losses = {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}
    assert list(losses) == [2, 4, 6]
    results = json.loads((Path(args.output_dir) / "train_results.json").read_text())
    assert results["best_metric"] == min(losses.values())
    assert losses[results["best_step"]] == results["best_metric"]


def test_two_processes_find_the_loss_of_one(tiny_model_dir, tmp_path):
    """The last batch of eleven rows is filled up with rows that were there before: they do not count again."""
    environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    done = subprocess.run(
        [sys.executable, "-c", TWO_EVALUATIONS, str(tiny_model_dir), str(tmp_path)], cwd=ROOT, timeout=120,
        env=os.environ | environment | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0
    for way in ("generate", "classify"):
        alone = evaluated_loss(way, str(tiny_model_dir), str(tmp_path), 4, "on")
        both = [json.loads((tmp_path / f"{rank}.json").read_text())[way] for rank in range(2)]
        assert both == pytest.approx([alone, alone], rel=1e-6)


TWO_EVALUATIONS = """
import os, sys
from tests.test_sft import evaluate_together
children = [os.fork() or evaluate_together(rank, *sys.argv[1:]) for rank in range(2)]
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


def evaluate_together(rank: int, model_dir: str, folder: str) -> None:
    """What one of two processes does; in a process of its own, which ends here."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    found = {way: evaluated_loss(way, model_dir, folder, 4, "on") for way in ("generate", "classify")}
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    os._exit(0)


UNRELATED = [[i + 10, *range(19)] for i in range(40)]
SHARED = [[*range(19), i + 10] for i in range(40)]


@pytest.mark.parametrize(
    ("sharing", "rows", "packed", "message"),
    [
        ("on", UNRELATED, True, "prefix sharing on: 95% of a padded batch's tokens"),
        ("off", SHARED, False, ""),
        ("auto", UNRELATED, False, "prefix sharing off: it would leave 95% of a padded batch's tokens"),
        ("auto", SHARED, True, "prefix sharing on: 24% of a padded batch's tokens"),
    ],
)
def test_whether_prefixes_are_shared(args, capsys, sharing, rows, packed, message):
    model = load_model(args.model_path, "fp32", "cpu")
    capsys.readouterr()
    args = dataclasses.replace(args, prefix_sharing=sharing, max_length=512)
    assert share_batches(args, model, {"input_ids": rows}) is packed
    assert (model.config._attn_implementation == SPAN_ATTENTION) is packed
    out = capsys.readouterr().out
    assert out.startswith(message)
    assert bool(out) == bool(message)


def test_spans_are_the_way_to_compute_long_rows(args, capsys):
    model = load_model(args.model_path, "fp32", "cpu")
    assert share_batches(dataclasses.replace(args, max_length=8192), model, {"input_ids": UNRELATED}) is True
    assert model.config._attn_implementation == SPAN_ATTENTION


@pytest.mark.parametrize(("attention", "packed"), [("sdpa", False), ("flex_attention", True)])
def test_no_mask_of_all_pairs_for_long_rows(args, capsys, monkeypatch, attention, packed):
    """As on a GPU, with FlexAttention and without."""
    monkeypatch.setattr("data.engine.tree_attention.sharing_attention", lambda *_: attention)
    model = load_model(args.model_path, "fp32", "cpu")
    rows = {"input_ids": [[*range(4090), i] for i in range(20)] + [[1] * 5000]}
    long = dataclasses.replace(args, max_length=8192)
    assert share_batches(long, model, rows) is packed
    assert ("tokens would take too much memory" in capsys.readouterr().out) is not packed


def test_a_dense_mask_may_cost_more_than_it_saves(args, capsys):
    model = load_model(args.model_path, "fp32", "cpu")
    model.config.attention_dropout = 0.1
    rows = {"input_ids": [[i + 10] * (10 if i % 2 else 30) for i in range(40)]}
    assert share_batches(args, model, rows) is False
    assert "a dense mask would have attention compute" in capsys.readouterr().out


def test_a_model_that_cannot_share(args, capsys):
    model = load_model(args.model_path, "fp32", "cpu")
    model.config.layer_types = ["full_attention", "linear_attention"]
    dataset = {"input_ids": [[1, 2, 3]] * 8}
    assert share_batches(args, model, dataset) is False
    assert capsys.readouterr().out.endswith(
        "cannot share prefixes, since it has layers of kind linear_attention; every text is computed whole\n"
    )
    with pytest.raises(UserError, match=r"--prefix_sharing on: .* cannot share prefixes, since it has layers of kind"):
        share_batches(dataclasses.replace(args, prefix_sharing="on"), model, dataset)


def test_compiling_needs_a_compiler(args):
    with (
        torch._inductor.config.patch({"cpp.cxx": ("/nowhere/g++",)}),
        pytest.raises(UserError, match="--compile: needs a C"),
    ):
        compile_layers(load_model(args.model_path, "fp32", "cpu"))
    with pytest.raises(UserError, match="--compile: this model has no layers"):
        compile_layers(torch.nn.Linear(2, 2))


def test_a_lora_run_from_start_to_scores(args, tmp_path):
    before = load_file(Path(args.model_path) / "model.safetensors")
    main(dataclasses.replace(args, test_data_path=str(tmp_path / "test.tsv"), gradient_accumulation_steps=2))
    run = Path(args.output_dir)
    for name in (
        "adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "task.json", "args.json",
        "data_report.json", "train_results.json", "trainer_state.json", "test_results.json", "test_summary.txt",
        "predictions.jsonl", "checkpoint-6/task.json",
    ):  # fmt: skip
        assert (run / name).is_file(), name
    assert any((run / "runs").rglob("events.out.tfevents*"))
    assert len(list(run.glob("checkpoint-*"))) <= 2
    results = json.loads((run / "train_results.json").read_text())
    assert results["metric_for_best"] == "f1_macro"
    assert results["steps"] == 6
    assert 0 < results["trainable_parameters"] < results["all_parameters"]
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[-1] < losses[0]
    assert [entry["step"] for entry in history if "eval_f1_macro" in entry] == [2, 4, 6]
    # the adapter has moved, the base model has not
    assert any(bool(tensor.abs().sum() > 0) for name, tensor in adapter(run).items() if "lora_B" in name)
    for name, tensor in load_file(Path(args.model_path) / "model.safetensors").items():
        assert torch.equal(tensor, before[name])


def test_the_directory_predicts_what_was_scored(args, tmp_path):
    main(dataclasses.replace(args, test_data_path=str(tmp_path / "test.tsv")))
    written = [
        json.loads(line)
        for line in (Path(args.output_dir) / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    predictor = Predictor(args.output_dir, precision="fp32")
    assert [p.completion for p in predictor.predict_batch([row["text"] for row in written])] == [
        row["completion"] for row in written
    ]
    with pytest.raises(UserError, match="contradicts"):
        Predictor(args.output_dir, task="sst2")


def test_full_tuning_writes_a_plain_model(args):
    main(dataclasses.replace(args, tuning="full", learning_rate=1e-3, max_steps=2))
    before = load_file(Path(args.model_path) / "model.safetensors")
    after = AutoModelForCausalLM.from_pretrained(args.output_dir).state_dict()
    assert all(not torch.equal(after[name], tensor) for name, tensor in before.items() if "layernorm" not in name)
    assert Predictor(args.output_dir, precision="fp32").predict("hello").completion is not None


def test_a_run_that_writes_is_calibrated(args, tmp_path, capsys):
    """And one that was killed before goes on to it."""
    args = dataclasses.replace(args, test_data_path=str(tmp_path / "test.tsv"))
    main(args)
    run = Path(args.output_dir)
    contract, file = Contract.load(run), run / "calibration.json"
    fitted = json.loads(file.read_text())
    assert fitted["n"] == 8
    assert contract.temperature == fitted["temperature"] != 1.0
    assert contract.thresholds == fitted["thresholds"]
    assert contract.thresholds.keys() == ORIGINAL.ids.keys()
    assert contract.decide == fitted["decide"] == max(fitted["f1_macro"], key=fitted["f1_macro"].get)
    assert f"labels are decided by {contract.decide}: f1_macro of answer " in capsys.readouterr().out
    scores = json.loads((run / "test_results.json").read_text())
    assert {"auc", "ece", "brier"} <= scores.keys()
    assert set(scores["uncalibrated"]) == {"ece", "brier"}
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(row["probabilities"].keys() == ORIGINAL.ids.keys() for row in rows)

    file.unlink()
    dataclasses.replace(contract, temperature=1.0, thresholds=None, decide="answer").save(run)
    main(args)
    assert "trained to its end already" in capsys.readouterr().out
    again = Contract.load(run)
    assert again.decide == contract.decide
    assert again.temperature == pytest.approx(contract.temperature, rel=1e-4)
    assert again.thresholds == pytest.approx(contract.thresholds, abs=1e-4)
    assert json.loads(file.read_text()).keys() == fitted.keys()

    main(dataclasses.replace(args, calibration=False, output_dir=str(tmp_path / "plain"), max_steps=2))
    assert Contract.load(tmp_path / "plain").thresholds is None
    assert not (tmp_path / "plain" / "calibration.json").exists()


class Killed(BaseException):
    pass


class KillAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed


def run_until_killed(stage, args, step: int, monkeypatch) -> None:
    """Run a stage, main_SFT or main_grpo, until it is killed behind a step."""
    build = stage.build_trainer

    def build_and_kill(*arguments):
        trainer = build(*arguments)
        trainer.add_callback(KillAt(step))
        return trainer

    with monkeypatch.context() as patch:
        patch.setattr(stage, "build_trainer", build_and_kill)
        with pytest.raises(Killed):
            stage.main(args)


def test_a_killed_run_goes_on_to_the_same_result(args, tmp_path, monkeypatch):
    args = dataclasses.replace(args, lora_dropout=0.1)  # so that the random state counts too
    main(args)
    killed = dataclasses.replace(args, output_dir=str(tmp_path / "killed"))
    run_until_killed(main_SFT, killed, 5, monkeypatch)
    # a checkpoint that was being written when the run was killed
    half = tmp_path / "killed" / "checkpoint-5"
    half.mkdir()
    (half / "trainer_state.json").write_text("{")
    (tmp_path / "killed" / "checkpoint-mine").mkdir()  # not one of the trainer's
    main(killed)
    results = json.loads((tmp_path / "killed" / "train_results.json").read_text())
    assert results["resumed_from"].endswith("checkpoint-4")
    expected, found = adapter(args.output_dir), adapter(tmp_path / "killed")
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def marked_rows(path: Path, rows: int) -> None:
    """A table with a column for each of two labels, of which some rows have neither."""
    lines = (f"it is text {i},{i % 3 == 0:d},{i % 4 == 0:d}" for i in range(rows))
    path.write_text("text,Joy,fear\n" + "\n".join(lines) + "\n")


def test_a_run_on_texts_without_a_label(args, tmp_path, monkeypatch):
    (tmp_path / "labels.txt").write_text("joy\nfear\n")
    marked_rows(tmp_path / "train.csv", 24)
    marked_rows(tmp_path / "dev.csv", 12)
    args = dataclasses.replace(
        args, label_path=str(tmp_path / "labels.txt"), train_data_path=str(tmp_path / "train.csv"),
        dev_data_path=str(tmp_path / "dev.csv"), test_data_path=str(tmp_path / "dev.csv"), class_weights="balanced",
    )  # fmt: skip
    with pytest.raises(UserError, match=r"train.csv:3: no label, which needs --allow_none"):
        main(args)
    args = dataclasses.replace(args, allow_none=True)
    main(args)
    contract = Contract.load(args.output_dir)
    task = contract.task
    assert (task.allow_none, task.most_labels, task.kind) == (True, 2, "multi_label")
    assert contract.thresholds.keys() == {"joy", "fear"}
    rows = [json.loads(line) for line in (Path(args.output_dir) / "predictions.jsonl").read_text().splitlines()]
    gold = [["joy"] * (i % 3 == 0) + ["fear"] * (i % 4 == 0) for i in range(12)]
    assert [row["gold"] for row in rows] == gold
    assert all(row["valid"] for row in rows)
    if contract.decide == "answer":
        assert all(row["completion"] == task.target(row["labels"]) for row in rows)
    results = json.loads((Path(args.output_dir) / "test_results.json").read_text())
    assert results["accuracy"] == sum(row["labels"] == row["gold"] for row in rows) / 12
    report = json.loads((Path(args.output_dir) / "data_report.json").read_text())
    assert report["train_rows_without_a_label"] == 12

    killed = dataclasses.replace(args, output_dir=str(tmp_path / "killed"))
    run_until_killed(main_SFT, killed, 5, monkeypatch)
    main(killed)
    expected, found = adapter(args.output_dir), adapter(tmp_path / "killed")
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_a_head_on_texts_without_a_label(args, tmp_path):
    (tmp_path / "labels.txt").write_text("joy\nfear\n")
    marked_rows(tmp_path / "train.csv", 24)
    args = dataclasses.replace(
        args, label_path=str(tmp_path / "labels.txt"), train_data_path=str(tmp_path / "train.csv"), allow_none=True,
        dev_data_path=str(tmp_path / "train.csv"), objective="classify", prompt="text_only", class_weights="balanced",
    )  # fmt: skip
    main(args)
    with Predictor(args.output_dir, precision="fp32") as predictor:
        assert predictor.contract.thresholds.keys() == {"joy", "fear"}
        strict = dataclasses.replace(predictor.contract, thresholds={"joy": 1.0, "fear": 1.0})
        predictor.contract = strict
        (prediction,) = predictor.predict_batch(["it is text 5"])
    assert (prediction.labels, prediction.valid) == ((), True)


def test_a_run_of_an_earlier_version_goes_on_with_its_own_number_of_labels(args, monkeypatch):
    build = main_SFT.build_trainer

    def build_and_kill(*arguments):
        trainer = build(*arguments)
        trainer.add_callback(KillAt(5))
        return trainer

    monkeypatch.setattr(main_SFT, "build_trainer", build_and_kill)
    with pytest.raises(Killed):
        main(args)
    monkeypatch.undo()
    for path in Path(args.output_dir).glob("checkpoint-*/task.json"):
        content = json.loads(path.read_text())
        assert content["task"].pop("most_labels") == 2
        assert content["task"].pop("allow_none") is False
        path.write_text(json.dumps(content))
        write_checksums(path.parent)
    main(args)
    assert json.loads((Path(args.output_dir) / "train_results.json").read_text())["resumed_from"]
    assert Contract.load(args.output_dir).task.most_labels == 5


def test_a_template_with_the_date_asks_the_same_question_on_every_day(args, tmp_path, monkeypatch):
    dated = tmp_path / "dated"
    shutil.copytree(args.model_path, dated)
    template = load_tokenizer(args.model_path).chat_template
    (dated / "chat_template.jinja").write_text("Today is {{ strftime_now('%A') }}.\n" + template)

    def on(day: str) -> None:
        now = SimpleNamespace(now=lambda: SimpleNamespace(strftime=lambda _: day))
        monkeypatch.setattr(chat_template_utils, "datetime", now)

    def encoder_of_run(settings) -> Encoder:
        """What a run that is started now asks with."""
        seen = []

        def build(args, data, model, encoder, contract):
            seen.append((encoder, contract))
            raise Killed

        stage = main_SFT if isinstance(settings, Args) else main_grpo
        with monkeypatch.context() as patch:
            patch.setattr(stage, "build_trainer", build)
            with pytest.raises(Killed):
                stage.main(settings)
        ((encoder, contract),) = seen
        assert contract.prompt == encoder.prompt
        return encoder

    on("Monday")
    args = dataclasses.replace(args, model_path=str(dated), max_steps=2, eval_samples=2)
    main(args)
    run = Path(args.output_dir)
    (asked,) = Contract.load(run).encoder(load_tokenizer(args.output_dir)).prompt_ids(["so glad"])
    assert "Today is Monday." in load_tokenizer(args.output_dir).decode(asked)
    on("Tuesday")
    with Predictor(args.output_dir, precision="fp32") as predictor:
        assert predictor.encoder.prompt_ids(["so glad"]) == [asked]
    (run / "train_results.json").unlink()  # as if it had been killed behind its last checkpoint
    assert encoder_of_run(args).prompt_ids(["so glad"]) == [asked]
    grpo = main_grpo.Args(
        model_path=args.output_dir, train_data_path=args.train_data_path, output_dir=str(tmp_path / "grpo"),
        precision="fp32", max_steps=2, batch_size=8,
    )  # fmt: skip
    assert encoder_of_run(grpo).prompt_ids(["so glad"]) == [asked]
    new = encoder_of_run(dataclasses.replace(args, output_dir=str(tmp_path / "new")))
    assert "Today is Tuesday." in new.decode(new.head_ids)


def test_a_finished_run_is_not_trained_again(args, capsys):
    main(args)
    before = (Path(args.output_dir) / "adapter_model.safetensors").stat().st_mtime_ns
    main(args)
    assert "trained to its end already" in capsys.readouterr().out
    assert (Path(args.output_dir) / "adapter_model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="began with"):
        main(dataclasses.replace(args, learning_rate=5e-5))
    newest = str(Path(args.output_dir) / "checkpoint-6")
    with pytest.raises(UserError, match="began with"):
        main(dataclasses.replace(args, learning_rate=5e-5, resume_from_checkpoint=newest))
    with pytest.raises(UserError, match="holds a model that is no run"):
        main(dataclasses.replace(args, output_dir=args.model_path))
    with pytest.raises(UserError, match=r"--max_steps 9: .* began with 6"):
        main(dataclasses.replace(args, max_steps=9))
    with pytest.raises(UserError, match="holds a run already"):
        find_checkpoint(dataclasses.replace(args, resume_from_checkpoint="none"), MAY_CHANGE)
    with pytest.raises(UserError, match="not a whole checkpoint"):
        find_checkpoint(dataclasses.replace(args, resume_from_checkpoint="nowhere"), MAY_CHANGE)
    elsewhere = Path(args.output_dir + "-2")
    shutil.copytree(args.output_dir, elsewhere)
    with pytest.raises(UserError, match="holds another run than"):
        main(dataclasses.replace(args, output_dir=str(elsewhere), resume_from_checkpoint=newest))
    Contract(BUILT_IN_TASKS["sst2"]).save(args.output_dir)  # as if labels.txt had been another then
    with pytest.raises(UserError, match="learns task sst2"):
        main(args)


def test_an_answer_inference_could_not_give(tokenizer):
    with pytest.raises(UserError, match=r"row c7: its answer takes \d+ tokens.*'all of it'"):
        answer_rows([Example("c7", "all of it", ORIGINAL.labels[:12])], Encoder(ORIGINAL, tokenizer))


def test_an_answer_has_as_many_labels_as_the_training_data(args, tmp_path, capsys):
    (tmp_path / "many.tsv").write_text("fine\t3\tc1\nall of it\t1,2,3,4,5,6\tc2\n" + "so so\t4\tc3\n" * 6)
    many = dataclasses.replace(args, train_data_path=str(tmp_path / "many.tsv"), max_steps=1, eval_samples=2)
    main(dataclasses.replace(many, train_data_path=args.train_data_path, dev_data_path=many.train_data_path))
    assert "1 of 8 validation rows have more labels than any training row (2), so that no answer can be" in (
        capsys.readouterr().out
    )
    grpo = main_grpo.Args(
        model_path=args.output_dir,
        train_data_path=many.train_data_path,
        output_dir=str(tmp_path / "grpo"),
        batch_size=8,
    )
    with pytest.raises(UserError, match=r"many.tsv:2: 6 labels, while an answer holds at most 2"):
        main_grpo.main(grpo)  # that of the start's task.json
    assert not (tmp_path / "grpo").exists()
    untuned = dataclasses.replace(grpo, model_path=args.model_path, label_path=args.label_path)
    assert load_data(untuned, ORIGINAL, kind_known=True).task.most_labels == 6
    main(dataclasses.replace(many, output_dir=str(tmp_path / "many")))
    assert Contract.load(tmp_path / "many").task.most_labels == 6
    compared = dataclasses.replace(many, objective="score", output_dir=str(tmp_path / "compared"))
    main(compared)  # a row for each label


def test_layers_the_model_does_not_have(args):
    with pytest.raises(UserError, match="--lora_target_modules w_pack: the model has down_proj, gate_proj"):
        main(dataclasses.replace(args, lora_target_modules=["q_proj", "w_pack"]))
    assert not Path(args.output_dir).exists()


def test_more_positions_than_the_model_has(args):
    with pytest.raises(UserError, match=r"--max_length: prompt and answer may take 4096 tokens, .* reads 2048"):
        main(dataclasses.replace(args, max_length=4096))


def test_a_run_that_saved_nothing_yet_may_begin_otherwise(args):
    Path(args.output_dir).mkdir()
    (Path(args.output_dir) / "args.json").write_text(json.dumps({"learning_rate": 3.0}))
    assert find_checkpoint(args, MAY_CHANGE) is None


def test_own_labels_become_a_single_label_task(args, tmp_path):
    (tmp_path / "labels.txt").write_text("bird\nfish\n")
    rows = "".join(f"text {i} about it\t{i % 2}\n" for i in range(40))
    (tmp_path / "animals.tsv").write_text(rows)
    own = dataclasses.replace(
        args, label_path=str(tmp_path / "labels.txt"), train_data_path=str(tmp_path / "animals.tsv"), dev_data_path=None
    )
    data = load_data(own, resolve_task(None, own.label_path), kind_known=False)
    assert data.task.kind == "single_label"
    assert (len(data.train), len(data.dev)) == (34, 6)
    main(own)
    assert json.loads((Path(args.output_dir) / "train_results.json").read_text())["metric_for_best"] == "accuracy"
    assert json.loads((Path(args.output_dir) / "task.json").read_text())["task"]["kind"] == "single_label"


def test_reasoning_is_learnt_from_rationales(args, tmp_path):
    rows = [{"text": f"text {i}", "label": "joy", "rationale": f"because of {i}"} for i in range(8)]
    (tmp_path / "cot.jsonl").write_text("\n".join(map(json.dumps, rows)))
    cot = dataclasses.replace(
        args, cot=True, max_length=1024, train_data_path=str(tmp_path / "cot.jsonl"), dev_data_path=None, max_steps=1,
        eval_samples=1,
    )  # fmt: skip
    data = load_data(cot, ORIGINAL, kind_known=True, rationales=True)
    encoder = Encoder(ORIGINAL, load_tokenizer(args.model_path), cot=True, max_length=1024)
    (row,) = answer_rows(data.train[:1], encoder)
    learnt = encoder.decode([token for token in row["labels"] if token != -100])
    assert learnt == f"<think>\n{data.train[0].rationale}\n</think>\n<answer>joy</answer>"
    main(cot)
    assert Predictor(args.output_dir, precision="fp32").contract.cot

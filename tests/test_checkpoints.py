"""Checkpoints: damaged ones, moved ones, which are kept; runs whose input has changed; two processes in one folder."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

import inference
import main_grpo
import main_SFT
import merge_lora
from data.arguments import UserError
from data.contract import Contract
from data.files import exclusive
from data.learning.checkpoints import check_best, checkpoints_in, remove_oldest, start_hashes
from data.learning.checksums import CHECKSUMS_FILE, damage, write_checksums
from tests.conftest import ROOT, SAMPLE
from tests.test_sft import KillAt, Killed

OF_A_RUN = (
    "adapter_model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "task.json",
    "trainer_state.json",
)


def sft_args(model_dir, folder: Path) -> main_SFT.Args:
    for split, rows in (("train", 24), ("dev", 4)):
        lines = (SAMPLE / f"{split}.tsv").read_text(encoding="utf-8").splitlines(keepends=True)[:rows]
        (folder / f"{split}.tsv").write_text("".join(lines), encoding="utf-8")
    shutil.copy(SAMPLE / "labels.txt", folder)
    return main_SFT.Args(
        model_path=str(model_dir), label_path=str(folder / "labels.txt"), train_data_path=str(folder / "train.tsv"),
        dev_data_path=str(folder / "dev.tsv"), output_dir=str(folder / "run"), precision="fp32", max_steps=6,
        batch_size=4, learning_rate=1e-2, eval_steps=2, logging_steps=1, lora_dropout=0.1, metric_for_best="loss",
        eval_samples=2,
    )  # fmt: skip


class KillAfterSave(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed


def run_until(step: int, args, kill=KillAt) -> None:
    """Train, and be killed behind `step`."""
    build = main_SFT.build_trainer

    def build_and_kill(*arguments):
        trainer = build(*arguments)
        trainer.add_callback(kill(step))
        return trainer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main_SFT, "build_trainer", build_and_kill)
        with pytest.raises(Killed):
            main_SFT.main(args)


@pytest.fixture(scope="module")
def begun(tiny_model_dir, tmp_path_factory) -> Path:
    """A folder with data and a model, the run in `run` was killed at step 5; `whole` is the same run to its end."""
    folder = tmp_path_factory.mktemp("begun")
    shutil.copytree(tiny_model_dir, folder / "model")
    args = sft_args(folder / "model", folder)
    run_until(5, args)
    main_SFT.main(dataclasses.replace(args, output_dir=str(folder / "whole")))
    return folder


@pytest.fixture
def args(begun, tmp_path) -> main_SFT.Args:
    """The killed run, in a folder of its own."""
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob("run/args.json"):  # the paths it began with
        path.write_text(path.read_text().replace(str(begun), str(tmp_path)))
    return sft_args(tmp_path / "model", tmp_path)


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "adapter_model.safetensors")


def check_same_end(args, capsys=None) -> dict:
    """The run ends as the undisturbed one."""
    main_SFT.main(args)
    expected, found = weights(Path(args.output_dir).parent / "whole"), weights(args.output_dir)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    return json.loads((Path(args.output_dir) / "train_results.json").read_text())


def flip(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 0x10
    path.write_bytes(content)


# --- code in the place of numbers -----------------------------------------------------------------------------------


class Code:
    """A pickle of it leaves a file where it is read."""

    def __init__(self, marker: Path):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


def with_code(file: Path, marker: Path) -> None:
    """Code in a file, around which all is in order."""
    torch.save({"state": Code(marker)}, file)
    if (file.parent / CHECKSUMS_FILE).is_file():
        write_checksums(file.parent)


def test_such_code_would_run(tmp_path):
    with_code(tmp_path / "x.pt", tmp_path / "marker")
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert (tmp_path / "marker").is_file()


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.bin", "scaler.pt", "answers_0.pt"]
)
def test_code_in_a_checkpoint_is_not_run(args, tmp_path, name):
    checkpoint = tmp_path / "run" / "checkpoint-4"
    if name == "adapter_model.bin":
        (checkpoint / "adapter_model.safetensors").unlink()
    with_code(checkpoint / name, tmp_path / "marker")
    for resumed in ("auto", str(checkpoint)):
        with pytest.raises(UserError, match=rf"checkpoint-4/{name}: .* would run code when it is read \(io\.open\)"):
            main_SFT.main(dataclasses.replace(args, resume_from_checkpoint=resumed))
    assert not (tmp_path / "marker").exists()


def test_code_in_the_best_checkpoint_is_not_run(args, tmp_path):
    best = tmp_path / "run" / "checkpoint-4"
    (best / "adapter_model.safetensors").unlink()
    with_code(best / "adapter_model.bin", tmp_path / "marker")
    with pytest.raises(UserError, match=r"adapter_model\.bin: .* would run code"):
        check_best(best)
    torch.save({}, best / "adapter_model.bin")
    with_code(best / "optimizer.pt", tmp_path / "marker")
    check_best(best)  # of which only the weights are read
    assert not (tmp_path / "marker").exists()


def test_training_arguments_are_never_read(args, tmp_path):
    for folder in (tmp_path / "run" / "checkpoint-4", tmp_path / "run", tmp_path / "model"):
        with_code(folder / "training_args.bin", tmp_path / "marker")
    check_same_end(args)
    inference.main(inference.Args(model_path=args.output_dir, text="fine", precision="fp32"))
    merge_lora.main(merge_lora.Args(training_output_dir=args.output_dir, output_dir=str(tmp_path / "merged")))
    assert not (tmp_path / "marker").exists()


# --- damage ---------------------------------------------------------------------------------------------------------

DAMAGES = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", OF_A_RUN)
@pytest.mark.parametrize("has_checksums", [True, False])
def test_each_file_of_a_checkpoint_counts(begun, tmp_path, name, how, has_checksums):
    checkpoint = shutil.copytree(begun / "run" / "checkpoint-4", tmp_path / "checkpoint-4")
    if not has_checksums:  # of an earlier version, or killed just before they were written
        (checkpoint / CHECKSUMS_FILE).unlink()
    assert damage(checkpoint) is None
    DAMAGES[how](checkpoint / name)
    which = "weights" if name.endswith("safetensors") and not (checkpoint / name).is_file() else name
    assert damage(checkpoint).startswith(f"{name if has_checksums else which}: ")
    assert (damage(checkpoint, of_model=True) is not None) is not name.endswith((".pt", ".pth"))


@given(name=st.sampled_from(OF_A_RUN), place=st.floats(0, 1, exclude_max=True))
@example(name="scheduler.pt", place=0.8125)  # in a part's name
@settings(max_examples=100, deadline=None)
def test_a_flipped_bit_is_seen_where_it_changes_what_is_loaded(begun, tmp_path_factory, name, place):
    folder = tmp_path_factory.mktemp("flipped")
    checkpoint = shutil.copytree(begun / "run" / "checkpoint-4", folder / "checkpoint-4")
    path = checkpoint / name
    before = loaded(path)
    flip(path, place)
    assert damage(checkpoint) is not None or same(loaded(path), before)
    shutil.rmtree(folder)


def loaded(path: Path):
    if path.suffix in (".pt", ".pth"):
        with zipfile.ZipFile(path) as archive:
            return {part: archive.read(part) for part in archive.namelist()}
    return path.read_bytes()


def same(one, other) -> bool:
    return one == other


@pytest.mark.parametrize("name", OF_A_RUN)
def test_a_damaged_newest_checkpoint_is_passed_over(args, capsys, name):
    run = Path(args.output_dir)
    before = len((run / "checkpoint-4" / name).read_bytes())
    (run / "checkpoint-4" / name).write_bytes(b"")
    results = check_same_end(args)
    assert results["resumed_from"].endswith("checkpoint-2")
    said = f"warning: {run / 'checkpoint-4'}: passed over, since it is not whole ({name}: has 0 bytes, {before} were"
    assert capsys.readouterr().out.count(said) == 1
    assert damage(run / "checkpoint-6") is None


def test_flipped_bytes_of_the_optimizer_do_not_become_other_weights(args):
    path = Path(args.output_dir) / "checkpoint-4" / "optimizer.pt"
    flip(path, 0.5)
    assert check_same_end(args)["resumed_from"].endswith("checkpoint-2")


def test_no_checkpoint_is_whole(args, capsys):
    for checkpoint in checkpoints_in(args.output_dir):
        (checkpoint / "optimizer.pt").unlink()
    assert check_same_end(args)["resumed_from"] is None
    out = capsys.readouterr().out
    assert out.count("passed over, since it is not whole (optimizer.pt: is missing)") == 2
    assert f"warning: no checkpoint in {args.output_dir} is whole; the run begins anew" in out


def test_a_run_of_an_earlier_version_goes_on(args):
    """No checksums, no hashes."""
    run = Path(args.output_dir)
    for path in run.glob(f"checkpoint-*/{CHECKSUMS_FILE}"):
        path.unlink()
    flags = json.loads((run / "args.json").read_text())
    del flags["content_hashes"]
    (run / "args.json").write_text(json.dumps(flags))
    for checkpoint in checkpoints_in(run):
        contract = json.loads((checkpoint / "task.json").read_text())
        del contract["data_hashes"]
        (checkpoint / "task.json").write_text(json.dumps(contract))
    assert check_same_end(args)["resumed_from"].endswith("checkpoint-4")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", r"--resume_from_checkpoint : not a whole checkpoint \("),
        ("{run}", r"\(optimizer.pt: is missing\)|\(.*: is missing\)"),
        ("{run}/args.json", r"\(no such folder\)"),
        ("{run}/checkpoint-99", r"\(no such folder\)"),
        ("{run}/checkpoint-4/task.json/x", r"\(no such folder\)"),
        ("x" * 3000, "not a whole checkpoint|too long"),
        ("a\0b", "not a whole checkpoint|null byte"),
    ],
)
def test_an_odd_path_to_go_on_from(args, path, message):
    args = dataclasses.replace(args, resume_from_checkpoint=path.format(run=args.output_dir))
    with pytest.raises((UserError, OSError), match=message):
        main_SFT.main(args)


def test_a_damaged_checkpoint_that_was_asked_for(args):
    checkpoint = Path(args.output_dir) / "checkpoint-4"
    (checkpoint / "scheduler.pt").unlink()
    with pytest.raises(UserError, match=r"checkpoint-4: not a whole checkpoint \(scheduler.pt: is missing\)"):
        main_SFT.main(dataclasses.replace(args, resume_from_checkpoint=str(checkpoint)))
    assert check_same_end(dataclasses.replace(args, resume_from_checkpoint=str(checkpoint.parent / "checkpoint-2")))


@pytest.mark.parametrize("content", ["", "null", "[1]", "{", '{"learning_rate": {}}', '{"content_hashes": 3}'])
def test_broken_flags_of_a_run(args, content):
    (Path(args.output_dir) / "args.json").write_text(content)
    with pytest.raises(UserError, match=r"args\.json|--learning_rate 0\.01"):
        main_SFT.main(args)


@pytest.mark.parametrize("content", ["", "null", "[1]", '{"steps": "x"}'])
def test_broken_results_of_a_run(args, content):
    (Path(args.output_dir) / "train_results.json").write_text(content)
    with pytest.raises(UserError, match=r"train_results\.json: "):
        main_SFT.main(args)


@pytest.mark.parametrize(
    "state", ["null", "[]", "{}", '{"global_step": "4"}', '{"global_step": 4, "log_history": 3}', "[" * 5000]
)
def test_a_broken_state_of_an_earlier_version(args, state):
    run = Path(args.output_dir)
    (run / "checkpoint-4" / CHECKSUMS_FILE).unlink()
    (run / "checkpoint-4" / "trainer_state.json").write_text(state)
    assert damage(run / "checkpoint-4").startswith("trainer_state.json: ")


def test_a_run_that_was_killed_between_its_last_checkpoint_and_its_end(args):
    """Its steps do not end with an epoch, and the last learning rate is not 0."""
    args = dataclasses.replace(args, output_dir=args.output_dir + "-2", lr_scheduler_type="constant", max_steps=4)
    main_SFT.main(args)
    killed = dataclasses.replace(args, output_dir=args.output_dir + "-3")
    run_until(4, killed, KillAfterSave)
    main_SFT.main(killed)
    results = json.loads((Path(killed.output_dir) / "train_results.json").read_text())
    assert (results["steps"], Path(results["resumed_from"]).name) == (4, "checkpoint-4")
    for name, tensor in weights(args.output_dir).items():
        assert torch.equal(weights(killed.output_dir)[name], tensor), name


# --- the best checkpoint ----------------------------------------------------------------------------------------------


def best_of(run: Path) -> Path:
    """Makes checkpoint-2 the best so far of the killed run, with a score that no later step reaches."""
    for checkpoint in (run / "checkpoint-4",):
        path = checkpoint / "trainer_state.json"
        state = json.loads(path.read_text())
        state |= {"best_global_step": 2, "best_metric": 0.0, "best_model_checkpoint": str(run / "checkpoint-2")}
        path.write_text(json.dumps(state))
        (checkpoint / CHECKSUMS_FILE).unlink()
    return run / "checkpoint-2"


def test_the_best_of_a_moved_run_is_found(args, tmp_path):
    best = best_of(Path(args.output_dir))
    expected = weights(best)
    moved = str(shutil.move(args.output_dir, tmp_path / "moved"))
    main_SFT.main(dataclasses.replace(args, output_dir=moved, max_steps=4))  # nothing is saved any more
    assert json.loads((Path(moved) / "train_results.json").read_text())["best_step"] == 2
    for name, tensor in weights(moved).items():
        assert torch.equal(tensor, expected[name])


def test_a_damaged_best_checkpoint_is_not_loaded(args):
    best = best_of(Path(args.output_dir))
    flip(best / "adapter_model.safetensors", 0.9)
    with pytest.raises(UserError, match=r"checkpoint-2: the best model of the run, but not whole \(adapter_model"):
        main_SFT.main(args)
    assert not (Path(args.output_dir) / "train_results.json").exists()


def test_the_best_is_damaged_while_the_run_goes_on(args, monkeypatch):
    best = best_of(Path(args.output_dir))

    class Damage(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 6:
                flip(best / "adapter_model.safetensors", 0.9)

    build = main_SFT.build_trainer

    def build_and_damage(*arguments):
        trainer = build(*arguments)
        trainer.add_callback(Damage())
        return trainer

    monkeypatch.setattr(main_SFT, "build_trainer", build_and_damage)
    with pytest.raises(UserError, match=r"checkpoint-2: the best model of the run, but not whole \(adapter_model"):
        main_SFT.main(args)
    assert not (Path(args.output_dir) / "train_results.json").exists()


def test_a_best_checkpoint_that_is_gone(args, capsys):
    """The best of what is left is taken, and the results say so."""
    shutil.rmtree(best_of(Path(args.output_dir)))
    main_SFT.main(dataclasses.replace(args, max_steps=4))
    assert "checkpoint-2: the best so far is not there any more" in capsys.readouterr().out
    results = json.loads((Path(args.output_dir) / "train_results.json").read_text())
    assert results["best_step"] == 4
    assert results["best_metric"] > 0
    for name, tensor in weights(Path(args.output_dir) / "checkpoint-4").items():
        assert torch.equal(tensor, weights(args.output_dir)[name])


# --- which are kept ---------------------------------------------------------------------------------------------------


def test_a_clock_that_was_set_back(args, monkeypatch):
    """What is older by its step seems to be newer by the clock."""
    written = []

    class SetBack(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            written.append(sorted(path.name for path in checkpoints_in(args.output_dir)))
            for path in checkpoints_in(args.output_dir):
                step = int(path.name.rpartition("-")[2])
                os.utime(path, (2e9 - 1000 * step, 2e9 - 1000 * step))

    build = main_SFT.build_trainer

    def build_and_set_back(*arguments):
        trainer = build(*arguments)
        trainer.add_callback(SetBack())
        return trainer

    monkeypatch.setattr(main_SFT, "build_trainer", build_and_set_back)
    args = dataclasses.replace(args, output_dir=args.output_dir + "-2", eval_steps=1, metric_for_best="accuracy")
    main_SFT.main(args)
    for step, names in enumerate(written, start=1):
        assert f"checkpoint-{step}" in names
        assert len(names) <= 2
    best = json.loads((Path(args.output_dir) / "trainer_state.json").read_text())["best_global_step"]
    assert f"checkpoint-{best}" in written[-1]


@given(
    steps=st.sets(st.integers(1, 9), min_size=1), place=st.integers(0, 8), best=st.integers(1, 9) | st.none(),
    limit=st.integers(1, 4) | st.none(),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_the_oldest_are_removed(tmp_path_factory, steps, place, best, limit):
    folder = tmp_path_factory.mktemp("kept")
    written = sorted(steps)[place % len(steps)]
    for step in steps:
        (folder / f"checkpoint-{step}").mkdir()
    (folder / "checkpoint-mine").mkdir()
    remove_oldest(folder / f"checkpoint-{written}", None if best is None else str(folder / f"checkpoint-{best}"), limit)
    left = {int(path.name.rpartition("-")[2]) for path in checkpoints_in(folder)}
    protected = {written} | ({best} & steps)
    assert protected <= left
    assert len(left) == (len(steps) if limit is None else min(len(steps), max(limit, len(protected))))
    assert (folder / "checkpoint-mine").is_dir()
    for gone in steps - left:
        for kept in left - protected:
            assert gone > written or kept > gone
    shutil.rmtree(folder)


# --- changed input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("flag", "name"),
    [("train_data_path", "train.tsv"), ("dev_data_path", "dev.tsv"), ("label_path", "labels.txt")],
)
def test_data_that_has_changed(args, flag, name, finished):
    if finished:
        main_SFT.main(args)
    path = Path(getattr(args, flag))
    before = path.stat()
    content = path.read_text(encoding="utf-8")
    changed = content.replace("a", "A", 1) if flag != "label_path" else content.replace("\n", "\r\n")
    path.write_text(changed, encoding="utf-8", newline="")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(UserError, match=rf"--{flag} .*{name}: its content has changed since the run in .*run began"):
        main_SFT.main(args)
    path.write_text(content, encoding="utf-8", newline="")
    if not finished:
        check_same_end(args)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "chat_template.jinja"])
def test_a_model_to_begin_with_that_has_changed(args, name):
    path = Path(args.model_path) / name
    assert f"model_path/{name}" in start_hashes(args.model_path)
    if name == "model.safetensors":
        tensors = load_file(path)
        tensors["lm_head.weight"] += 1
        save_file(tensors, path, metadata={"format": "pt"})
    else:
        path.write_text(path.read_text() + "\n")
    with pytest.raises(UserError, match=rf"--model_path .*: {name} has changed since the run in"):
        main_SFT.main(args)


def test_another_model_under_an_adapter(args):
    """Also where no file of the model was noted, as of one on a hub."""
    flags = json.loads((Path(args.output_dir) / "args.json").read_text())
    del flags["content_hashes"]
    (Path(args.output_dir) / "args.json").write_text(json.dumps(flags))
    path = Path(args.model_path) / "model.safetensors"
    tensors = load_file(path)
    for name in tensors:
        tensors[name] = tensors[name] * 1.5
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"--model_path .*model: has other weights than the model that .*checkpoint-4"):
        main_SFT.main(args)


def test_a_lone_checkpoint_knows_its_data(args, tmp_path):
    lone = shutil.copytree(Path(args.output_dir) / "checkpoint-4", tmp_path / "lone" / "checkpoint-4")
    path = Path(args.train_data_path)
    path.write_text(path.read_text(encoding="utf-8").replace("a", "A", 1), encoding="utf-8")
    args = dataclasses.replace(args, output_dir=str(tmp_path / "other"), resume_from_checkpoint=str(lone))
    with pytest.raises(UserError, match=r"--train_data_path: has other content than what .*checkpoint-4 learnt from"):
        main_SFT.main(args)


def test_the_data_are_noted(args):
    main_SFT.main(args)
    noted = Contract.load(args.output_dir).data_hashes
    assert set(noted) == {"train_data_path", "dev_data_path", "label_path"}
    assert all(len(content) == 64 for content in noted.values())


# --- one run in a folder --------------------------------------------------------------------------------------------------

HOLD = "import sys, time; from data.files import exclusive\nwith exclusive(sys.argv[1]): print('held', flush=True); time.sleep(600)"


def grpo_args(args) -> main_grpo.Args:
    return main_grpo.Args(
        model_path=args.model_path, label_path=args.label_path, train_data_path=args.train_data_path,
        output_dir=args.output_dir, precision="fp32", batch_size=2, num_generations=2, max_steps=1, max_length=1024,
        max_completion_length=16, eval_samples=1,
    )  # fmt: skip


def test_a_second_process_in_the_same_folder(args):
    args = dataclasses.replace(args, output_dir=args.output_dir + "-2", max_steps=2)
    with subprocess.Popen([sys.executable, "-c", HOLD, args.output_dir], cwd=ROOT, stdout=subprocess.PIPE) as owner:
        assert owner.stdout.readline() == b"held\n"
        for stage, its in (
            (main_SFT, args),
            (main_grpo, grpo_args(args)),
            (main_SFT, dataclasses.replace(args, search=2)),
        ):
            with pytest.raises(UserError, match="run-2: another process is writing here"):
                stage.main(its)
        assert [path.name for path in Path(args.output_dir).iterdir()] == [".run.lock"]
        owner.send_signal(signal.SIGKILL)
    main_SFT.main(args)
    assert (Path(args.output_dir) / "train_results.json").is_file()


@pytest.mark.parametrize("stage", [main_SFT, main_grpo])
def test_the_folder_is_held_to_the_end(args, monkeypatch, stage):
    """While it trains, while it is scored, and while its card is written."""
    args = dataclasses.replace(args, output_dir=args.output_dir + "-2", max_steps=1)
    args = dataclasses.replace(grpo_args(args) if stage is main_grpo else args, test_data_path=args.dev_data_path)
    held = []

    def watch(name: str) -> None:
        usual = getattr(stage, name)

        def watched(*arguments, **options):
            with pytest.raises(UserError, match="another process"), exclusive(args.output_dir):
                pass
            held.append(name)
            return usual(*arguments, **options)

        monkeypatch.setattr(stage, name, watched)

    names = ("build_trainer", "train", "write_run_report", "score_run", "write_model_card")
    for name in names:
        watch(name)
    stage.main(args)
    assert tuple(held) == names
    with exclusive(args.output_dir):
        pass


def test_states_are_read_back_in_one_of_several_processes_on_a_cpu(args, monkeypatch):
    """Their trainers call the CPU "cpu:0", a place that PyTorch by itself cannot read anything back to."""
    load = torch.load

    def load_to_number(file, map_location=None, **options):
        return load(file, map_location=torch.device("cpu", 0) if map_location == "cpu" else map_location, **options)

    monkeypatch.setattr(torch, "load", load_to_number)
    check_same_end(args)

"""train_task.sh and train.sh as they are called: what they find, what they miss, a small grid that is really trained."""

import itertools
import json
import os
import subprocess
from pathlib import Path

import pytest

from data.arguments import UserError
from data.conversion import write_labels
from data.published import DATA_SETS
from data.summaries.psyqa import FILE_NAME
from data.tasks import BUILT_IN_TASKS
from scripts import find_data
from tests.conftest import ROOT

MODELS = {
    "sst2": "Qwen2.5-7B-Instruct", "r8": "Qwen2.5-7B-Instruct", "chnsenticorp": "Qwen2.5-1.5B", "emotion": "Qwen3-0.6B",
    "goemotions/group": "Qwen2.5-7B-Instruct", "chn-reviews": "Qwen2.5-1.5B",
}  # fmt: skip


def write_data(folder: Path, name: str, rows: int = 8, splits=None) -> Path:
    """A small data set of our own in the layout of download.py."""
    data_set = DATA_SETS[name]
    task, layout = data_set.tasks[""], data_set.layout
    folder.mkdir(parents=True)
    for split in splits or data_set.splits:
        lines = [layout.header] if layout.header else []
        lines += [
            layout.line.format(text=f"{split} text number {i}", label_id=i % 2, label=task.labels[i % 2])
            for i in range(rows)
        ]
        (folder / f"{split}.{layout.ending}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_labels(folder, task)
    return folder


def launch(script: str, environment: dict[str, str], *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", f"scripts/{script}", *flags], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


NUMBERS = {  # variable -> launcher that reads it, its limits
    "GPUS": ("train.sh", "0 to 1024"), "VLLM_GPUS": ("train.sh", "0 to 1024"), "PROCESSES": ("train.sh", "1 to 1024"),
    "NNODES": ("train_task.sh", "1 to 65535"), "NODE_RANK": ("train_task.sh", "0 to 0"),
    "MASTER_PORT": ("main_SFT_original_Qwen2_5-7b.sh", "1 to 65535"),
    "VLLM_PORT": ("main_grpo_original_Qwen2_5-7b.sh", "1 to 65535"), "SEEDS": ("train.sh", "0 to 4294967295"),
    "PORT": ("serve_vllm.sh", "1 to 65535"), "VLLM_CPU_KVCACHE_SPACE": ("serve_vllm.sh", "0 to 999999999"),
}  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_of_the_environment_is_no_program(tmp_path, environment, name):
    """Bash arithmetic runs what stands in an array's index."""
    script, limits = NUMBERS[name]
    marker = tmp_path / "marker"
    for value in (f"a[$(touch${{IFS}}{marker})]", "abc", "-1", "1.5", "0x10", "99999999999999999999", "٣"):
        done = launch(script, environment | {name: value}, "nothing")
        assert (done.returncode, done.stdout) == (2, ""), (value, done.stderr)
        assert done.stderr == f"{script}: error: {name}={value}: must be a whole number from {limits}\n"
    assert not marker.exists()


def test_no_processes_train_nothing_and_that_is_an_error(environment):
    done = launch("train.sh", environment | {"PROCESSES": "0"})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "train.sh: error: PROCESSES=0: must be a whole number from 1 to 1024\n"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"DATASETS": " \n "}, "DATASETS: names nothing"),
        ({"SEEDS": "1 2 1"}, "SEEDS: 1 stands there twice"),
        (
            {"OUTPUT_DIR": "~nobody/runs"},
            "OUTPUT_DIR=~nobody/runs: write the folder out (for one whose name begins with",
        ),
        ({"PROCESSES": "many\nlines\x1b[31m" + "x" * 1000}, "PROCESSES=many lines [31mxxx"),
        ({"NNODES": "2", "NODE_RANK": "2"}, "NODE_RANK=2: must be a whole number from 0 to 1"),
    ],
)
def test_other_variables_that_cannot_be_meant(environment, settings, message):
    done = launch("train.sh", environment | settings)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"train.sh: error: {message}")
    assert done.stderr.count("\n") == 1
    assert len(done.stderr) < 400


def bash(code: str, **variables: str) -> str:
    """What a piece of bash prints that knows scripts/_variables.sh."""
    code = f"set -euo pipefail; source scripts/_variables.sh; {code}"
    done = subprocess.run(["bash", "-c", code], cwd=ROOT, env=os.environ | variables, capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else done.stderr


def test_variables_as_they_are_meant():
    home = {"HOME": "/home/me"}
    assert (
        bash('expand_home A B C; echo "$A|$B|$C"', A="~/my runs", B="~", C="./~x", **home)
        == "/home/me/my runs|/home/me|./~x\n"
    )
    assert bash('split_words A; printf "%s|" "${words[@]}"', A=" *\tsst2\n a/b ") == "*|sst2|a/b|"
    assert bash('check_number A 1; echo "$((A + 1))"', A="08") == "9\n"  # not octal


def test_a_home_folder_the_shell_did_not_expand(tmp_path, environment, tiny_model_dir):
    write_data(tmp_path / "my data" / "r8", "r8")
    settings = {"HOME": str(tmp_path), "MODEL": str(tiny_model_dir), "DATA": "~/my data/r8", "OUTPUT": "~/my runs"}
    done = launch("train_task.sh", environment | settings, "r8", "--batch_size", "0")
    assert "main_SFT.py: error: --batch_size 0: must be from 1 to 65536\n" in done.stderr
    done = launch("train_task.sh", environment | settings, "r8", "--output_dir", f"{tmp_path}/my data/r8/train.txt")
    assert f"--output_dir {tmp_path}/my data/r8/train.txt: is a file" in done.stderr
    assert not (ROOT / "~").exists()


def test_values_of_several_lines(find):
    with pytest.raises(UserError, match=r"^--model 'x\\n--seed\\n3': holds a line break$"):
        find("sst2", model="x\n--seed\n3")


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not a JSON object"), ("{}", "names no base model"), ('{"base_model_name_or_path": "./x"}', "is not there")],
)
def test_a_server_over_a_broken_adapter(tmp_path, environment, content, message):
    (tmp_path / "adapter_config.json").write_text(content)
    (tmp_path / "vllm.py").write_text("")
    done = launch("serve_vllm.sh", environment | {"PYTHONPATH": str(tmp_path)}, str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("serve_vllm.sh: error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert launch("serve_vllm.sh", environment).stderr.startswith("serve_vllm.sh: error: no model; usage: ")


@pytest.fixture
def find(capsys):
    """What the launchers give main_SFT.py for a data set."""

    def flags_of(name: str, **flags: str) -> list[str]:
        find_data.main(find_data.Args(name, **flags))
        return capsys.readouterr().out.splitlines()

    return flags_of


@pytest.fixture
def found(find):
    """The flags in between, that name task and files, where the model is one of the hub."""

    def data_flags(name: str, folder: Path) -> list[str]:
        flags = find(name, folder=str(folder), model="some-org/some-model", output_dir="out", own=True)
        assert (flags[:2], flags[-2:]) == (["--model_path", "some-org/some-model"], ["--output_dir", "out"])
        return flags[2:-2]

    return data_flags


@pytest.mark.parametrize(
    ("name", "train", "dev", "test"),
    [
        ("sst2", "train.tsv", "dev.tsv", "test.tsv"),
        ("r8", "train.txt", None, "test.txt"),
        ("chnsenticorp", "train.tsv", "dev.tsv", "test.tsv"),
        ("emotion", "train.txt", "val.txt", "test.txt"),
    ],
)
def test_the_files_of_each_data_set(found, tmp_path, name, train, dev, test):
    folder = write_data(tmp_path / name, name)
    expected = ["--task", name, "--train_data_path", f"{folder}/{train}", "--test_data_path", f"{folder}/{test}"]
    expected += ["--dev_data_path", f"{folder}/{dev}"] if dev else []
    assert found(name, folder) == expected


def test_labels_name_the_task_of_other_data_sets(found, tmp_path):
    folder = tmp_path / "goemotions" / "group"
    folder.mkdir(parents=True)
    for split in ("train", "dev", "test"):
        (folder / f"{split}.tsv").write_text("fine\t3\tc1\n")
    with pytest.raises(UserError, match=r"no labels.txt there; .* --dataset goemotions --target_dir .*/goemotions$"):
        found("goemotions/group", folder)
    write_labels(folder, BUILT_IN_TASKS["goemotions-group"])
    assert found("goemotions/group", folder) == [
        "--label_path", f"{folder}/labels.txt", "--train_data_path", f"{folder}/train.tsv", "--test_data_path",
        f"{folder}/test.tsv", "--dev_data_path", f"{folder}/dev.tsv",
    ]  # fmt: skip


def test_rows_that_are_scored_do_not_choose_the_checkpoint(found, tmp_path):
    folder = write_data(tmp_path / "emotion", "emotion", splits=("train", "val"))
    assert found("emotion", folder)[4:] == ["--test_data_path", f"{folder}/val.txt"]
    only_train = write_data(tmp_path / "r8", "r8", splits=("train",))
    with pytest.raises(UserError, match=f"^{only_train}: neither a test nor a dev file there"):
        found("r8", only_train)


def test_a_data_set_of_ones_own(found, find, tmp_path):
    folder = write_data(tmp_path / "mine", "sst2")
    assert found("mine", folder)[:2] == ["--label_path", f"{folder}/labels.txt"]
    (folder / "labels.txt").unlink()
    with pytest.raises(UserError, match=f"^{folder}: no labels.txt there$"):
        found("mine", folder)
    with pytest.raises(UserError, match="--model is needed"):
        find("mine", folder=str(folder), own=True)


def test_defaults_of_a_task(find, tmp_path, monkeypatch):
    """Model and files as download.py names them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "Qwen3-0.6B").mkdir(parents=True)
    write_data(tmp_path / "data" / "emotion", "emotion")
    assert find("emotion") == [
        "--model_path", "models/Qwen3-0.6B", "--task", "emotion", "--train_data_path", "data/emotion/train.txt",
        "--test_data_path", "data/emotion/test.txt", "--dev_data_path", "data/emotion/val.txt",
        "--output_dir", "outputs/emotion",
    ]  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_what_is_missing_and_how_to_get_it(find, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)

    def error(**flags: str) -> str:
        with pytest.raises(UserError) as caught:
            find(name, **flags)
        return str(caught.value)

    model, data_set = MODELS[name], name.partition("/")[0]
    missing = f"no such folder; get it with: python download.py --model Qwen/{model}"
    assert error() == f"MODEL=models/{model}: {missing}"
    assert error(model=f"models/x/{model}/") == f"MODEL=models/x/{model}: {missing} --target_dir models/x/{model}"
    (tmp_path / "models" / model).mkdir(parents=True)
    missing = (
        "no train file (train.tsv, .txt, .csv, .json, .jsonl or .parquet) there; "
        f"get it with: python download.py --dataset {data_set}"
    )
    assert error() == f"data/{name}: {missing}"
    assert error(folder=f"x/{name}") == f"x/{name}: {missing} --target_dir x/{data_set}"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("models/x", "MODEL=models/x: no such folder"),
        ("./minilm-l6", "get it with: python download.py --model minilm-l6 --target_dir ./minilm-l6"),
        ("models/Qwen3-9B", "get it with: python download.py --model Qwen/Qwen3-9B"),
        ("models/sst2", "MODEL=models/sst2: no such folder"),  # a data set
        ("some-org/some-model", "python download.py --dataset sst2"),  # a hub id, which main_SFT.py knows how to get
    ],
)
def test_models_that_are_no_folders(find, tmp_path, monkeypatch, model, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        find("sst2", model=model)
    assert str(caught.value).endswith(message)


@pytest.mark.parametrize("name", ["sst", "", "--tuning"])
def test_an_unknown_task_names_the_known_ones(environment, name):
    settings = {"MODEL": "some-org/some-model", "DATA": "nowhere", "OUTPUT": "outputs/nothing"}
    done = launch("train_task.sh", environment | settings, *([name] if name else []))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"find_data.py: error: {name or 'no data set'}: unknown; known data sets are goemotions/original, "
        "goemotions/ekman, goemotions/group, sst2, r8, chnsenticorp, emotion, chn-reviews, psyqa\n"
    )


@pytest.mark.parametrize("script", ["train_task.sh", "train.sh"])
def test_cases_to_test_on_are_not_trained_on(tmp_path, environment, tiny_model_dir, script):
    settings = {"DATASETS": "longemotion-summary", "MODEL": str(tiny_model_dir), "OUTPUT_DIR": str(tmp_path / "out")}
    done = launch(script, environment | settings, "longemotion-summary")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "find_data.py: error: longemotion-summary: has only test.jsonl, nothing to train on; psyqa has counselling "
        "cases to train on\n"
    )


def write_splits_of_cases(folder: Path, splits=("train", "validation", "test")) -> Path:
    for split in splits:
        (folder / split).mkdir(parents=True)
        (folder / split / FILE_NAME).write_text("{}")
    return folder


def test_cases_are_found_in_a_folder_for_each_split(find, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def error() -> str:
        with pytest.raises(UserError) as caught:
            find("psyqa")
        return str(caught.value)

    get = "get it with: python download.py"
    assert error() == f"MODEL=models/Qwen2-7B-Instruct: no such folder; {get} --model Qwen/Qwen2-7B-Instruct"
    (tmp_path / "models" / "Qwen2-7B-Instruct").mkdir(parents=True)
    assert error() == f"data/psyqa: no train file (train/Emotion_Summary.jsonl) there; {get} --dataset psyqa"
    write_splits_of_cases(tmp_path / "data/psyqa")
    assert find("psyqa") == [
        "--model_path", "models/Qwen2-7B-Instruct", "--task", "emotion-summary",
        "--train_data_path", "data/psyqa/train/Emotion_Summary.jsonl",
        "--test_data_path", "data/psyqa/test/Emotion_Summary.jsonl",
        "--dev_data_path", "data/psyqa/validation/Emotion_Summary.jsonl", "--output_dir", "outputs/psyqa",
    ]  # fmt: skip


def test_a_task_is_started_with_what_was_found(tmp_path, environment, tiny_model_dir):
    """main_SFT.py gets the flags and stops at one of its own, before anything is trained."""
    settings = {
        "MODEL": str(tiny_model_dir), "DATA": str(write_data(tmp_path / "a folder", "r8")), "OUTPUT": str(tmp_path / "out"),
    }  # fmt: skip
    done = launch("train_task.sh", environment | settings, "r8", "--batch_size", "0")
    assert "main_SFT.py: error: --batch_size 0: must be from 1 to 65536\n" in done.stderr
    done = launch("train_task.sh", environment | settings, "r8", "--train_data_path", "an other.tsv")
    assert "main_SFT.py: error: --train_data_path an other.tsv: no such file\n" in done.stderr  # the later flag wins
    assert not (tmp_path / "out").exists()


def test_the_grid_looks_for_everything_first(tmp_path, environment, tiny_model_dir):
    write_data(tmp_path / "data" / "sst2", "sst2")
    settings = environment | {
        "MODEL": str(tiny_model_dir), "DATA_DIR": str(tmp_path / "data"), "OUTPUT_DIR": str(tmp_path / "out"),
        "DATASETS": "sst2 goemotions/ekman",
    }  # fmt: skip
    done = launch("train.sh", settings)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"find_data.py: error: {tmp_path}/data/goemotions/ekman: no train file")
    assert done.stderr.endswith(f"python download.py --dataset goemotions --target_dir {tmp_path}/data/goemotions\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.real  # half a minute
def test_a_grid(tmp_path, environment, tiny_model_dir):
    """Two runs were finished before, one fails, one is trained; then the table of those that have results."""
    write_data(tmp_path / "data" / "sst2", "sst2")
    broken = write_data(tmp_path / "data" / "r8", "r8")
    with (broken / "train.txt").open("a") as file:
        file.write("wheat\tno such topic\n")
    outputs = tmp_path / "out"
    before = [outputs / "r8-lora-seed1", outputs / "sst2-lora-seed1"]
    for folder in before:
        folder.mkdir(parents=True)
        (folder / "train_results.json").write_text("{}")
        (folder / "test_results.json").write_text(json.dumps({"n": 8, "accuracy": 0.25, "seed": 1}))
    settings = environment | {
        "MODEL": str(tiny_model_dir), "DATA_DIR": str(tmp_path / "data"), "OUTPUT_DIR": str(outputs),
        "DATASETS": "r8 sst2", "TUNINGS": "lora", "SEEDS": "1 2",
    }  # fmt: skip
    done = launch("train.sh", settings, "--max_steps", "1", "--precision", "fp32")
    assert done.returncode == 1, done.stderr
    for folder in before:
        assert f"== {folder}: finished already, skipped\n" in done.stdout
    assert done.stderr.splitlines()[-2:] == ["== failed runs: 1", f"{outputs}/r8-lora-seed2"], done.stderr
    assert f"main_SFT.py: error: {broken}/train.txt:9: label 'wheat' is not in the label set" in done.stderr

    run = outputs / "sst2-lora-seed2"
    results = json.loads((run / "test_results.json").read_text())
    assert json.loads((run / "train_results.json").read_text())["steps"] == 1
    assert (results["n"], list(results["per_label"])) == (8, list(BUILT_IN_TASKS["sst2"].labels))
    begun = json.loads((run / "args.json").read_text())
    assert (begun["tuning"], begun["seed"], begun["dev_data_path"]) == ("lora", 2, f"{tmp_path}/data/sst2/dev.tsv")

    compared = json.loads((outputs / "baseline_comparison.json").read_text())
    assert {name: content["runs"] for name, content in compared.items()} == {
        "r8-lora": [str(before[0])], "sst2-lora": [str(before[1]), str(run)]
    }  # fmt: skip
    assert compared["sst2-lora"]["mean"]["accuracy"] == pytest.approx((0.25 + results["accuracy"]) / 2)
    table = (outputs / "comparison.md").read_text()
    assert table in done.stdout
    scores = table.split("\n\n")[0]
    assert [line.split()[1:6:2] for line in scores.splitlines()[2:]] == [["r8-lora", "8", "1"], ["sst2-lora", "8", "2"]]


def test_answers_are_drawn_or_all_weighed(noted):
    """main_grpo_original_Qwen2_5-7b.sh with `EXPECTATION`."""
    settings = {"GPUS": "0", "PROCESSES": "1"}
    launcher = "main_grpo_original_Qwen2_5-7b.sh"
    done, (drawn,) = noted(launcher, "--beta", "0.1", **settings)
    assert done.returncode == 0, done.stderr
    assert flags_of(drawn)["--num_generations"] == "8"
    assert flags_of(drawn)["--batch_size"] == "64"
    assert "--expectation" not in drawn
    done, (weighed,) = noted(launcher, **settings, EXPECTATION="exact")
    assert done.returncode == 0, done.stderr
    assert flags_of(weighed)["--expectation"] == "exact"
    assert flags_of(weighed)["--batch_size"] == "16"
    assert "--num_generations" not in weighed
    done, commands = noted(launcher, **settings, EXPECTATION="exact", VLLM_GPUS="1")
    assert (done.returncode, commands) == (2, [])
    assert done.stderr.endswith("error: VLLM_GPUS=1: EXPECTATION=exact draws no answers\n")


def flags_of(command: list[str]) -> dict[str, str]:
    return {flag: value for flag, value in itertools.pairwise(command) if flag.startswith("--")}


@pytest.mark.parametrize(
    ("parallel", "gpus", "config", "shards"),
    [
        ("ddp", 1, "single", (False, False, False)),
        ("ddp", 4, "ddp", (True, False, False)),
        ("fsdp", 4, "fsdp", (False, True, False)),
        ("zero2", 4, "zero2", (False, False, True)),
        ("zero3", 4, "zero3", (False, False, True)),
    ],
)
def test_accelerate_takes_the_configurations(tmp_path, parallel, gpus, config, shards):
    """As Accelerate itself reads the command; its own defaults and the user's configuration change nothing."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    python = tmp_path / "python"
    python.write_text("#!/bin/sh\n")  # asked whether DeepSpeed is there
    python.chmod(0o755)
    code = (
        f'PARALLEL={parallel} GPUS={gpus}; source scripts/_launch.sh; pick_launcher; printf "%s\\n" "${{launcher[@]}}"'
    )
    words = bash(code, PATH=f"{tmp_path}:{os.environ['PATH']}").splitlines()
    assert words[:4] == ["python", "-m", "scripts._distributed", "accelerate"]
    assert words[4:7] == ["launch", "--config_file", f"scripts/accelerate/{config}.yaml"]
    args, *_ = _validate_launch_command(launch_command_parser().parse_args([*words[5:], "main_SFT.py"]))
    assert (args.multi_gpu, args.use_fsdp, args.use_deepspeed) == shards
    assert (args.num_processes, args.mixed_precision, args.use_cpu) == (gpus, "no", False)
    assert int(args.fsdp_version) == (2 if parallel == "fsdp" else 1)
    assert args.zero_stage == ({"zero2": 2, "zero3": 3}.get(parallel))


def test_slurm_says_which_machines_there_are(tmp_path):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames node[7-8]" ] && printf "node7\\nnode8\\n"\n')
    scontrol.chmod(0o755)
    slurm = {"SLURM_STEP_NUM_NODES": "2", "SLURM_NODEID": "1", "SLURM_STEP_NODELIST": "node[7-8]"}
    code = 'GPUS=8; source scripts/_launch.sh; pick_launcher; printf "%s\\n" "${launcher[@]}"'
    words = bash(code, PATH=f"{tmp_path}:{os.environ['PATH']}", **slurm).splitlines()
    flags = dict(zip(words[5::2], words[6::2], strict=True))
    assert flags["--num_processes"] == "16"
    assert (flags["--num_machines"], flags["--machine_rank"], flags["--main_process_ip"]) == ("2", "1", "node7")


@pytest.mark.parametrize(
    ("code", "told", "requeued", "exits"),
    [(0, False, False, 0), (3, False, False, 3), (143, False, True, 0), (1, True, True, 0)],
)
def test_a_slurm_job_that_was_told_to_end_is_put_into_the_queue_again(tmp_path, code, told, requeued, exits):
    """A step that Slurm ends has an exit code of Slurm's, so the job's own signal counts as well."""
    wait = f"kill -TERM $PPID; sleep 0.3; exit {code}" if told else f"exit {code}"
    for name, body in (
        ("srun", f'echo "$@" > {tmp_path}/srun.said; {wait}'),
        ("scontrol", f'echo "$@" > {tmp_path}/said'),
    ):
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["bash", "scripts/slurm.sh", "main_SFT.py", "--text", "two words"], cwd=ROOT, timeout=60,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"},
    )  # fmt: skip
    assert done.returncode == exits
    assert (
        tmp_path / "srun.said"
    ).read_text() == "--kill-on-bad-exit=1 bash scripts/launch.sh main_SFT.py --text two words\n"
    assert (tmp_path / "said").exists() == requeued
    assert not requeued or (tmp_path / "said").read_text() == "requeue 17\n"


def test_a_stage_by_its_launcher(environment, tiny_model_dir, tmp_path):
    flags = {
        "--task": "goemotions-original", "--train_data_path": "data/sample/train.tsv", "--model_path": tiny_model_dir,
        "--output_dir": tmp_path / "sft", "--max_steps": 1, "--val_ratio": 0, "--precision": "fp32",
    }  # fmt: skip
    words = [str(word) for pair in flags.items() for word in pair]
    done = launch("launch.sh", environment | {"GPUS": "0", "PROCESSES": "2"}, "main_SFT.py", *words)
    assert done.returncode == 0, done.stderr[-2000:]
    machine = json.loads((tmp_path / "sft" / "train_results.json").read_text())["machine"]
    assert machine["processes"] == 2


def test_a_mistake_is_one_line_in_several_processes_too(environment, tiny_model_dir, tmp_path):
    """Not a word of the launcher's, and the exit code of a mistake."""
    bad = tmp_path / "bad.tsv"
    bad.write_text("fine\t3\nso so\t99\n")
    flags = {
        "--task": "goemotions-original", "--train_data_path": bad, "--model_path": tiny_model_dir,
        "--output_dir": tmp_path / "sft",
    }  # fmt: skip
    words = [str(word) for pair in flags.items() for word in pair]
    done = launch("launch.sh", environment | {"GPUS": "0", "PROCESSES": "2"}, "main_SFT.py", *words)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"main_SFT.py: error: {bad}:2: label id 99: task goemotions-original has ids 0 to 27"
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 0, "usage: bash scripts/launch.sh STAGE"),
        (["--help"], 0, "usage: bash scripts/launch.sh STAGE"),
        (["inference.py"], 2, "launch.sh: error: inference.py: must be main_SFT.py or main_grpo.py"),
    ],
)
def test_what_the_launcher_of_a_stage_says(noted, words, code, said):
    done, commands = noted("launch.sh", *words)
    assert (done.returncode, commands) == (code, [])
    assert said in done.stdout + done.stderr

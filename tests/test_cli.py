"""Bad input through the real command line: one clear line, exit code 2, soon, and nothing written."""

import json
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from data.contract import Contract
from data.tasks import BUILT_IN_TASKS
from tests.conftest import ROOT, SAMPLE

SCRIPTS = (
    "download.py", "main_SFT.py", "main_grpo.py", "merge_lora.py", "inference.py", "-m scripts.compare",
    "-m scripts.ensemble", "-m scripts.gather", "-m scripts.reward_curve", "-m scripts.web",
    "-m scripts.benchmark grpo", "-m scripts.benchmark inference", "-m scripts.benchmark score",
    "-m scripts.benchmark sft",
)  # fmt: skip
HEAVY = {"torch", "trl", "peft", "sklearn", "datasets", "matplotlib", "pandas", "scipy", "gradio"}
GOOD = "I love it\t18\tc1\nno\t27\tc2\n"
LABELS = (SAMPLE / "labels.txt").read_text(encoding="utf-8")

# name -> (script, flags; {dir} is the case's own folder, what the line must say)
SFT = "main_SFT.py --model_path {model} --train_data_path {dir}/good.tsv --label_path {dir}/labels.txt --output_dir {dir}/out"
INFER = "inference.py --model_path {model} --label_path {dir}/labels.txt --output_dir {dir}/out"
GRPO = SFT.replace("main_SFT.py", "main_grpo.py")
CASES = {
    "missing model": (f"{SFT} --model_path {{dir}}/nowhere", "--model_path {dir}/nowhere: no such directory"),
    "missing data": (f"{SFT} --train_data_path {{dir}}/nowhere.tsv", "--train_data_path {dir}/nowhere.tsv: no such file"),
    "missing labels": (f"{SFT} --label_path {{dir}}/nowhere.txt", "--label_path {dir}/nowhere.txt: cannot be read"),
    "wrong label id": (f"{SFT} --train_data_path {{dir}}/id.tsv", "{dir}/id.tsv:2: label id 28"),
    "label not in the set": (f"{SFT} --dev_data_path {{dir}}/label.tsv", "{dir}/label.tsv:2: label 'hunger' is not in"),
    "wrong number of columns": (f"{SFT} --train_data_path {{dir}}/columns.tsv", "{dir}/columns.tsv:2: 2 columns"),
    "empty text": (f"{SFT} --train_data_path {{dir}}/text.tsv", "{dir}/text.tsv:2: empty text"),
    "empty file": (f"{SFT} --train_data_path {{dir}}/empty.tsv", "{dir}/empty.tsv: the file is empty"),
    "non-UTF-8 byte": (f"{SFT} --test_data_path {{dir}}/latin.tsv", "{dir}/latin.tsv:2: byte 0xe9 is not UTF-8"),
    "duplicate label": (f"{SFT} --label_path {{dir}}/twice.txt", "{dir}/twice.txt:3: label 'joy' stands already on line 1"),
    "header": (f"{SFT} --train_data_path {{dir}}/header.tsv", "{dir}/header.tsv:1: a header"),
    "run without task.json": (f"{INFER} --model_path {{dir}}/run --text hi", "{dir}/run: a trained adapter without task.json"),
    "contradicting labels": (f"{SFT} --task goemotions-group", "contradicts --task goemotions-group: id 0 is 'admiration'"),
    "labels that contradict the run": (f"{INFER} --model_path {{dir}}/trained --text hi", "contradicts {dir}/trained/task.json"),
    "unknown flag": (f"{SFT} --learning_rat 1e-3", "unknown flag --learning_rat; did you mean --learning_rate?"),
    "unknown flag of inference": (f"{INFER} --txt hi", "unknown flag --txt; did you mean --text?"),
    "wrong type": (f"{SFT} --batch_size many", "--batch_size: expected a whole number, found 'many'"),
    "wrong choice": (f"{SFT} --tuning lara", "--tuning: invalid choice: 'lara'"),
    "below its minimum": (f"{SFT} --batch_size 0", "--batch_size 0: must be at least 1"),
    "ratio over one": (f"{SFT} --val_ratio 1.5", "--val_ratio 1.5: must be below 1"),
    "no learning rate": (f"{SFT} --learning_rate 0", "--learning_rate 0.0: must be above 0"),
    "endless training": (f"{SFT} --num_epochs inf", "--num_epochs: must be finite, found 'inf'"),
    "weight without end": (f"{SFT} --weight_decay nan", "--weight_decay: must be finite, found 'nan'"),
    "a number like a library": (f"{SFT} --batch_size {10**30}", "--batch_size: 1000000000000000000000000000000 is out of range"),
    "seed too large": (f"{SFT} --seed 99999999999", "--seed 99999999999: must be below 2**32"),
    "output_dir below a file": (f"{SFT} --output_dir {{dir}}/good.tsv/sub", "--output_dir {dir}/good.tsv/sub: {dir}/good.tsv is a file"),
    "empty output_dir": (f"{INFER} --text hi --output_dir ''", "--output_dir: is empty"),
    "unknown scheduler": (f"{SFT} --lr_scheduler_type zigzag", "--lr_scheduler_type: invalid choice: 'zigzag'"),
    "output_dir that is a file": (f"{SFT} --output_dir {{dir}}/good.tsv", "--output_dir {dir}/good.tsv: is a file"),
    "unknown metric": (f"{SFT} --metric_for_best f1", "--metric_for_best f1: must be loss or one of"),
    "steps that do not fit": (f"{SFT} --eval_steps 50 --save_steps 70", "--save_steps 70: must be a multiple of --eval_steps 50"),
    "unknown task": (f"{SFT} --task goemotion", "--task goemotion: unknown; known tasks are goemotions-original"),
    "nothing to do": (f"{INFER}", "give one of --test_data_path (a file), --text (one text), --interactive and --demo"),
    "two things to do": (f"{INFER} --text hi --demo", "give one of --test_data_path (a file), --text (one text), --interactive and --demo"),
    "unknown engine": (f"{INFER} --text hi --backend llama", "--backend: invalid choice: 'llama'"),
    "an engine for encoders": (f"{INFER} --text hi --backend bert", "--backend bert: {model} is no encoder, which hf and vllm run"),
    "constrained how": (f"{INFER} --text hi --constrained maybe", "--constrained: expected on or off, found 'maybe'"),
    "no such part": (f"{INFER} --test_data_path {{dir}}/good.tsv --shard 9/8", "--shard 9/8: expected i/n with i from 1 to n"),
    "no part": (f"{INFER} --test_data_path {{dir}}/good.tsv --shard third", "--shard third: expected i/n with i from 1 to n"),
    "vllm in four bits": (f"{INFER} --text hi --backend vllm --load_in_4bit", "--load_in_4bit: is for hf, not for vllm"),
    "vllm probabilities": (f"{INFER} --text hi --backend vllm --probabilities", "--probabilities: hf gives them, vllm does not"),
    "vllm device": (f"{INFER} --text hi --backend vllm --device cuda:1", "--device: vllm takes the GPUs it sees"),
    "GPUs without vllm": (f"{INFER} --text hi --tensor_parallel_size 2", "--tensor_parallel_size 2: needs --backend vllm"),
    "no GPUs": (f"{INFER} --text hi --tensor_parallel_size 0", "--tensor_parallel_size 0: must be at least 1"),
    "merge: nothing given": ("merge_lora.py", "--training_output_dir is needed"),
    "merge: no run": ("merge_lora.py --training_output_dir {dir}/nowhere", "--training_output_dir {dir}/nowhere: no such directory"),
    "merge: nothing to merge": ("merge_lora.py --training_output_dir {dir}/trained", "{dir}/trained: holds a whole model: nothing to merge"),
    "merge: a broken adapter": ("merge_lora.py --training_output_dir {dir}/run", "{dir}/run/adapter_config.json: names no base model"),
    "merge: a base that is gone": ("merge_lora.py --training_output_dir {dir}/moved", "its base model 'models/gone' is not there; a relative path counts from here"),
    "merge: no such base": ("merge_lora.py --training_output_dir {dir}/moved --base_model_path {dir}/nowhere", "--base_model_path {dir}/nowhere: no such directory"),
    "merge: unknown format": ("merge_lora.py --training_output_dir {dir}/moved --dtype int8", "--dtype: invalid choice: 'int8'"),
    "gather: nothing given": ("scripts/gather.py", "--output_dir is needed"),
    "empty --text": (f"{INFER} --text ''", "--text is empty"),
    "unknown sharing": (f"{SFT} --prefix_sharing maybe", "--prefix_sharing: invalid choice: 'maybe'"),
    "compile what": (f"{SFT} --compile maybe", "--compile: expected on or off, found 'maybe'"),
    "nothing given": ("main_SFT.py", "--model_path is needed"),
    "not a model": (f"{INFER} --model_path {{dir}} --text hi", "{dir}: holds neither config.json nor adapter_config.json"),
    "a pickle of weights": (f"{INFER} --model_path {{dir}}/pickled --text hi", "{dir}/pickled: its weights are a pickle (pytorch_model.bin)"),
    "a config with a text for a number": (f"{SFT} --model_path {{dir}}/typed", "{dir}/typed/config.json: num_hidden_layers is '2', expected a whole number"),
    "a config deeper than Python": (f"{GRPO} --model_path {{dir}}/deep", "{dir}/deep/config.json: not a JSON object"),
    "half of the weights": (f"{INFER} --model_path {{dir}}/halved --text hi", "{dir}/halved/model.safetensors: Error while deserializing header"),
    "merge: an adapter of no rank": ("merge_lora.py --training_output_dir {dir}/rankless", "{dir}/rankless/adapter_config.json: r is 0, expected a number from 1"),
    "a path too long": (f"{SFT} --model_path /{'a' * 5000}", "cannot be read (File name too long)"),
    "a hub that does not answer": (f"{SFT} --model_path someone/model", "--model_path someone/model: no such directory, and no answer from the hub at http://127.0.0.1:9"),
    "grpo: nothing given": ("main_grpo.py", "--model_path is needed"),
    "grpo: no task": ("main_grpo.py --model_path {model} --train_data_path {dir}/good.tsv", "name --task or --label_path"),
    "grpo: wrong label id": (f"{GRPO} --train_data_path {{dir}}/id.tsv", "{dir}/id.tsv:2: label id 28"),
    "grpo: batch that splits a group": (f"{GRPO} --batch_size 12", "--batch_size 12: must be a multiple of --num_generations 8"),
    "grpo: batches that split a group": (f"{GRPO} --batch_size 2 --gradient_accumulation_steps 3", "--batch_size 2 x 3 batches: must be a multiple of --num_generations 8"),
    "grpo: a group of one": (f"{GRPO} --num_generations 1", "--num_generations 1: must be at least 2"),
    "grpo: unknown loss": (f"{GRPO} --loss_type ppo", "--loss_type: invalid choice: 'ppo'"),
    "grpo: unknown scaling": (f"{GRPO} --scale_rewards both", "--scale_rewards: invalid choice: 'both'"),
    "grpo: unknown engine": (f"{GRPO} --use_vllm yes", "--use_vllm: invalid choice: 'yes'"),
    "grpo: no reward": (f"{GRPO} --accuracy_weight 0 --format_weight 0 --length_weight 0", "all are 0, so there is no reward"),
    "grpo: negative weight": (f"{GRPO} --length_weight -1", "--length_weight -1.0: must be at least 0"),
    "grpo: no temperature": (f"{GRPO} --temperature 0", "--temperature 0.0: must be above 0"),
    "grpo: top_p over one": (f"{GRPO} --top_p 1.5", "--top_p 1.5: must be above 0 and at most 1"),
    "grpo: negative beta": (f"{GRPO} --beta -0.1", "--beta -0.1: must be at least 0"),
    "grpo: no clip range": (f"{GRPO} --epsilon 0", "--epsilon 0.0: must be above 0"),
    "grpo: metric": (f"{GRPO} --metric_for_best loss", "--metric_for_best loss: must be one of accuracy"),
    "grpo: unknown sharing": (f"{GRPO} --prefix_sharing maybe", "--prefix_sharing: invalid choice: 'maybe'"),
    "grpo: adapter without task.json": (f"{GRPO} --model_path {{dir}}/run", "{dir}/run/adapter_config.json: names no base model"),
}  # fmt: skip
SLOW_CASES = {  # known only once the tokenizer is there
    "max_length shorter than the prompt": (f"{SFT} --max_length 32", "--max_length 32: the prompt of task goemotions-original takes"),
    "grpo: max_length shorter than the prompt": (f"{GRPO} --max_length 32", "--max_length 32: the prompt of task goemotions-original takes"),
    "grpo: budget over the limit": (f"{GRPO} --length_budget 999", "--length_budget 999: is over the limit of"),
    "grpo: limit under the gold answers": (f"{GRPO} --max_completion_length 1", "--max_completion_length 1: the longest gold answer takes"),
}  # fmt: skip


def write_files(directory: Path, model_dir: Path) -> None:
    trained = directory / "trained"
    files = {
        "good.tsv": GOOD,
        "labels.txt": LABELS,
        "id.tsv": "fine\t3\tc1\nbad\t28\tc2\n",
        "label.tsv": "fine\tjoy\tc1\nbad\thunger\tc2\n",
        "columns.tsv": "fine\t3\tc1\nbad\t3\n",
        "text.tsv": "fine\t3\tc1\n \t3\tc2\n",
        "empty.tsv": "",
        "latin.tsv": b"fine\t3\tc1\ncaf\xe9\t3\tc2\n",
        "twice.txt": "joy\nfear\njoy\n",
        "header.tsv": "text\tlabels\tid\n" + GOOD,
        "run/adapter_config.json": "{}",
        "moved/adapter_config.json": '{"base_model_name_or_path": "models/gone"}',
        "trained/config.json": "{}",
        "pickled/config.json": '{"model_type": "qwen2"}',
        "pickled/pytorch_model.bin": b"\x80\x02.",
        "typed/config.json": '{"model_type": "qwen2", "num_hidden_layers": "2"}',
        "deep/config.json": "[" * 100_000,
        "halved/config.json": '{"model_type": "qwen2"}',
        "halved/model.safetensors": b"\x40\0\0\0\0\0\0\0{",
        "rankless/adapter_config.json": json.dumps(
            {"base_model_name_or_path": str(model_dir), "peft_type": "LORA", "r": 0, "lora_alpha": 8}
        ),
    }
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    Contract(BUILT_IN_TASKS["goemotions-group"]).save(trained)


def contents(directory: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in directory.rglob("*")}


def outcomes_of(light: Iterable[str], heavy: Iterable[str] = ()) -> list[dict]:
    """What each command line ends with; see tests/command_lines.py."""
    done = subprocess.run(
        [sys.executable, "tests/command_lines.py"], input=json.dumps([list(light), list(heavy)]), capture_output=True,
        text=True, cwd=ROOT, timeout=120, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, tiny_model_dir):
    """name -> outcome of every case and every `--help`, the places, and what stood in the folder before and after."""
    directory = tmp_path_factory.mktemp("bad-input")
    write_files(directory, tiny_model_dir)
    before = contents(directory)
    places = {"dir": directory, "model": tiny_model_dir}
    light, heavy = ([line.format(**places) for line, _ in cases.values()] for cases in (CASES, SLOW_CASES))
    found = outcomes_of([f"{script} --help" for script in SCRIPTS] + light, heavy)
    return dict(zip([*SCRIPTS, *CASES, *SLOW_CASES], found, strict=True)), places, before, contents(directory)


@pytest.mark.parametrize("name", CASES | SLOW_CASES)
def test_bad_input_is_one_clear_line(outcomes, name):
    stderr = outcomes[0][name]["stderr"]
    script, message = (CASES | SLOW_CASES)[name]
    assert outcomes[0][name]["code"] == 2, stderr
    assert message.format(**outcomes[1]) in stderr
    lines = stderr.strip().splitlines()
    assert lines[-1].startswith(f"{Path(script.split()[0]).name}: error: ")
    assert len(lines) == 1 or name in SLOW_CASES  # loading a tokenizer may have something to say of its own
    assert "Traceback" not in stderr
    loaded = HEAVY & set(outcomes[0][name]["modules"])
    assert "torch" in loaded if name in SLOW_CASES else not loaded


def test_nothing_was_written(outcomes):
    assert outcomes[2] == outcomes[3]


def test_a_typo_in_main_names_the_setting(tmp_path):
    scripts = ("main_SFT.py", "main_grpo.py", "merge_lora.py", "inference.py", "download.py")
    for script in scripts:
        source = (ROOT / script).read_text(encoding="utf-8")
        begin, _, end = source.rpartition("settings = ")
        call_line = end[end.index("run(") :]
        (tmp_path / script).write_text(f"{begin}settings = dict(modle_path='x')\n    {call_line}", encoding="utf-8")
    for script, done in zip(scripts, outcomes_of(str(tmp_path / script) for script in scripts), strict=True):
        assert done["code"] == 2, done["stderr"]
        assert done["stderr"].startswith(f"{script}: error: __main__: there is no setting 'modle_path'")


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_explains_every_flag_without_heavy_imports(outcomes, script):
    done = outcomes[0][script]
    assert done["code"] == 0
    assert any(line.strip().startswith("--") for line in done["stdout"].splitlines())
    assert "None)" not in done["stdout"]
    assert not re.search(r"--no[_-]|\[[A-Z_]+\]|default: (True|False)", done["stdout"]), "a switch is --name [on|off]"
    assert not HEAVY & set(done["modules"])

"""start_training_qwen2.sh as it is called; its .bat as it reads, since only Windows can run it.

By hand, its branches were also tried under Wine's cmd.exe, with other programs in Python's place.
"""

import re
import shlex
import subprocess
import sys

import pytest

from tests.conftest import ROOT

BAT = ROOT / "scripts" / "start_training_qwen2.bat"
TORCHRUN = ["-m", "scripts._distributed", "torchrun", "--standalone", "--nproc_per_node"]
FOUND = ["-m", "scripts.find_data", "--name", "psyqa"]


@pytest.fixture
def start(noted):
    """The launcher, as if no GPU were there."""

    def run(*flags: str, **variables: str):
        return noted("start_training_qwen2.sh", *flags, **{"GPUS": "0", "PROCESSES": "1"} | variables)

    return run


def test_what_is_trained(start):
    done, commands = start("--num_epochs", "2")
    assert (done.returncode, done.stderr) == (0, "")
    model, output = "models/Qwen2-7B-Instruct", "outputs/psyqa-Qwen2-7B"
    assert commands == [
        [*FOUND, "--model", model, "--folder", "data/psyqa", "--output_dir", output],
        [
            *TORCHRUN, "1", "main_SFT.py", "--model_path", model, "--task", "emotion-summary",
            "--train_data_path", "data/psyqa/train/Emotion_Summary.jsonl",
            "--dev_data_path", "data/psyqa/validation/Emotion_Summary.jsonl", "--output_dir", output,
            "--num_epochs", "2",
        ],
    ]  # fmt: skip
    last = shlex.split(done.stdout.splitlines()[-1])
    assert last[:4] == ["python", "inference.py", "--model_path", output]
    assert last[-2:] == ["--test_data_path", "data/psyqa/test/Emotion_Summary.jsonl"]


def test_its_variables(start, tmp_path):
    _, commands = start(MODEL="a model", DATA="~/my cases", OUTPUT="~/out", PROCESSES="3", HOME=str(tmp_path))
    folder = f"{tmp_path}/my cases"
    assert commands[0] == [*FOUND, "--model", "a model", "--folder", folder, "--output_dir", f"{tmp_path}/out"]
    assert commands[1][:7] == [*TORCHRUN, "3", "main_SFT.py"]
    assert f"{folder}/train/Emotion_Summary.jsonl" in commands[1]


@pytest.mark.parametrize("failing", ["scripts.find_data", "scripts._distributed"])
def test_it_ends_where_a_part_fails(start, failing):
    done, commands = start(FAILING=failing)
    assert (done.returncode, done.stdout) == (7, "")
    assert failing in commands[-1]


def test_what_is_missing_is_named(environment, noted, tmp_path):
    """With the real Python, by its own environment."""
    done, _ = noted("start_training_qwen2.sh", VENV=environment["VENV"], DATA=str(tmp_path), MODEL="org/model")
    assert done.returncode == 2
    assert done.stderr == (
        f"find_data.py: error: {tmp_path}: no train file (train/Emotion_Summary.jsonl) there; get it with: "
        f"python download.py --dataset psyqa --target_dir {tmp_path}\n"
    )


# --- Windows --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """Of the .bat; cmd.exe misreads labels in files whose lines end otherwise than \\r\\n."""
    content = BAT.read_bytes()
    assert content.isascii()  # it is read in the code page of the console
    assert content.count(b"\n") == content.count(b"\r\n") > 50
    return content.decode("ascii").split("\r\n")


def commands_of(lines: list[str]) -> list[list[str]]:
    """What the .bat calls Python with, its variables spelt as in bash."""
    calls = [line for line in lines if re.match(r'("%\w+%"|py) -', line) or line.startswith('"%VENV_PYTHON%" main')]
    return [shlex.split(re.sub(r"%(\w+)%", r"${\1}", line)) for line in calls]


def test_both_give_the_same_commands(start, lines):
    settings = {"MODEL": "M", "DATA": "D", "OUTPUT": "O"}
    find, train = start(**settings)[1]
    spelt = [[re.sub(r"\$\{(\w+)\}", lambda m: settings.get(m[1], m[0]), word) for word in command]
             for command in commands_of(lines)]  # fmt: skip
    assert ["${VENV_PYTHON}", *find, ">nul"] in spelt
    assert ["${VENV_PYTHON}", *train[train.index("main_SFT.py") :], "%*"] in spelt


def test_both_have_the_same_defaults(lines):
    bash = (BAT.with_suffix(".sh")).read_text(encoding="utf-8")
    defaults = dict(re.findall(r'^(\w+)="\$\{\1:-(.*)\}"$', bash, re.MULTILINE))
    assert set(defaults) == {"MODEL", "DATA", "OUTPUT"}
    stated = dict(re.findall(r'^if not defined (\w+) set "\1=(.*)"$', "\n".join(lines), re.MULTILINE))
    assert stated == defaults | {"VENV": ".venv", "PROCESSES": "1"}


def test_each_call_of_python_is_followed_by_a_check(lines):
    calls = [i for i, line in enumerate(lines) if line.startswith(('"%VENV_PYTHON%" ', '"%PYTHON%" ', "py "))]
    assert len(calls) == 9
    for i in calls:
        assert lines[i + 1].startswith("if not %ERRORLEVEL%==0 "), lines[i]  # errorlevel 1 would miss a crash: below 0


def test_labels_of_gotos_are_there(lines):
    labels = {line for line in lines if line.startswith(":")}
    used = {f":{name}" for line in lines for name in re.findall(r"goto :(\w+)", line)}
    assert used == labels
    for line in lines:
        if "goto :stop" in line:
            assert re.search(r'set "WHY=[^"]*" & goto :stop$', line), line


def test_nothing_of_the_bat_is_read_twice(lines):
    """What a variable holds is quoted wherever it stands, so that & and ) in it are no commands."""
    for line in lines:
        if not line.startswith("rem"):
            unquoted = re.sub(r'"[^"]*"', "", line)
            assert not set(re.findall(r"%(\w+)%", unquoted)) - {"ERRORLEVEL"}, line


def test_code_in_the_bat_is_python(lines):
    code = [command[command.index("-c") + 1] for command in commands_of(lines) if "-c" in command]
    assert len(code) == 5
    for each in code:
        compile(each, "start_training_qwen2.bat", "exec")


@pytest.mark.parametrize(
    ("flags", "four_bits"),
    [
        ([], True), (["--tuning", "qlora"], True), (["--tuning=qlora", "--seed", "1"], True), (["--seed", "1"], True),
        (["--tuning", "lora"], False), (["--tuning=full"], False),
    ],
)  # fmt: skip
def test_which_runs_need_four_bits(lines, flags, four_bits):
    (code,) = (command[2] for command in commands_of(lines) if command[1] == "-c" and "--tuning" in command[2])
    done = subprocess.run([sys.executable, "-c", code, *flags])
    assert (done.returncode == 0) == four_bits

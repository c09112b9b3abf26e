import json
import subprocess
import sys

import pytest

from data.arguments import UserError
from data.files import exclusive
from data.report.tables import in_chinese
from scripts.compare import KNOWN_COLUMNS, Args, main, named_folders
from tests.conftest import ROOT


def write_run(folder, **results):
    folder.mkdir(parents=True)
    (folder / "test_results.json").write_text(json.dumps(results))
    return str(folder)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_runs_side_by_side(tmp_path, capsys):
    for name, f1 in (("base", 0.02), ("sft", 0.4)):
        write_run(tmp_path / name, n=3, f1_macro=f1)
    main(Args(runs=[f"untuned={tmp_path}/base", f"{tmp_path}/sft"], output_dir=str(tmp_path)))
    printed = capsys.readouterr().out.splitlines()
    assert cells(printed[0]) == ["name", "n", "runs", "f1_macro"]
    assert cells(printed[2]) == ["untuned", "3", "1", "0.0200"]
    assert cells(printed[3]) == [f"{tmp_path}/sft", "3", "1", "0.4000"]
    assert len(printed) == 4
    assert json.loads((tmp_path / "baseline_comparison.json").read_text())["untuned"] == {
        "runs": [f"{tmp_path}/base"],
        "mean": {"n": 3, "f1_macro": 0.02},
        "std": {"n": None, "f1_macro": None},
        "results": {"n": 3, "f1_macro": 0.02},
    }


def test_four_systems_in_one_table_and_json(tmp_path, capsys):
    """Zero-shot, a frozen base with a trained head, a trained classifier, and label scoring."""
    systems = {"zero-shot": 0.88, "frozen": 0.512, "head": 0.938, "scoring": 0.9575}
    runs = []
    for name, accuracy in systems.items():
        probabilities = {"auc": accuracy, "ece": 0.1} if name != "zero-shot" else {}
        results = {"n": 1200, "accuracy": accuracy, "confusion_matrix": [[1, 2], [3, 4]], "backend": "hf", "seed": 42}
        runs.append(f"{name}={write_run(tmp_path / name, **results, **probabilities)}")
    main(Args(runs=runs, output_dir=str(tmp_path), markdown_path=str(tmp_path / "new" / "table.md")))
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert cells(lines[0]) == ["name", "n", "runs", "accuracy", "auc", "ece"]
    assert [cells(line)[0] for line in lines[2:]] == list(systems)
    assert cells(lines[2]) == ["zero-shot", "1200", "1", "0.8800", "-", "-"]
    assert cells(lines[5]) == ["scoring", "1200", "1", "0.9575", "0.9575", "0.1000"]
    assert (tmp_path / "new" / "table.md").read_text() == printed
    written = json.loads((tmp_path / "baseline_comparison.json").read_text())
    assert list(written) == list(systems)
    assert written["head"]["mean"] == {"n": 1200, "accuracy": 0.938, "auc": 0.938, "ece": 0.1}
    assert written["head"]["results"]["confusion_matrix"] == [[1, 2], [3, 4]]


def test_runs_of_one_name_are_seeds_of_one_system(tmp_path, capsys):
    for seed, f1, rate in ((0, 0.5, 10.0), (42, 0.6, None), (123, 0.7, 12.0)):
        write_run(tmp_path / f"r{seed}", n=8, f1_macro=f1, seed=seed, examples_per_second=rate)
    write_run(tmp_path / "other", n=8, f1_macro=0.1)
    runs = [f"lora={tmp_path}/r{seed}" for seed in (0, 42, 123)]
    main(Args(runs=[*runs, f"full={tmp_path}/other"], output_dir=str(tmp_path)))
    lines = capsys.readouterr().out.splitlines()
    assert cells(lines[0]) == ["name", "n", "runs", "f1_macro"], "a rate that one of three runs lacks has no mean"
    assert cells(lines[2]) == ["lora", "8", "3", "0.6000 ± 0.1000"]
    assert cells(lines[3]) == ["full", "8", "1", "0.1000"]
    lora = json.loads((tmp_path / "baseline_comparison.json").read_text())["lora"]
    assert lora["runs"] == [f"{tmp_path}/r{seed}" for seed in (0, 42, 123)]
    assert lora["mean"] == pytest.approx({"n": 8, "f1_macro": 0.6})
    assert lora["std"] == pytest.approx({"n": 0, "f1_macro": 0.1})
    assert "results" not in lora


def test_names_from_folders():
    folders = ["o/sst2-lora-seed0", "o/sst2-lora-seed42/", "o/r8-full_seed1", "o/r8-full-s2", "x=o/a-seed3", "o/plain"]
    names = [name for name, _ in named_folders(folders, group_seeds=True)]
    assert names == ["sst2-lora", "sst2-lora", "r8-full", "r8-full", "x", "plain"]
    assert [name for name, _ in named_folders(folders, False)] == [*folders[:4], "x", "o/plain"]
    # no seed, or nothing but a seed
    odd = ["o/-seed0", "o/losses3", "o/a-seed", "o/seed7"]
    assert [name for name, _ in named_folders(odd, True)] == ["-seed0", "losses3", "a-seed", "seed7"]
    # the same last part in two places is not one system
    assert [name for name, _ in named_folders(["a/m-s0", "b/m-s1", "c/n-s0"], True)] == ["a/m", "b/m", "n"]


def test_plain_folders_on_the_command_line(tmp_path):
    """As a shell expands outputs/train/*: runs, one that failed, and the table of last time."""
    for data, accuracy in (("sst2", 0.9), ("r8", 0.8)):
        for seed in (0, 42):
            write_run(tmp_path / f"{data}-lora-seed{seed}", n=len(data), accuracy=accuracy)
    (tmp_path / "r8-full-seed0").mkdir()
    (tmp_path / "comparison.md").write_text("| old |")
    command = [sys.executable, "-m", "scripts.compare", "--group_seeds", *map(str, sorted(tmp_path.iterdir()))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"warning: {tmp_path}/r8-full-seed0: has no test_results.json, left out"
    assert [cells(line) for line in lines[3:5]] == [
        ["r8-lora", "2", "2", "0.8000 ± 0.0000"],
        ["sst2-lora", "4", "2", "0.9000 ± 0.0000"],
    ]
    assert lines[5] == "warning: not scored on the same rows: r8-lora on 2, sst2-lora on 4"


def test_chosen_columns(tmp_path, capsys):
    folder = write_run(tmp_path / "a", n=3, accuracy=0.5, rouge_l=0.25, per_label={"joy": {}}, seed=1)
    main(Args(runs=[folder], columns=["rouge_l", "brier", "accuracy"]))
    assert cells(capsys.readouterr().out.splitlines()[0]) == ["name", "rouge_l", "accuracy"]
    for unknown in ("acuracy", "per_label", "seed"):
        with pytest.raises(UserError, match=f"^--columns {unknown}: unknown; known are n, runs, accuracy, .*rouge_l"):
            main(Args(runs=[folder], columns=["n", unknown]))


def test_titles_in_chinese(tmp_path, capsys):
    """A Chinese character is as wide as two letters, in titles and in names; the JSON has the names it always has."""
    head = write_run(tmp_path / "head", n=48, accuracy=0.625, f1_macro=0.5, own=1.0)
    tuned = write_run(tmp_path / "tuned", n=48, accuracy=0.875, f1_macro=0.75, own=2.0)
    main(
        Args(
            runs=[f"只训练分类头={head}", f"LoRA={tuned}"], columns=["n", "accuracy", "f1_macro", "own"], language="zh",
            output_dir=str(tmp_path), markdown_path=str(tmp_path / "table.md"),
        )
    )  # fmt: skip
    assert capsys.readouterr().out.splitlines() == [
        "| 模型         | 条数 | 准确率 | 宏平均 F1 | own    |",
        "|--------------|------|--------|-----------|--------|",
        "| 只训练分类头 | 48   | 0.6250 | 0.5000    | 1.0000 |",
        "| LoRA         | 48   | 0.8750 | 0.7500    | 2.0000 |",
    ]
    assert (tmp_path / "table.md").read_text(encoding="utf-8").startswith("| 模型 ")
    written = json.loads((tmp_path / "baseline_comparison.json").read_text())
    assert list(written["LoRA"]["mean"]) == ["n", "accuracy", "f1_macro", "own"]


def test_every_known_column_has_a_chinese_title():
    titles = [in_chinese(column) for column in KNOWN_COLUMNS]
    assert len(set(titles)) == len(titles)
    assert not set(titles) & set(KNOWN_COLUMNS)


def test_what_cannot_be_one_system(tmp_path):
    a, b = write_run(tmp_path / "a", n=3), write_run(tmp_path / "b", n=4)
    with pytest.raises(UserError, match=r"--runs: x has .*a/\. twice"):
        main(Args(runs=[f"x={a}", f"x={a}/."]))
    with pytest.raises(UserError, match=r"--runs: x was not scored on the same rows: .*/a has n 3, .*/b has n 4"):
        main(Args(runs=[f"x={a}", f"x={b}"]))
    main(Args(runs=[f"x={a}", f"y={a}"]))


def test_a_run_without_results(tmp_path):
    with pytest.raises(UserError, match=r"test_results.json: cannot be read"):
        main(Args(runs=[str(tmp_path)]))
    with pytest.raises(UserError, match=r"nowhere-s1/test_results.json: cannot be read"):
        main(Args(runs=[f"{tmp_path}/nowhere-s1"], group_seeds=True))
    with pytest.raises(UserError, match=r"--runs: none of the folders has a test_results.json"):
        main(Args(runs=[str(tmp_path)], group_seeds=True))
    (tmp_path / "test_results.json").write_text("[1, 2]")
    with pytest.raises(UserError, match=r"test_results.json: not a JSON object"):
        main(Args(runs=[str(tmp_path)]))


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--markdown_path .*: is a folder"):
        Args(runs=["a"], markdown_path=str(tmp_path))
    with pytest.raises(UserError, match=r"--markdown_path .*: is a file"):
        Args(runs=["a"], markdown_path=str(tmp_path / "file" / "table.md"))


@pytest.mark.parametrize(("content", "message"), [
    ('{"n": "many"}', "n is 'many', expected a whole number or null"), ('{"accuracy": [0.5]}', r"accuracy is \[0.5\]"),
    ('{"n": ' + "9" * 40 + "}", "n is 999.*, which is out of range"), ('{"per_label": 3}', "per_label is 3"),
    ("[" * 100_000, "not a JSON object"), ("null", "not a JSON object"),
])  # fmt: skip
def test_results_that_are_none(tmp_path, content, message):
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "test_results.json").write_text(content)
    with pytest.raises(UserError, match=f"test_results.json: {message}"):
        main(Args(runs=[str(folder)], output_dir=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_numbers_of_every_size(tmp_path, capsys):
    for name, value in (("a", 1.7e308), ("b", -1.7e308)):
        write_run(tmp_path / name, n=3, accuracy=value, own=10**30 if name == "a" else None, rouge=1e153)
    main(Args(runs=[f"x={tmp_path}/a", f"x={tmp_path}/b"], columns=["n", "rouge"]))
    assert cells(capsys.readouterr().out.splitlines()[0]) == ["name", "n", "rouge"]


def test_one_process_writes_a_comparison(tmp_path):
    folder = write_run(tmp_path / "a", n=3)
    with (
        exclusive(tmp_path / "out", "baseline_comparison.json"),
        pytest.raises(UserError, match="another process is writing"),
    ):
        main(Args(runs=[folder], output_dir=str(tmp_path / "out")))

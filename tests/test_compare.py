import json
import random
import subprocess
import sys

import pytest

from data.arguments import UserError
from data.contract import Contract
from data.files import exclusive
from data.metrics import label_metrics
from data.predictions import Prediction
from data.report.comparison import KNOWN_COLUMNS
from data.report.tables import in_chinese
from data.report.training_facts import training_facts
from data.significance import METRICS, bootstrap_intervals, holm, mcnemar, mean_intervals, paired_bootstrap, rare_labels
from data.tasks import BUILT_IN_TASKS
from scripts.compare import Args, main, named_folders
from tests.conftest import ROOT

GROUP = BUILT_IN_TASKS["goemotions-group"]


def write_run(folder, **results):
    folder.mkdir(parents=True)
    (folder / "test_results.json").write_text(json.dumps(results))
    return str(folder)


def answered(folder, right: float, seed: int, rows: int = 80, task=GROUP, texts: str = "text"):
    """A run that was scored on `rows` texts, of which it got a share right; its gold labels and predictions."""
    draw = random.Random(seed)
    gold = [(task.labels[row % len(task.labels)],) for row in range(rows)]
    predictions = [Prediction(g if draw.random() < right else (draw.choice(task.labels),), True) for g in gold]
    lines = [
        json.dumps(dict(id=f"r{row}", text=f"{texts} {row}", gold=list(g), labels=p.labels, valid=True))
        for row, (g, p) in enumerate(zip(gold, predictions, strict=True))
    ]
    write_run(folder, **label_metrics(gold, predictions, task), examples_per_second=20.0)
    (folder / "predictions.jsonl").write_text("\n".join(lines) + "\n")
    return gold, predictions


def blocks(printed: str) -> list[list[str]]:
    """The tables in what was printed, with their headings between them."""
    return [block.splitlines() for block in printed.strip().split("\n\n")]


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


# --- intervals and tests --------------------------------------------------------------------------------------------


def test_intervals_and_tests_over_the_rows(tmp_path, capsys):
    """What is written is what `data/significance.py` finds in the rows; p values are corrected for two systems."""
    systems = {
        name: answered(tmp_path / name, right, seed)
        for name, right, seed in (("untuned", 0.2, 1), ("head", 0.5, 2), ("scoring", 0.6, 3))
    }
    runs = [f"{name}={tmp_path / name}" for name in systems]
    main(Args(runs, baseline="untuned", rounds=200, output_dir=str(tmp_path), markdown_path=str(tmp_path / "t.md")))
    printed = capsys.readouterr().out
    assert (tmp_path / "t.md").read_text() == printed
    written = json.loads((tmp_path / "baseline_comparison.json").read_text())
    gold = systems["untuned"][0]
    for name, (_, predictions) in systems.items():
        found = bootstrap_intervals(gold, predictions, GROUP, rounds=200)
        assert written[name]["intervals"] == {metric: list(ends) for metric, ends in found.items()}
        assert written[name]["bootstrap"] == {
            "rows": 80, "rounds": 200, "level": 0.95, "seed": 42, "rare_labels": []
        }  # fmt: skip
        for metric in METRICS:
            low, high = written[name]["intervals"][metric]
            assert low < written[name]["mean"][metric] < high
    assert "against" not in written["untuned"]
    base, raw = systems["untuned"][1], {}
    for name in ("head", "scoring"):
        against = written[name]["against"]
        assert (against["baseline"], against["systems"]) == ("untuned", 2)
        for metric in METRICS:
            wanted = paired_bootstrap(gold, systems[name][1], base, GROUP, metric, rounds=200)
            raw.setdefault(metric, {})[name] = wanted["p"]
            assert against["metrics"][metric] == wanted | {"p_holm": against["metrics"][metric]["p_holm"]}
        wanted = mcnemar(gold, systems[name][1], base)
        raw.setdefault("mcnemar", {})[name] = wanted["p"]
        assert against["mcnemar"] == wanted | {"p_holm": against["mcnemar"]["p_holm"]}
    for metric, ps in raw.items():
        corrected = {n: written[n]["against"]["metrics"].get(metric, written[n]["against"]["mcnemar"]) for n in ps}
        assert {name: result["p_holm"] for name, result in corrected.items()} == holm(ps)
    scores, interval_title, interval_lines, test_title, test_lines = blocks(printed)
    assert cells(scores[0])[:4] == ["name", "n", "runs", "accuracy"], "the scores are printed as ever"
    assert interval_title == ["95 % intervals, of 200 bootstrap rounds over the rows:"]
    assert cells(interval_lines[0]) == ["name", *METRICS]
    low, high = written["head"]["intervals"]["f1_macro"]
    assert cells(interval_lines[3])[2] == f"{low:.4f} … {high:.4f}"
    assert test_title == ["Against untuned on the same rows, 95 % intervals; p (Holm) is corrected for 2 systems:"]
    assert [cells(line)[:2] for line in test_lines[2:]] == [
        [name, metric] for name in ("head", "scoring") for metric in (*METRICS, "McNemar")
    ]
    accuracy = written["scoring"]["against"]["metrics"]["accuracy"]
    assert cells(test_lines[7])[2] == f"{accuracy['difference']:+.4f}"
    split = written["scoring"]["against"]["mcnemar"]
    assert cells(test_lines[11])[2] == f"+{split['better']} -{split['worse']}"


def test_labels_that_few_rows_have_are_said(tmp_path, capsys):
    gold, _ = answered(tmp_path / "a", 0.5, 1, rows=38)  # ten texts of two labels, nine of the others
    assert rare_labels(gold, GROUP) == list(GROUP.labels[2:])
    main(Args([f"a={tmp_path}/a"], rounds=100, output_dir=str(tmp_path)))
    title = " (labels in fewer than 10 of them: 2; so those of macro F1 lie low):"
    assert blocks(capsys.readouterr().out)[1][0].endswith(title)
    written = json.loads((tmp_path / "baseline_comparison.json").read_text())
    assert written["a"]["bootstrap"]["rare_labels"] == list(GROUP.labels[2:])
    main(Args([f"a={tmp_path}/a"], rounds=100, language="zh"))
    assert "有 2 个标签的样本不足 10 条" in capsys.readouterr().out


def test_scores_stay_as_they_are_without_rounds(tmp_path, capsys):
    answered(tmp_path / "a", 0.5, 1)
    main(Args([f"a={tmp_path}/a"], rounds=0, output_dir=str(tmp_path)))
    plain, written = capsys.readouterr().out, json.loads((tmp_path / "baseline_comparison.json").read_text())
    assert list(written["a"]) == ["runs", "mean", "std", "results"]
    (tmp_path / "a" / "predictions.jsonl").unlink()
    main(Args([f"a={tmp_path}/a"], output_dir=str(tmp_path)))
    assert capsys.readouterr().out == plain
    assert json.loads((tmp_path / "baseline_comparison.json").read_text()) == written


def test_seeds_are_tested_as_one_system(tmp_path, capsys):
    seeds = [answered(tmp_path / f"m-seed{seed}", 0.5, seed) for seed in (1, 2, 3)]
    gold, base = answered(tmp_path / "base", 0.3, 4)
    runs = [str(tmp_path / f"m-seed{seed}") for seed in (1, 2, 3)]
    main(Args([*runs, f"base={tmp_path}/base"], group_seeds=True, baseline="base", output_dir=str(tmp_path)))
    written = json.loads((tmp_path / "baseline_comparison.json").read_text())["m"]
    means = mean_intervals(gold, [predictions for _, predictions in seeds], GROUP)
    assert written["intervals"] == {metric: list(ends) for metric, ends in means.items()}
    against = written["against"]
    base_scores = label_metrics(gold, base, GROUP)
    for metric in METRICS:
        difference = written["mean"][metric] - base_scores[metric]
        assert against["metrics"][metric]["difference"] == pytest.approx(difference, abs=1e-14)
        assert against["metrics"][metric]["p_holm"] == against["metrics"][metric]["p"], "one system is tested"
    assert against["mcnemar"] is None
    printed = capsys.readouterr().out
    assert "McNemar" not in printed
    assert "Holm" not in printed, "one test needs no correction"


def test_other_rows_are_not_tested(tmp_path, capsys):
    """Scores are shown side by side, with what is wrong said in a line; the others are tested."""
    answered(tmp_path / "base", 0.3, 1)
    answered(tmp_path / "same", 0.5, 2)
    answered(tmp_path / "moved", 0.5, 3, texts="another text")
    answered(tmp_path / "longer", 0.5, 3, rows=81)
    write_run(tmp_path / "unknown", n=80, accuracy=0.5)
    names = ("base", "same", "moved", "longer", "unknown")
    main(Args([f"{n}={tmp_path}/{n}" for n in names], baseline="base", rounds=100, output_dir=str(tmp_path)))
    printed = capsys.readouterr().out.splitlines()
    assert printed[:3] == [
        f"warning: moved is not tested against base: {tmp_path}/moved/predictions.jsonl: id 'r0' has text "
        f"'another text 0', {tmp_path}/base/predictions.jsonl has 'text 0' in its place; they predict different files",
        f"warning: longer is not tested against base: {tmp_path}/base/predictions.jsonl: ends before id 'r80' of "
        f"{tmp_path}/longer/predictions.jsonl (80 rows, not 81)",
        "warning: unknown is not tested against base: not all of its runs have a predictions.jsonl of the same rows",
    ]
    written = json.loads((tmp_path / "baseline_comparison.json").read_text())
    assert [name for name, content in written.items() if "against" in content] == ["same"]
    assert [name for name, content in written.items() if "intervals" in content] == list(names[:4])
    assert written["same"]["against"]["systems"] == 1
    with pytest.raises(UserError, match=r"--baseline unknown: not all of its runs have a predictions\.jsonl"):
        main(Args([f"{n}={tmp_path}/{n}" for n in names], baseline="unknown", rounds=100))
    main(Args([f"x={tmp_path}/same", f"x={tmp_path}/moved"], rounds=100))
    assert capsys.readouterr().out.startswith(f"warning: x has no intervals: {tmp_path}/moved/predictions.jsonl: id")


def test_labels_of_another_task_are_not_tested(tmp_path, capsys):
    for name in ("base", "other"):
        answered(tmp_path / name, 0.3, 1)
    path = tmp_path / "other" / "test_results.json"
    results = json.loads(path.read_text())
    results["per_label"]["boredom"] = {"support": 0}
    path.write_text(json.dumps(results))
    main(Args([f"base={tmp_path}/base", f"other={tmp_path}/other"], baseline="base", rounds=100))
    assert f"{tmp_path}/other/predictions.jsonl: label 'boredom' is not in both its task" in capsys.readouterr().out


def test_scores_that_are_not_of_the_rows(tmp_path):
    answered(tmp_path / "a", 0.5, 1)
    answered(tmp_path / "b", 0.9, 2)
    (tmp_path / "b" / "predictions.jsonl").rename(tmp_path / "a" / "predictions.jsonl")
    with pytest.raises(UserError, match=r"/a: test_results.json is not of the rows in predictions.jsonl: it has n 80"):
        main(Args([str(tmp_path / "a")]))
    main(Args([str(tmp_path / "a")], rounds=0))
    (tmp_path / "a" / "predictions.jsonl").write_text('{"id": 3}\n')
    with pytest.raises(UserError, match=r"a/predictions.jsonl:1: id is 3, so this is no line of predictions"):
        main(Args([str(tmp_path / "a")]))


def test_the_folder_test_of_a_run(tmp_path, capsys):
    answered(tmp_path / "m-seed0" / "test", 0.5, 1)
    Contract(task=GROUP, objective="score", base_model="models/base").save(tmp_path / "m-seed0")
    main(Args([str(tmp_path / "m-seed0")], group_seeds=True, rounds=100, output_dir=str(tmp_path)))
    written = json.loads((tmp_path / "baseline_comparison.json").read_text())["m"]
    assert written["runs"] == [str(tmp_path / "m-seed0")]
    assert set(written["intervals"]) == set(METRICS)
    assert written["training"]["what"] == "score, base"
    with pytest.raises(UserError, match=r"--runs: x has .*/m-seed0/test twice"):
        main(Args([f"x={tmp_path}/m-seed0", f"x={tmp_path}/m-seed0/test"]))


@pytest.mark.parametrize(("flags", "message"), [
    (dict(baseline="c"), "--baseline c: no such name; the runs are a, b"),
    (dict(baseline="a", rounds=0), "--baseline a: tests draw rows, which --rounds 0 leaves out"),
    (dict(runs=["a=x", "a=y"], baseline="a"), "--baseline a: is the only system"),
    (dict(rounds=99), "--rounds 99: must be 0, or from 100 to 1000000"), (dict(rounds=-1), "--rounds -1: must be"),
    (dict(level=1.0), "--level 1.0: must be from 0.5 to 0.999"), (dict(seed=-1), "--seed -1: must be from 0"),
])  # fmt: skip
def test_flags_that_cannot_be_meant(flags, message):
    with pytest.raises(UserError, match=f"^{message}"):
        Args(**{"runs": ["a=x", "b=y"]} | flags)


# --- training -------------------------------------------------------------------------------------------------------


def train(folder, seconds: float, **args):
    """What training leaves, as far as the comparison reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    Contract(task=GROUP, objective="classify", head="mlp", base_model="org/base-100m").save(folder)
    trained = {"seconds_since_resumed": seconds, "resumed_from": None, "all_parameters": 139_399_488,
               "trainable_parameters": 4_884_480, "peak_memory_mib": 2212}  # fmt: skip
    (folder / "train_results.json").write_text(json.dumps(trained))
    (folder / "args.json").write_text(json.dumps({"tuning": "lora"} | args))
    (folder / "adapter_config.json").write_text(json.dumps({"r": 8}))
    (folder / "adapter_model.safetensors").write_bytes(b"x" * 1_500_000)


def test_what_a_run_is_and_what_it_took(tmp_path, capsys):
    for seed, seconds in ((0, 100.0), (1, 140.0)):
        train(write_folder := tmp_path / f"lora-s{seed}", seconds)
        (write_folder / "test_results.json").write_text('{"n": 3, "accuracy": 0.5}')
    write_run(tmp_path / "base", n=3, accuracy=0.1)
    runs = [str(tmp_path / "base"), str(tmp_path / "lora-s0"), str(tmp_path / "lora-s1")]
    main(Args(runs, group_seeds=True, output_dir=str(tmp_path)))
    scores, title, lines = blocks(capsys.readouterr().out)
    assert cells(scores[0]) == ["name", "n", "runs", "accuracy"]
    assert title == ["What it is, and what it took:"]
    assert [cells(line) for line in (lines[0], *lines[2:])] == [
        ["name", "what", "all_parameters", "trainable_parameters", "size_mb", "train_seconds", "peak_memory_mib"],
        ["base", "-", "-", "-", "-", "-", "-"],
        ["lora", "classify, mlp head, lora, base-100m", "139.4M", "4.884M", "1.5 (adapter)", "120 ± 28", "2,212"],
    ]
    written = json.loads((tmp_path / "baseline_comparison.json").read_text())
    assert "training" not in written["base"]
    training = written["lora"]["training"]
    assert (training["what"], training["size_of"]) == ("classify, mlp head, lora, base-100m", "adapter")
    assert training["mean"] == {"all_parameters": 139_399_488, "trainable_parameters": 4_884_480, "size_mb": 1.5,
                                "train_seconds": 120.0, "peak_memory_mib": 2212}  # fmt: skip
    assert training["std"]["train_seconds"] == pytest.approx(800**0.5)
    main(Args(runs, group_seeds=True, columns=["accuracy", "size_mb"], language="zh"))
    scores, title, lines = blocks(capsys.readouterr().out)
    assert title == ["方法与训练开销："]
    assert cells(lines[0]) == ["模型", "大小 (MB)"]
    main(Args(runs, group_seeds=True, columns=["accuracy"]))
    assert len(blocks(capsys.readouterr().out)) == 1


def test_what_training_left_is_told_as_far_as_it_is_known(tmp_path):
    assert training_facts(tmp_path) == {}
    train(tmp_path, 100.0, num_generations=8)
    assert training_facts(tmp_path)["method"] == "GRPO"
    (tmp_path / "train_results.json").write_text('{"seconds_since_resumed": 9.5, "resumed_from": "checkpoint-20"}')
    assert "train_seconds" not in training_facts(tmp_path), "the seconds of a part of the training"
    (tmp_path / "train_results.json").write_text('{"seconds": 9.5}')
    assert training_facts(tmp_path)["train_seconds"] == 9.5, "as an earlier EmoTune wrote it"
    (tmp_path / "adapter_config.json").unlink()
    assert training_facts(tmp_path)["size_of"] == "model"
    (tmp_path / "train_results.json").write_text('{"all_parameters": "many"}')
    with pytest.raises(UserError, match=r"train_results\.json: all_parameters is 'many'"):
        training_facts(tmp_path)


def test_runs_that_are_not_alike_are_named_so(tmp_path, capsys):
    train(tmp_path / "a", 10.0)
    train(tmp_path / "b", 10.0, tuning="qlora")
    (tmp_path / "b" / "train_results.json").write_text("{}")
    for name in ("a", "b"):
        (tmp_path / name / "test_results.json").write_text('{"n": 3}')
    main(Args([f"x={tmp_path}/a", f"x={tmp_path}/b"]))
    lines = blocks(capsys.readouterr().out)[2]
    assert cells(lines[0]) == ["name", "what", "size_mb"], "what one of two runs lacks has no mean"
    what = "classify, mlp head, lora, base-100m / classify, mlp head, qlora, base-100m"
    assert cells(lines[2]) == ["x", what, "1.5 (adapter)"]


def test_summaries_have_scores_and_no_intervals(tmp_path, capsys):
    row = {"id": "1", "case_description": ["a"], "consultation_process": ["b"], "summary": "c", "finished": True}
    for name, score in (("a", 0.25), ("b", 0.5)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "test_results.json").write_text(json.dumps({"n": 1, "rougeL_f1": score, "bleu": 0.125}))
        (folder / "predictions.jsonl").write_text(json.dumps(row) + "\n")
    main(Args(runs=[f"a={tmp_path}/a", f"b={tmp_path}/b"]))
    said = capsys.readouterr().out
    assert "| a    | 1 | 1    | 0.2500    | 0.1250 |" in said
    assert "a has no intervals: they are those of labels, and its answers are summaries" in said

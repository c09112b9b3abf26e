import json

import pytest

from data.arguments import UserError
from scripts.compare import Args, main


def test_runs_side_by_side(tmp_path, capsys):
    for name, f1 in (("base", 0.02), ("sft", 0.4)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "test_results.json").write_text(json.dumps({"n": 3, "f1_macro": f1}))
    main(Args(runs=[f"untuned={tmp_path}/base", f"{tmp_path}/sft"], output_dir=str(tmp_path)))
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("| run ")
    assert "| untuned" in printed[2]
    assert "0.0200" in printed[2]
    assert "0.4000" in printed[3]
    assert json.loads((tmp_path / "baseline_comparison.json").read_text())["untuned"] == {"n": 3, "f1_macro": 0.02}


def test_a_run_without_results(tmp_path):
    with pytest.raises(UserError, match=r"test_results.json: cannot be read"):
        main(Args(runs=[str(tmp_path)]))

import json

import pytest
from matplotlib.image import imread

from data.arguments import UserError
from scripts.reward_curve import Args, main


@pytest.fixture
def runs(tmp_path) -> list[str]:
    for seed in (0, 42):
        folder = tmp_path / f"seed{seed}"
        folder.mkdir()
        rows = [f"{step},{0.1 * step + seed / 1000},{0.05 * step},{-0.01 * step}" for step in range(1, 11)]
        (folder / "rewards.csv").write_text("step,reward,jaccard,length\n" + "\n".join(rows) + "\n")
        history = [{"step": 1, "reward": 0.1}, {"step": 0, "eval_jaccard": 0.3}, {"step": 10, "eval_jaccard": 0.5}]
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    return [str(tmp_path / "seed0"), str(tmp_path / "seed42")]


def test_the_picture(runs, tmp_path, capsys):
    """What is in it: tests/test_charts.py."""
    path = tmp_path / "pictures" / "curve.png"
    main(Args(runs=runs, output_path=str(path)))
    assert imread(path).shape[:2] == (494, 1300)
    assert [found.name for found in path.parent.iterdir()] == ["curve.png"]
    assert capsys.readouterr().out == f"written to {path}\n"


@pytest.mark.parametrize(("name", "begin"), [("a.svg", b"<?xml"), ("a.pdf", b"%PDF-")])
def test_other_formats(runs, tmp_path, name, begin):
    main(Args(runs=runs[:1], output_path=str(tmp_path / name)))
    assert (tmp_path / name).read_bytes().startswith(begin)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"runs": []}, "--runs is needed"),
        ({"metric": "bleu"}, "--metric bleu: must be one of accuracy"),
        ({"window": 0}, "--window 0: must be at least 1"),
        ({"output_path": "curve.docx"}, "--output_path curve.docx: must end with .png"),
    ],
)
def test_wrong_flags(flags, message):
    with pytest.raises(UserError, match=message):
        Args(**{"runs": ["a"]} | flags)


def test_a_folder_that_is_no_run(runs, tmp_path):
    with pytest.raises(UserError, match=r"rewards.csv: cannot be read"):
        main(Args(runs=[str(tmp_path)], output_path=str(tmp_path / "a.png")))
    (tmp_path / "seed0" / "trainer_state.json").unlink()
    with pytest.raises(UserError, match=r"trainer_state.json: cannot be read"):
        main(Args(runs=runs, output_path=str(tmp_path / "a.png")))
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize(("content", "message"), [
    ("", "rewards.csv: cannot be read"), ("step,reward\n", "no steps in it"), ("step\n1\n1\n", "or the same in two"),
    ("reward\n1\n", "rewards.csv: cannot be read"), ("step,reward\n1,high\n", "reward holds something else than numbers"),
    ("step,reward\none,1\n", "step holds something else"), ("step,reward\n1.5,1\n", "step is not a whole number"),
    ("step,reward\n,1\n2,1\n", "step is not a whole number"), ("step,reward\nTrue,1\n", "step holds something else"),
    ("step,reward\n1," + "9" * 500 + "\n", "reward holds something else"), ("step,reward\n1,nan\n2,inf\n3,1e999\n", None), ('step,"reward\n1,1', "cannot be read"),
    ("step,reward\n1,\udcff\n", "cannot be read"),
])  # fmt: skip
def test_rewards_that_are_none(runs, tmp_path, content, message):
    (tmp_path / "seed0" / "rewards.csv").write_text(content, encoding="utf-8", errors="surrogateescape")
    if message is None:
        main(Args(runs=runs, output_path=str(tmp_path / "a.png")))
        return
    with pytest.raises(UserError, match=rf"seed0/rewards.csv: .*{message}|{message}"):
        main(Args(runs=runs, output_path=str(tmp_path / "a.png")))
    assert not (tmp_path / "a.png").exists()


def test_a_log_that_is_none(runs, tmp_path):
    (tmp_path / "seed0" / "trainer_state.json").write_text('{"log_history": [{"step": "1", "eval_jaccard": 1}]}')
    with pytest.raises(
        UserError, match=r"trainer_state.json: step in entry 1 of log_history is '1', expected a whole number"
    ):
        main(Args(runs=runs, output_path=str(tmp_path / "a.png")))

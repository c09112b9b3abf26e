import json

import pytest

from data.arguments import UserError
from scripts.reward_curve import Args, main, read_rewards, read_validation


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


def test_the_picture(runs, tmp_path):
    from matplotlib.image import imread

    path = tmp_path / "pictures" / "curve.png"
    main(Args(runs=runs, output_path=str(path)))
    picture = imread(path)
    assert picture.shape[:2] == (494, 1300)
    assert len({tuple(pixel) for pixel in picture[::7, ::7].reshape(-1, picture.shape[-1])}) > 5, "nothing was drawn"
    assert list(read_validation(runs[0], "jaccard").items()) == [(0, 0.3), (10, 0.5)]
    assert list(read_rewards(runs[0])["jaccard"].index) == list(range(1, 11))


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


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(UserError, match=r"rewards.csv: cannot be read"):
        main(Args(runs=[str(tmp_path)], output_path=str(tmp_path / "a.png")))

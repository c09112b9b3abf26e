"""Draw what GRPO runs learnt: the rewards of drawn answers, and the label metric of greedy answers on validation rows.

Runs that differ in their seed alone become one curve: their mean, and a band of one standard deviation.

    python -m scripts.reward_curve outputs/grpo-0 outputs/grpo-42 outputs/grpo-123 --output_path reward_curve.png
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from data.arguments import UserError, check_output_dir, flag, run
from data.files import REWARDS_FILE, STATE_FILE
from data.metrics import LABEL_METRICS

REWARDS = {"reward": "weighted sum", "jaccard": "Jaccard", "format": "format", "length": "length"}


@dataclass
class Args:
    runs: list[str] = flag([], "folders of main_grpo.py runs, each with a rewards.csv")
    output_path: str = flag("reward_curve.png", "the picture: .png, .svg or .pdf")
    metric: str = flag("jaccard", "label metric of the validation rows")
    window: int = flag(5, "logged steps whose mean is drawn: single ones jump")

    def __post_init__(self):
        if not self.runs:
            raise UserError("--runs is needed: folders with a rewards.csv")
        if self.metric not in LABEL_METRICS:
            raise UserError(f"--metric {self.metric}: must be one of {', '.join(LABEL_METRICS)}")
        if self.window < 1:
            raise UserError(f"--window {self.window}: must be at least 1")
        if Path(self.output_path).suffix not in (".png", ".svg", ".pdf"):
            raise UserError(f"--output_path {self.output_path}: must end with .png, .svg or .pdf")
        check_output_dir(str(Path(self.output_path).parent), "--output_path")


def read_rewards(folder: str):
    """`rewards.csv` as a table with one row a logged step."""
    import pandas

    path = Path(folder) / REWARDS_FILE
    try:
        return pandas.read_csv(path, index_col="step")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from error


def read_validation(folder: str, metric: str):
    """Step -> the metric of the validation rows, from the newest trainer_state.json; empty where nothing was scored."""
    import pandas

    path = Path(folder) / STATE_FILE
    try:
        history = json.loads(path.read_text(encoding="utf-8"))["log_history"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    return pandas.Series({e["step"]: e[f"eval_{metric}"] for e in history if f"eval_{metric}" in e}, dtype=float)


def draw(args: Args) -> None:
    import matplotlib as mpl
    import pandas

    mpl.use("Agg")
    from matplotlib import pyplot

    rewards = [read_rewards(folder).rolling(args.window, min_periods=1).mean() for folder in args.runs]
    validation = [read_validation(folder, args.metric) for folder in args.runs]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for column, label in REWARDS.items():
        if all(column in table for table in rewards):
            _curve(left, pandas.concat([table[column] for table in rewards], axis=1), label)
    _curve(right, pandas.concat(validation, axis=1), None, marker="o")
    left.set(title="rewards of drawn answers", xlabel="step", ylabel="reward")
    right.set(title="validation rows, greedy answers", xlabel="step", ylabel=args.metric)
    if len(args.runs) > 1:
        figure.suptitle(f"mean of {len(args.runs)} runs ± standard deviation", fontsize=10)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.title.set_fontsize(10)
    figure.legend(loc="outside lower center", ncols=len(REWARDS), frameon=False)  # off the curves
    Path(args.output_path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output_path, dpi=130)
    pyplot.close(figure)


def _curve(axes, table, label: str | None, **style) -> None:
    """Mean over the columns of `table`, with a band of one standard deviation where there are several."""
    mean = table.mean(axis=1)
    (line,) = axes.plot(mean.index, mean, label=label, **style)
    if table.shape[1] > 1:
        deviation = table.std(axis=1)
        axes.fill_between(mean.index, mean - deviation, mean + deviation, color=line.get_color(), alpha=0.2, lw=0)


def main(args: Args) -> None:
    draw(args)
    print(f"written to {args.output_path}")


if __name__ == "__main__":
    # `python -m scripts.reward_curve a b` is short for `--runs a b`
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        sys.argv.insert(1, "--runs")
    run(main, Args, {})

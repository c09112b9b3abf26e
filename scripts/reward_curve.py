"""Draw what GRPO runs learnt: the rewards of the answers, and the label metric of greedy answers on validation rows.

Runs that differ in their seed alone become one curve: their mean, and a band of one standard deviation.

    python -m scripts.reward_curve outputs/grpo-0 outputs/grpo-42 outputs/grpo-123 --output_path reward_curve.png
"""

from dataclasses import dataclass
from pathlib import Path

from data.arguments import UserError, check_at_least, check_output_dir, flag, run
from data.files import REWARDS_FILE, STATE_FILE
from data.metrics import LABEL_METRICS
from data.report.charts import logged, reward_figure, save
from data.report.run_files import read_rewards, read_run_file


@dataclass
class Args:
    runs: list[str] = flag([], f"folders of main_grpo.py runs, each with a {REWARDS_FILE}")
    output_path: str = flag("reward_curve.png", "the picture: .png, .svg or .pdf")
    metric: str = flag("jaccard", "label metric of the validation rows")
    window: int = flag(5, "logged steps whose mean is drawn: single ones jump")

    def __post_init__(self):
        if not self.runs:
            raise UserError(f"--runs is needed: folders with a {REWARDS_FILE}")
        if self.metric not in LABEL_METRICS:
            raise UserError(f"--metric {self.metric}: must be one of {', '.join(LABEL_METRICS)}")
        check_at_least(self, window=1)
        if Path(self.output_path).suffix not in (".png", ".svg", ".pdf"):
            raise UserError(f"--output_path {self.output_path}: must end with .png, .svg or .pdf")
        check_output_dir(str(Path(self.output_path).parent), "--output_path")


def main(args: Args) -> None:
    rewards = [read_rewards(folder) for folder in args.runs]
    states = [read_run_file(folder, STATE_FILE) for folder in args.runs]
    validation = [logged(state, f"eval_{args.metric}") for state in states]
    save(reward_figure(rewards, validation, args.metric, args.window), args.output_path)
    print(f"written to {args.output_path}")


if __name__ == "__main__":
    run(main, Args, {}, positional="runs")

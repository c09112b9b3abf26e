"""report.html: one page that shows what runs do, from the numbers of `data.report.sections`. (no torch)

The page needs nothing beside it, and asks for nothing: style, script and figures are in it, and its
Content-Security-Policy allows no other. Jinja2 escapes all that is filled in, and `visible` shows what would not be
seen, or would turn the text around it.
"""

import base64
import hashlib
from typing import Any

from data.arguments import one_line, visible
from data.report import charts, summary, written
from data.report.heat_map import NOTE, NOTE_ZH, TITLES
from data.report.inline_svg import inline_panels
from data.report.words import TEMPLATES, Words

REPORT_FILE = "report.html"
SECTIONS = (
    "summary", "metrics", "confusion", "labels", "confidence", "training", "robustness", "attention", "errors", "data",
    "commands",
)  # fmt: skip
LONGEST_TEXT = 600  # characters of a text that are shown
MOST_WORDS = 100  # of a text with weights
WINDOW = 5  # logged steps whose mean is drawn as a reward


def render(report: dict[str, Any], say: Words, title: str | None = None, command: str | None = None) -> str:
    """The page.

    Args:
        report: see `data.report.sections.report_data`.
        say: the language.
        title: its title; None = one that names the runs.
        command: the command line that makes this report.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, finalize=visible,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["shortened"] = lambda text, most=LONGEST_TEXT: shortened(text, say, most)
    environment.tests["has"] = lambda labels, label: label in labels
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    names = say.list(run["name"] for run in report["runs"])
    return environment.get_template("report.html.j2").render(
        report=report,
        runs=report["runs"],
        say=say,
        title=title or say("named", title=say("title"), names=one_line(names, 200)),
        command=command,
        sections=written.SECTIONS if report["written"] else SECTIONS,
        summary=summary,
        paragraphs=written.paragraphs if report["written"] else summary.paragraphs,
        longest_summary=written.LONGEST_SUMMARY,
        longest_case=written.LONGEST_CASE,
        figures=[_figures(run, number, say) for number, run in enumerate(report["runs"])],
        coverage=_coverage(report["runs"], say),
        methods=TITLES,
        most_words=MOST_WORDS,
        attention_note=NOTE_ZH if say.language == "zh" else NOTE,
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def shortened(text: str, say: Words, most: int = LONGEST_TEXT) -> str:
    """The beginning of a text that is too long to be shown, and how much is left out."""
    left = len(text) - most
    return text if left <= 0 else f"{text[:most]} {say('more_characters', n=say.count(left))}"


# --- figures --------------------------------------------------------------------------------------------------------


def _figure(figure, name: str, caption: str, alt: str, say: Words, known: dict[str, str] | None = None):
    """A figure as the template wants it; `known` are translations beside those of `say.in_figure`."""
    from markupsafe import Markup

    translations = known or {}
    panels = inline_panels(figure, name, lambda text: translations.get(text) or say.in_figure(text))
    panels = [Markup(panel) for panel in panels]
    return {"panels": panels, "caption": caption, "alt": alt}


def _figures(run: dict[str, Any], number: int, say: Words) -> dict[str, dict[str, Any]]:
    """Name -> the figure, for all that this run has numbers for."""
    drawn = {}
    if run["training"] is not None:
        figure = charts.training_figure(run["training"])
        drawn["training"] = figure, say("training_caption"), _training_alt(run, say)
    if run["rewards"] is not None:
        curve = charts.logged(run["training"] or {}, f"eval_{run['reward_metric']}")
        figure = charts.reward_figure([run["rewards"]], [curve], run["reward_metric"], WINDOW)
        drawn["rewards"] = figure, say("reward_caption"), _reward_alt(run, say)
    if run["confidence"] is not None:
        values = {"name": run["name"], "ece": say.number(run["confidence"]["ece"])}
        values |= {"confidence": say.number(run["confidence"]["mean_confidence"])}
        figure = charts.histogram_figure(run["confidence"])
        drawn["histogram"] = figure, say("histogram_caption"), say("histogram_alt", **values)
        figure = charts.reliability_figure(run["confidence"])
        if figure is not None:
            drawn["reliability"] = figure, say("reliability_caption"), say("reliability_alt", **values)
    if _perturbations(run):
        drawn["robustness"] = charts.robustness_figure(run["robustness"]), say("robust_caption"), _robust_alt(run, say)
    known = {kind["title"].get("en"): summary.in_language(kind["title"], say) for kind in _perturbations(run)}
    return {name: _figure(figure, f"{name}-{number}", *said, say, known) for name, (figure, *said) in drawn.items()}


def _perturbations(run: dict[str, Any]) -> list[dict[str, Any]]:
    return [] if run["robustness"] is None else list(run["robustness"]["perturbations"].values())


def _training_alt(run: dict[str, Any], say: Words) -> str:
    results = run["train_results"]
    steps = max((entry["step"] for entry in run["training"]["log_history"]), default=0)
    best = ""
    if results.get("best_metric") is not None and results.get("best_step") is not None:
        values = {"metric": results.get("metric_for_best"), "score": say.number(results["best_metric"])}
        best = say("training_best", step=say.count(results["best_step"]), **values)
    return say("training_alt", name=run["name"], steps=say.count(steps), best=best)


def _reward_alt(run: dict[str, Any], say: Words) -> str:
    rewards = run["rewards"]["reward"] if "reward" in run["rewards"] else run["rewards"].iloc[:, 0]
    first, last = say.number(float(rewards.iloc[0])), say.number(float(rewards.iloc[-1]))
    return say("reward_alt", name=run["name"], first=first, last=last)


def _robust_alt(run: dict[str, Any], say: Words) -> str:
    weakest = summary.weakest(run["robustness"])
    values = {"least": say.number(weakest["accuracy"]), "title": summary.in_language(weakest["title"], say)}
    return say("robust_alt", clean=say.number(run["robustness"]["clean"]["accuracy"]), **values)


def _coverage(runs: list[dict[str, Any]], say: Words) -> dict[str, Any] | None:
    """The risk-coverage curves of all runs in one figure."""
    analyses = {visible(run["name"]): run["confidence"] for run in runs if run["confidence"] is not None}
    figure = charts.risk_coverage_figure(analyses)
    if figure is None:
        return None
    areas = {name: a["risk_coverage"]["area"] for name, a in analyses.items() if a["risk_coverage"] is not None}
    listed = say.list(say("coverage_run", name=name, area=say.number(area)) for name, area in areas.items())
    return _figure(figure, "coverage", say("coverage_caption"), say("coverage_alt", list=listed), say)

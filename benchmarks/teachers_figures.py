"""The table and the picture of benchmarks.teachers, of all rows that are there."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.statistics import format_ends, format_number, interval, iqm, markdown, rounded
from lab.plots import COLOURS, FAINT, GRID, INK, Axes, Figure, save_figure

Rows = Sequence[Mapping[str, Any]]
WHEN = ("before", "after")  # the correction by play
LEAST_ARROW = 0.02  # of F1; a shorter one is all head
NOTES = """
F1: of the rules on the test scenes, by visits, ± standard error over the draw of the scenes. \
Right: rules whose own F1 is at most {tolerance} below that of what was right in most visits of a \
scene, of the goals that either ever suggests. After: as play has corrected the rules by the end \
of a run, mean over seeds. Minutes: of asking, with the loading of the model. Achievements: per \
episode, in the last 5% of a run of {steps:,} steps; interquartile mean over seeds and 95% \
bootstrap interval. Evaluation: held-out episodes, mean over seeds.
"""


class Line(NamedTuple):
    """All rows of a teacher; asked: None without a model; grades: none of the oracle.

    scores: float [S], of each seed.
    """

    name: str
    scores: np.ndarray
    evaluation: float | None
    asked: Mapping[str, Any] | None
    grades: list[Mapping[str, Any]]

    def mean(self, when: str, figure: str) -> float:
        """Return a figure of the grades, the mean over seeds."""
        return float(np.mean([grades[when][figure] for grades in self.grades]))


def gather(rows: Rows) -> list[Line]:
    """Return a line for each teacher, the best pupils first."""
    lines = []
    for name in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == name]
        finals = [row["final"][row["score"]] for row in mine]
        held_out = [row["evaluation"][row["score"]] for row in mine]
        scores = np.array([score for score in finals if score is not None])
        grades = [row["grades"] for row in mine if row["grades"]]
        lines.append(Line(name, scores, float(np.mean(held_out)), mine[0]["asked"], grades))
    return sorted(lines, key=lambda line: -_middle(line.scores))


def table(rows: Rows) -> str:
    """Return the comparison as a page has it."""
    heads = ("teacher", "seeds", "questions", "minutes", "F1 before", "F1 after")
    heads += ("right before", "right after", "corrected", "achievements", "95% interval")
    lines = []
    for line in gather(rows):
        cells = [line.name, str(len(line.scores)), "", ""]
        if line.asked:
            minutes = line.asked["minutes"]
            said = "recorded" if minutes is None else format_number(minutes)
            cells[2:] = [f"{line.asked['questions']:,}", said]
        cells += _grade_cells(line) if line.grades else [""] * 5
        ends = format_ends(rounded(interval(line.scores)))
        cells += [format_number(_middle(line.scores)), ends, format_number(line.evaluation)]
        lines.append(cells)
    return markdown((*heads, "evaluation"), lines)


def _grade_cells(line: Line) -> list[str]:
    """Return F1 before and after, rules right before and after, and how many are corrected."""
    cells = [f"{line.mean(when, 'f1'):.3f} ± {line.mean(when, 'f1_error'):.3f}" for when in WHEN]
    cells += [
        f"{line.mean(when, 'right'):.3g} of {line.mean(when, 'gradable'):.3g}" for when in WHEN
    ]
    return [*cells, f"{np.mean([grades['corrected'] for grades in line.grades]):.3g}"]


def _middle(scores: np.ndarray) -> float:
    return float(iqm(scores)) if len(scores) else 0.0


def draw(rows: Rows, path: Path) -> None:
    """Draw F1 before and after correction as an arrow, beside achievements with their interval."""
    lines = gather(rows)
    figure = Figure(figsize=(11.0, 1.7 + 0.5 * len(lines)), layout="constrained")
    rules, pupils = figure.subplots(1, 2, sharey=True)
    for place, line in enumerate(lines):
        colour = COLOURS[0] if line.asked else FAINT if line.grades else INK
        _draw_rules(rules, place, line, colour)
        _draw_pupils(pupils, place, line, colour)
    ceilings = [grades["ceiling"] for line in lines for grades in line.grades]
    if ceilings:
        look = {"color": INK, "linewidth": 0.9, "linestyle": (0, (4, 3)), "zorder": 0}
        rules.axvline(max(ceilings), **look)
    rules.set_yticks(range(len(lines)), [line.name for line in lines])
    rules.set(xlim=(0, 1.06), ylim=(len(lines) - 0.4, -0.6))
    most = max(line.scores.max(initial=0.0) for line in lines)
    pupils.set_xlim(0, 1.08 * most or 1.0)
    steps = max(row["total_timesteps"] for row in rows)
    _tidy(rules, "F1 of the rules: the model's (white), after play (arrow)\ndashed: ceiling")
    _tidy(pupils, f"achievements per episode after {steps:,} steps\nIQM and interval; dots: seeds")
    save_figure(figure, path)


def _draw_rules(axes: Axes, place: int, line: Line, colour: str) -> None:
    """Draw a teacher's arrow from before to after."""
    if not line.grades:
        words = {"color": FAINT, "fontsize": 9, "va": "center"}
        axes.text(0.02, place, "no rules: the true prerequisites", **words)
        return
    before, after = (line.mean(when, "f1") for when in WHEN)
    look = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.8, "shrinkA": 0, "shrinkB": 0}
    if abs(after - before) > LEAST_ARROW:
        axes.annotate("", xy=(after, place), xytext=(before, place), arrowprops=look)
    axes.scatter(before, place, s=46, color="white", edgecolors=colour, linewidths=1.6, zorder=3)
    for value, other in ((before, after), (after, before)):
        side = "left" if value >= other else "right"
        aside = {"xytext": (8 if side == "left" else -8, 0), "textcoords": "offset points"}
        look = {"ha": side, "va": "center", "fontsize": 9, "color": INK, "zorder": 1}
        look["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
        axes.annotate(f"{value:.2f}", (value, place), **aside, **look)


def _draw_pupils(axes: Axes, place: int, line: Line, colour: str) -> None:
    """Draw what was learned from a teacher: each seed, and the interval of their mean."""
    middle, ends = _middle(line.scores), interval(line.scores)
    if ends is not None:
        axes.plot(ends, [place, place], color=colour, linewidth=3.0, solid_capstyle="round")
    axes.scatter(line.scores, [place] * len(line.scores), s=14, color=INK, zorder=3)
    axes.scatter(middle, place, s=70, marker="D", color=colour, zorder=2)
    aside = {"xytext": (0, 10), "textcoords": "offset points", "ha": "center", "fontsize": 9}
    axes.annotate(f"{middle:.1f}", (middle, place), **aside, color=INK)


def _tidy(axes: Axes, title: str) -> None:
    """Give the axes a title and the look of all pictures."""
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9)

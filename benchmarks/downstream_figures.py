"""The tables and the picture of benchmarks.downstream, which benchmarks.figures puts into pages.

A score of a run is the mean of its held-out success rates over all evaluations (the area under its
curve, from 0 to 1). Over the hard tasks: interquartile mean of all tasks and seeds that all tasks
have, 95% bootstrap over seeds, those of each task drawn apart. S seeds, K tasks, P evaluations.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.downstream import HARD, WAYS, method_name
from benchmarks.statistics import (
    format_ends,
    format_number,
    interval,
    iqm,
    markdown,
    rounded,
    stratified_interval,
)
from lab.plots import COLOURS, DASHES, INK, Figure, finish_axes, save_figure
from worlds.crafter.tasks import TASKS

Rows = Sequence[Mapping[str, Any]]
STYLES = {
    **{"scratch": (6, 0), "scratch-1e-4": (6, 2), "bonus-ellm": (5, 0)},
    **{"both-ellm": (0, 0), "tuned-ellm": (0, 2), "guided-ellm": (0, 1)},
    **{"both-oracle": (4, 0), "tuned-oracle": (4, 2), "guided-oracle": (4, 1)},
    **{"both-deep": (1, 0), "guided-deep": (1, 1)},
    **{"both-novelty": (2, 0), "tuned-novelty": (2, 2), "guided-novelty": (2, 1)},
}
COLUMNS = 3  # of the picture, 2 for up to four tasks


def curves(rows: Rows, task: str, way: str) -> tuple[np.ndarray, np.ndarray]:
    """Return env steps [P] and the success rates of each seed there, [S, P]; empty without rows."""
    name = method_name(task, way)
    rows = sorted((row for row in rows if row["method"] == name), key=lambda row: row["seed"])
    found = [row["evaluations"] for row in rows]
    if not found:
        return np.zeros(0), np.zeros((0, 0))
    return (
        np.array(found[0]["env_steps"]),
        np.array([evaluations["success_per_episode"] for evaluations in found]),
    )


def steps_to_half(steps: np.ndarray, rates: np.ndarray) -> list[float]:
    """Return when each seed's success rate was first at least one half, inf where never, [S]."""
    return [float(steps[line >= 0.5][0]) if (line >= 0.5).any() else np.inf for line in rates]


def downstream_table(rows: Rows) -> str:
    """Return the mean success over each task's training, the ways of learning side by side."""
    ways = [way for way in WAYS if any(row["method"].endswith(f": {way}") for row in rows)]
    lines = []
    for task in TASKS:
        cells, numbers = [], set()
        for way in ways:
            rates = curves(rows, task, way)[1]
            means = rates.mean(1) if len(rates) else np.zeros(0)
            numbers |= {len(means)} - {0}
            ends = format_ends(rounded(interval(means))) if len(means) > 1 else ""
            cells.append(f"{iqm(means):.2f} ({ends})" if ends else "".join(map(_two, means)))
        if numbers:
            mark = "**" if task in HARD else ""
            lines.append([f"{mark}{task}{mark}", "/".join(map(str, sorted(numbers))), *cells])
    return markdown(("task", "seeds", *ways), lines) if lines else "Not yet run."


def _two(value: float) -> str:
    return format_number(value, 2)


def downstream_summary(rows: Rows) -> str:
    """Return a line for each way: before training, at its end, over it, and when at one half."""
    lines = []
    for way in WAYS:
        found = {task: curves(rows, task, way) for task in HARD}
        found = {task: (steps, rates) for task, (steps, rates) in found.items() if len(rates)}
        if len(found) < len(HARD):
            continue
        num_seeds = min(len(rates) for _, rates in found.values())
        found = {task: (steps, rates[:num_seeds]) for task, (steps, rates) in found.items()}
        areas = np.stack([rates.mean(1) for _, rates in found.values()], 1)
        first, last = (
            np.mean([rates[:, at].mean() for _, rates in found.values()]) for at in (0, -1)
        )
        when = [x for steps, rates in found.values() for x in steps_to_half(steps, rates)]
        middle = float(np.median(when))
        said = f"{middle:,.0f}" if np.isfinite(middle) else "not half of the runs"
        area = iqm(areas.reshape(-1))
        ends = format_ends(rounded(stratified_interval(areas)))
        cells = [f"`{way}`", str(num_seeds), _two(first), f"{area:.2f}", ends, _two(last), said]
        lines.append((-area, cells))
    heads = ("way", "seeds", "before", "over the training", "95% interval", "at the end")
    heads = (*heads, "env steps to one half (median)")
    lines.sort(key=lambda line: line[0])
    return markdown(heads, [cells for _, cells in lines]) if lines else "Not yet run."


def draw_downstream(rows: Rows, path: Path) -> None:
    """Draw a panel for each task that has rows: held-out success rates, mean and interval."""
    tasks = [task for task in (*HARD, *(task for task in TASKS if task not in HARD))]
    tasks = [t for t in tasks if any(row["method"].startswith(f"{t}: ") for row in rows)]
    if not tasks:
        return
    width = COLUMNS if len(tasks) > 4 else 2
    height = -(-len(tasks) // width)
    figure = Figure(figsize=(4.6 * width, 3.4 * height + 0.5), layout="constrained")
    panels = figure.subplots(height, width, squeeze=False).reshape(-1)
    handles = {}
    for axes, task in zip(panels, tasks, strict=False):
        for way in WAYS:
            steps, rates = curves(rows, task, way)
            if not len(rates):
                continue
            colour, dashes = STYLES[way]
            band = interval(rates)
            if band is not None:
                axes.fill_between(steps, *band, color=COLOURS[colour], alpha=0.12, linewidth=0)
            look = {"color": COLOURS[colour], "linestyle": DASHES[dashes], "linewidth": 1.8}
            (handles[way],) = axes.plot(steps, iqm(rates), **look)
        finish_axes(axes, task)
        axes.set_ylim(-0.02, 1.02)
    for axes in panels[len(tasks) :]:
        axes.set_axis_off()
    panels[0].set_ylabel("success, held-out episodes", color=INK)
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=min(6, len(handles)),
        frameon=False,
        labelcolor=INK,
    )
    save_figure(figure, path)

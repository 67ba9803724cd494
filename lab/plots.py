"""Learning curves from the metrics of one run or several."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from lab.run import read_metrics

POINTS, SMOOTHING = 400, 0.015  # points of a drawn curve; width of the smoothing as a share of the run
INK, FAINT, GRID = "#22262e", "#8a909b", "#e3e6ea"
# Okabe and Ito's colours, told apart by colour-blind readers too; with four dash patterns they make 28 lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))

RunDirs = str | os.PathLike | Sequence[str | os.PathLike]


def learning_curve(run_dirs: RunDirs, path: str | os.PathLike) -> None:
    """Draw achievements per episode, and the success rate of each achievement, over env steps.

    Several runs (seeds) are drawn as their mean, with the range from the lowest to the highest of them.
    """
    runs = [read_metrics(run_dir) for run_dir in _as_list(run_dirs)]
    figure = Figure(figsize=(13.5, 5.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.0, 1.1))
    _draw_mean(left, runs, COLOURS[0])
    finish_axes(left, "achievements per episode")

    names = next((list(line["success_rates"]) for run in runs for line in run if line.get("success_rates")), [])
    curves = [_band([_series(run, name) for run in runs]) for name in names]
    # A style belongs to an achievement, in every picture the same; the legend goes by final value.
    for i in sorted(range(len(names)), key=lambda i: -curves[i][1][-1]):
        steps, mean, _, _ = curves[i]
        right.plot(steps, 100 * mean, **_style(i), linewidth=1.5, label=f"{100 * mean[-1]:5.1f}%  {names[i]}")
    finish_axes(right, "episodes with the achievement, %")
    right.set_ylim(-2, 102)
    if names:
        right.legend(
            loc="center left",
            bbox_to_anchor=(1.0, 0.5),
            fontsize=8.5,
            frameon=False,
            handlelength=3.2,
            labelcolor=INK,
        )
    save_figure(figure, path)


def compare_curves(named: Mapping[str, RunDirs], path: str | os.PathLike) -> None:
    """Draw achievements per episode over env steps, one curve for each name: its runs' mean and range."""
    figure = Figure(figsize=(8.0, 5.0), layout="constrained")
    axes = figure.subplots()
    finals, handles = [], []
    for i, (name, run_dirs) in enumerate(named.items()):
        runs = [read_metrics(run_dir) for run_dir in _as_list(run_dirs)]
        final, handle = _draw_mean(axes, runs, raw=False, **_style(i))
        count = f", {len(runs)} runs" if len(runs) > 1 else ""
        if handle is not None:
            handle.set_label(f"{final:.1f}  {name}{count}")
            finals.append(final)
            handles.append(handle)
    finish_axes(axes, "achievements per episode")
    ordered = [handle for _, handle in sorted(zip(finals, handles, strict=True), key=lambda pair: -pair[0])]
    if ordered:
        axes.legend(handles=ordered, frameon=False, fontsize=9, handlelength=3.2, labelcolor=INK)
    save_figure(figure, path)


def smooth(steps: np.ndarray, values: np.ndarray, weights: np.ndarray, at: np.ndarray, width: float) -> np.ndarray:
    """Return means of `values` [L] around the steps `at` [P]: a Gaussian in env steps times `weights` [L]."""
    distance = ((at[:, None] - steps[None, :]) / width) ** 2
    distance -= distance.min(axis=1, keepdims=True)  # in a long gap the nearest value counts alone
    share = np.exp(-0.5 * distance) * weights[None, :]
    return (share * values[None, :]).sum(axis=1) / share.sum(axis=1)


def _as_list(run_dirs: RunDirs) -> list[str | os.PathLike]:
    """Return one directory or several as a list."""
    return [run_dirs] if isinstance(run_dirs, str | os.PathLike) else list(run_dirs)


def _style(index: int) -> dict[str, Any]:
    """Return the colour and dashes of the line of that number."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index // len(COLOURS) % len(DASHES)]}


def _series(run: list[dict[str, Any]], name: str | None) -> np.ndarray:
    """Return [L, 3] env steps, values and finished episodes of the lines in which some episode ended.

    The values are the success rates of `name`, or with None the achievements per episode.
    """
    rows = []
    for line in run:
        value = line.get("achievements_per_episode") if name is None else (line.get("success_rates") or {}).get(name)
        if value is not None:
            rows.append((line["env_steps"], value, max(line.get("episodes") or 1, 1)))
    return np.array(rows, np.float64).reshape(-1, 3)


def _band(series: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return steps [P] that all series share, and the smoothed series' mean, lowest and highest there."""
    series = [rows for rows in series if len(rows)]
    start, end = max(rows[0, 0] for rows in series), min(rows[-1, 0] for rows in series)
    at = np.linspace(start, max(start, end), POINTS)
    width = max(SMOOTHING * end, 1.0)
    curves = np.stack([smooth(*rows.T, at, width) for rows in series])
    return at, curves.mean(axis=0), curves.min(axis=0), curves.max(axis=0)


def _draw_mean(
    axes: Axes, runs: list[list[dict[str, Any]]], color: str, linestyle: Any = "-", raw: bool = True
) -> tuple[float, Any]:
    """Draw smoothed achievements per episode; return the last value and the line, or None without one."""
    series = [rows for rows in (_series(run, None) for run in runs) if len(rows)]
    if not series:
        return 0.0, None
    if raw:
        for rows in series:
            axes.plot(rows[:, 0], rows[:, 1], color=color, alpha=0.22, linewidth=0.8)
    steps, mean, low, high = _band(series)
    if len(series) > 1:
        axes.fill_between(steps, low, high, color=color, alpha=0.16, linewidth=0)
    (line,) = axes.plot(steps, mean, color=color, linestyle=linestyle, linewidth=2.0)
    if raw:
        axes.annotate(
            f"{mean[-1]:.1f}",
            (steps[-1], mean[-1]),
            (5, 0),
            textcoords="offset points",
            color=color,
            va="center",
        )
    return float(mean[-1]), line


def finish_axes(axes: Axes, title: str) -> None:
    """Label the axes, and say so when there is nothing to draw."""
    if not axes.lines:
        axes.text(0.5, 0.5, "no episode has ended yet", transform=axes.transAxes, ha="center", color=FAINT)
        axes.set_xticks([])
        axes.set_yticks([])
    else:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_xlabel("env steps", color=INK)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9)


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Write a PNG without any display, so that at any instant it is the old or the new one."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    FigureCanvasAgg(figure).print_figure(temporary, format="png", dpi=110, facecolor="white")
    os.replace(temporary, path)

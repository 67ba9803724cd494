"""Learning curves from the metrics of one run or several."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Pictures are drawn into files. A notebook's backend, which its children inherit, may be unknown
# here: an error on import.
os.environ["MPLBACKEND"] = "agg"

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from lab.errors import UserError
from lab.metrics import score_key, score_label
from lab.run import read_config, read_evaluations, read_metrics

POINTS, SMOOTHING = 400, 0.015  # of a drawn curve; width of the smoothing as a share of the run
INK, FAINT, GRID = "#22262e", "#8a909b", "#e3e6ea"
# Okabe and Ito's colours, which colour-blind readers tell apart; with four dashes, 28 lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))

RunDirs = str | os.PathLike | Sequence[str | os.PathLike]


def learning_curve(run_dirs: RunDirs, path: str | os.PathLike) -> None:
    """Draw the score per episode, and the success rate of each achievement, over env steps.

    Several runs (seeds) are drawn as their mean, with the range from the lowest to the highest of
    them. Held-out evaluations made during training stand beside the training episodes.
    """
    run_dirs = _as_list(run_dirs)
    runs = [read_metrics(run_dir) for run_dir in run_dirs]
    score_name = _score_name(run_dirs)
    rates = (line["success_rates"] for run in runs for line in run if line.get("success_rates"))
    names = list(next(rates, {}))
    if names:
        figure = Figure(figsize=(13.5, 5.6), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.0, 1.1))
        _draw_success_rates(right, runs, names)
    else:
        figure = Figure(figsize=(8.0, 5.6), layout="constrained")
        left = figure.subplots()
    _draw_mean(left, runs, score_key(score_name), COLOURS[0])
    _draw_evaluations(left, run_dirs, score_key(score_name))
    configs = (read_config(run_dir).get("arguments", {}) for run_dir in run_dirs)
    tasks = sorted({config["task"] for config in configs if config.get("task")})
    title = f"{score_label(score_name)} per episode"
    finish_axes(left, f"{title}, task {', '.join(tasks)}" if tasks else title)
    save_figure(figure, path)


def _draw_success_rates(
    axes: Axes, runs: Sequence[Sequence[Mapping[str, Any]]], names: Sequence[str]
) -> None:
    """Draw one line for each achievement, with its last value in the legend."""
    curves = [_band([_series(run, "success_rates", name) for run in runs]) for name in names]
    # A style belongs to an achievement, in every picture the same; the legend goes by final value.
    for i in sorted(range(len(names)), key=lambda i: -curves[i][1][-1]):
        steps, mean, _, _ = curves[i]
        label = f"{100 * mean[-1]:5.1f}%  {names[i]}"
        axes.plot(steps, 100 * mean, **_style(i), linewidth=1.5, label=label)
    finish_axes(axes, "episodes with the achievement, %")
    axes.set_ylim(-2, 102)
    axes.legend(
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        fontsize=8.5,
        frameon=False,
        handlelength=3.2,
        labelcolor=INK,
    )


def compare_curves(named: Mapping[str, RunDirs], path: str | os.PathLike) -> None:
    """Draw the score per episode over env steps, a curve for each name: its runs' mean and range.

    Raises UserError for runs of different scores.
    """
    figure = Figure(figsize=(8.0, 5.0), layout="constrained")
    axes = figure.subplots()
    all_dirs = [run_dir for run_dirs in named.values() for run_dir in _as_list(run_dirs)]
    score_name = _score_name(all_dirs)
    finals, handles = [], []
    for i, (name, run_dirs) in enumerate(named.items()):
        runs = [read_metrics(run_dir) for run_dir in _as_list(run_dirs)]
        final, handle = _draw_mean(axes, runs, score_key(score_name), raw=False, **_style(i))
        count = f", {len(runs)} runs" if len(runs) > 1 else ""
        if handle is not None:
            handle.set_label(f"{final:.1f}  {name}{count}")
            finals.append(final)
            handles.append(handle)
    finish_axes(axes, f"{score_label(score_name)} per episode")
    ordered = [handles[i] for i in sorted(range(len(finals)), key=lambda i: -finals[i])]
    if ordered:
        axes.legend(handles=ordered, frameon=False, fontsize=9, handlelength=3.2, labelcolor=INK)
    save_figure(figure, path)


def smooth(
    steps: np.ndarray, values: np.ndarray, weights: np.ndarray, at: np.ndarray, width: float
) -> np.ndarray:
    """Return means of `values` [L] around the steps `at`, [P].

    Values weigh as a Gaussian of `width` in env steps times `weights` [L].
    """
    distance = ((at[:, None] - steps[None, :]) / width) ** 2
    distance -= distance.min(axis=1, keepdims=True)  # in a long gap the nearest value counts alone
    share = np.exp(-0.5 * distance) * weights[None, :]
    return (share * values[None, :]).sum(axis=1) / share.sum(axis=1)


def _as_list(run_dirs: RunDirs) -> list[str | os.PathLike]:
    """Return one directory or several as a list."""
    return [run_dirs] if isinstance(run_dirs, str | os.PathLike) else list(run_dirs)


def _style(index: int) -> dict[str, Any]:
    """Return the colour and dashes of the line of that number."""
    dashes = DASHES[index // len(COLOURS) % len(DASHES)]
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": dashes}


def _score_name(run_dirs: Sequence[str | os.PathLike]) -> str:
    """Return the name of the runs' score; raises UserError if they have several.

    Runs from before there was more than one world count achievements.
    """
    names = {read_config(run_dir).get("score_name", "achievements") for run_dir in run_dirs}
    if len(names) > 1:
        raise UserError(
            f"the runs have different scores ({', '.join(sorted(names))}): "
            "draw those of one world together"
        )
    return names.pop()


def _series(run: Sequence[Mapping[str, Any]], key: str, name: str | None = None) -> np.ndarray:
    """Return [L, 3] env steps, values and finished episodes of the lines that have the value.

    The values stand under `key` and, given a `name`, under this name there.
    """
    rows = []
    for line in run:
        value = line.get(key) if name is None else (line.get(key) or {}).get(name)
        if value is not None:
            rows.append((line["env_steps"], value, max(line.get("episodes") or 1, 1)))
    return np.array(rows, np.float64).reshape(-1, 3)


def _band(series: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return steps [P] that all series share, and the mean, lowest and highest smoothed there."""
    series = [rows for rows in series if len(rows)]
    start, end = max(rows[0, 0] for rows in series), min(rows[-1, 0] for rows in series)
    at = np.linspace(start, max(start, end), POINTS)
    width = max(SMOOTHING * end, 1.0)
    curves = np.stack([smooth(*rows.T, at, width) for rows in series])
    return at, curves.mean(axis=0), curves.min(axis=0), curves.max(axis=0)


def _draw_mean(
    axes: Axes,
    runs: Sequence[Sequence[Mapping[str, Any]]],
    key: str,
    color: str,
    linestyle: Any = "-",
    raw: bool = True,
) -> tuple[float, Line2D | None]:
    """Draw the smoothed values under `key`; return the last one and the line, or None without."""
    series = [rows for rows in (_series(run, key) for run in runs) if len(rows)]
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


def _draw_evaluations(axes: Axes, run_dirs: Sequence[str | os.PathLike], key: str) -> None:
    """Draw the mean of the runs' held-out evaluations, at the steps at which all were evaluated."""
    values: dict[int, list[float]] = {}
    for run_dir in run_dirs:
        for line in read_evaluations(run_dir):
            values.setdefault(line["env_steps"], []).append(line[key])
    steps = sorted(step for step, found in values.items() if len(found) == len(run_dirs))
    if not steps:
        return
    if axes.lines:
        axes.lines[-1].set_label("training episodes")
    means = [np.mean(values[step]) for step in steps]
    axes.plot(
        steps,
        means,
        color=COLOURS[1],
        marker="o",
        markersize=4.5,
        linewidth=1.2,
        label="held-out evaluation",
    )
    axes.legend(loc="lower right", frameon=False, fontsize=9, labelcolor=INK)


def finish_axes(axes: Axes, title: str) -> None:
    """Label the axes, and say so when there is nothing to draw."""
    if not axes.lines:
        text = "no episode has ended yet"
        axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", color=FAINT)
        axes.set_xticks([])
        axes.set_yticks([])
    else:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.set_xlabel("env steps", color=INK)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=min(0.0, axes.dataLim.y0))  # a score may be negative
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

"""Draw and tabulate results/pretraining/runs.jsonl, which benchmarks/pretraining.py writes: python benchmarks/figures.py.

Writes curves.png, dqn.png, long.png, pixels.png (those that have rows), success_rates.png, table.json and table.md beside it.
Statistics as rliable has them (Agarwal et al., 2021), by scipy: the unit is the seed; a point is the interquartile mean over seeds,
an interval the 95% percentile bootstrap of it. `NOTES` says what that means with few seeds.
"""

import dataclasses
import itertools
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.pretraining import BIN, METHODS, ROWS, read_rows  # noqa: E402
from lab.cli import run_cli  # noqa: E402
from lab.errors import UserError  # noqa: E402
from lab.plots import COLOURS, DASHES, FAINT, INK, SMOOTHING, finish_axes, save_figure, smooth  # noqa: E402
from lab.run import write_json, write_text  # noqa: E402

RESAMPLES, POINTS = 5_000, 100  # draws of a bootstrap; points of a drawn curve

# The panels of curves.png. `grounded` is not drawn: in the paper's regime it is novelty, number for number.
SOURCES = (
    *("oracle", "extrinsic", "ellm-rules-1.5b", "ellm-rules-270m", "ellm-open-1.5b", "ellm-open-270m"),
    *("novelty", "uniform", "rnd", "noveld", "apt", "random"),
)
INPUTS = (
    *("oracle", "oracle-goals"),
    *("ellm-rules-1.5b", "ellm-rules-1.5b-goals", "ellm-rules-1.5b-text", "ellm-rules-1.5b-goals-text"),
    *("rnd", "rnd-text", "apt", "apt-text"),
)
# Numbers of colour and dashes: one look for a method in all pictures, one colour for a family.
STYLES = {
    **{"oracle": (6, 0), "oracle-goals": (6, 3), "extrinsic": (6, 1), "extrinsic-lr3e-4": (6, 2), "random": (6, 2)},
    **{"ellm-rules-1.5b": (0, 0), "ellm-rules-270m": (0, 1), "ellm-open-1.5b": (5, 0), "ellm-open-270m": (5, 1)},
    **{"ellm-rules-1.5b-goals": (4, 0), "ellm-rules-1.5b-text": (4, 1), "ellm-rules-1.5b-goals-text": (4, 3)},
    "ellm-rules-1.5b-mended": (0, 2),
    **{"novelty": (2, 0), "uniform": (2, 1), "rnd": (1, 0), "noveld": (1, 1), "rnd-text": (1, 2)},
    **{"apt": (3, 0), "apt-text": (3, 2), "apt-coef0.02": (3, 1)},
}
# What the paper claims: the first is better than the second.
CLAIMS = (
    ("oracle", "ellm-rules-1.5b"),
    ("oracle-goals", "ellm-rules-1.5b-goals"),
    *((f"ellm-rules-1.5b-{read}", "ellm-rules-1.5b") for read in ("goals", "text", "goals-text")),
    *(("ellm-rules-1.5b", other) for other in ("grounded", "novelty", "uniform", "rnd", "apt")),
    ("dqn-oracle", "dqn-ellm-rules-1.5b"),
    *(("dqn-ellm-rules-1.5b", other) for other in ("dqn-novelty", "dqn-rnd")),
)
NOTES = (
    "A score is achievements per episode, of 22, mean over the episodes that ended in the last 5% of a run.",
    "The unit is the seed. IQM: interquartile mean over seeds; of three values it cuts none and is their mean.",
    "Interval: 95% percentile bootstrap over seeds. With three seeds it is exactly the range from the lowest to the highest of "
    "them, and covers the median of all seeds three times in four, not 95%; with one seed there is none.",
    "Evaluation: episodes played after training, mean over seeds; its standard error is that of the episodes, given the trained "
    "policies, and says nothing of other seeds.",
    "P(X > Y): share of the pairs of one seed of each in which X is higher, ties by half. Between two equal methods with three "
    "seeds each it is 1 once in twenty times.",
)


@dataclasses.dataclass(frozen=True)
class Args:
    """Redraw everything from the rows."""

    results: Path = ROOT / "results" / "pretraining"
    """folder of runs.jsonl, and of what is written"""


# ----------------------------------------------------------------------------------------------------------------- statistics


def iqm(scores: np.ndarray, axis: int = 0) -> np.ndarray:
    """Return the interquartile mean, the mean without the lowest and the highest quarter."""
    return stats.trim_mean(scores, 0.25, axis=axis)


def interval(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the 95% percentile bootstrap of the interquartile mean over seeds, or None with one seed; scores: [S, ...]."""
    return _bootstrap((scores,), iqm)


def difference_interval(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the 95% percentile bootstrap of the difference of means, seeds [S] and [S'] drawn apart; None if either is one."""
    return _bootstrap((x, y), lambda x, y, axis: x.mean(axis) - y.mean(axis))


def probability_of_improvement(x: np.ndarray, y: np.ndarray) -> float:
    """Return P(X > Y) over all pairs of seeds, ties counted by half."""
    return float(((x[:, None] > y) + 0.5 * (x[:, None] == y)).mean())


def _bootstrap(samples: tuple[np.ndarray, ...], statistic) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the ends of the interval, with a fixed seed."""
    if min(len(sample) for sample in samples) < 2:
        return None
    found = stats.bootstrap(samples, statistic, n_resamples=RESAMPLES, axis=0, vectorized=True, method="percentile", rng=0)
    return found.confidence_interval.low, found.confidence_interval.high


# ---------------------------------------------------------------------------------------------------------------------- table


def by_method(rows: list[dict]) -> dict[str, list[dict]]:
    """Return each method's rows by seed, methods in the order of `METHODS`."""
    ordered = sorted(rows, key=lambda row: (list(METHODS).index(row["method"]), row["seed"]))
    return {name: list(group) for name, group in itertools.groupby(ordered, key=lambda row: row["method"])}


def scores(rows: list[dict]) -> np.ndarray:
    """Return the final achievements per episode of each seed, [S]."""
    return np.array([row["final"]["achievements_per_episode"] for row in rows])


def summarise(name: str, rows: list[dict]) -> dict[str, Any]:
    """Return a method's line of the table; what its runs do not have is None."""
    final, played = scores(rows), [row["evaluation"] for row in rows if "evaluation" in row]
    evaluation = error = None
    if played:
        evaluation = np.mean([episodes["achievements_per_episode"] for episodes in played])
        error = np.sqrt(np.sum([episodes["achievements_standard_error"] ** 2 for episodes in played])) / len(played)
    return {
        "method": name,
        "group": rows[0]["group"],
        "total_timesteps": rows[0]["total_timesteps"],
        "seeds": [row["seed"] for row in rows],
        "number_of_seeds": len(rows),
        "iqm": _round(iqm(final)),
        "interval": _round(interval(final)),
        "mean": _round(final.mean()),
        "evaluation_mean": _round(evaluation),
        "evaluation_standard_error": _round(error),
        "sps": _round(np.mean([row["sps"] for row in rows])),
    }


def compare(methods: dict[str, list[dict]]) -> list[dict[str, Any]]:
    """Return what the rows say of each claim of which both methods have been run."""
    comparisons = []
    for better, worse in CLAIMS:
        if better in methods and worse in methods:
            x, y = scores(methods[better]), scores(methods[worse])
            comparisons.append(
                {
                    "claim": f"{better} > {worse}",
                    "probability_of_improvement": _round(probability_of_improvement(x, y)),
                    "difference_of_means": _round(x.mean() - y.mean()),
                    "interval": _round(difference_interval(x, y)),
                }
            )
    return comparisons


def markdown(table: dict[str, Any]) -> str:
    """Return the table as it is read on a page: a section for each group, the best method first."""
    parts = ["# Final results\n"]
    for group, rows in itertools.groupby(table["methods"], key=lambda row: row["group"]):
        rows = sorted(rows, key=lambda row: -row["iqm"])
        parts.append(f"## {group}: {max(row['total_timesteps'] for row in rows):,} env steps\n")
        parts.append("| method | seeds | IQM | 95% interval | mean | evaluation ± standard error | steps/s |")
        parts.append("| --- | --- | --- | --- | --- | --- | --- |")
        for row in rows:
            evaluation = ""
            if row["evaluation_mean"] is not None:
                evaluation = f"{row['evaluation_mean']:.2f} ± {row['evaluation_standard_error']:.2f}"
            cells = [row["method"], str(row["number_of_seeds"]), f"{row['iqm']:.2f}", _ends(row["interval"]), f"{row['mean']:.2f}"]
            parts.append("| " + " | ".join([*cells, evaluation, f"{row['sps']:,.0f}"]) + " |")
        parts.append("")
    if table["comparisons"]:
        parts.append("## Claims\n")
        parts.append("| claim | P(X > Y) | difference of means | 95% interval |")
        parts.append("| --- | --- | --- | --- |")
        for row in table["comparisons"]:
            cells = [f"{row['probability_of_improvement']:.2f}", f"{row['difference_of_means']:+.2f}", _ends(row["interval"])]
            parts.append("| " + " | ".join([row["claim"], *cells]) + " |")
        parts.append("")
    return "\n".join([*parts, *(f"- {note}" for note in table["notes"])]) + "\n"


def _round(value: Any) -> Any:
    """Return plain floats of four digits; None stays."""
    if value is None:
        return None
    return [_round(item) for item in value] if isinstance(value, tuple) else round(float(value), 4)


def _ends(interval: list[float] | None) -> str:
    """Return an interval as it is read."""
    return "" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"


# ------------------------------------------------------------------------------------------------------------------- pictures


def style(name: str) -> dict[str, Any]:
    """Return a method's colour and dashes; a DQN twin is dashed, a run of other length or observation looks like the usual one."""
    base = name.removeprefix("pixels-").removesuffix("-5m")
    colour, dashes = STYLES[base.removeprefix("dqn-")]
    return {"color": COLOURS[colour], "linestyle": DASHES[1 if base.startswith("dqn-") else dashes]}


def smoothed_curves(rows: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Return env steps [P] that all seeds share, and each seed's smoothed curve there, [S, P]."""
    series = []
    for row in rows:
        points = zip(row["curve"]["env_steps"], row["curve"]["achievements_per_episode"], strict=True)
        series.append(np.array([(step, value) for step, value in points if value is not None]))
    start, end = max(line[0, 0] for line in series), min(line[-1, 0] for line in series)
    at = np.linspace(start, end, POINTS)
    width = max(SMOOTHING * end, BIN)  # a narrower one would draw stairs
    return at, np.stack([smooth(*line.T, np.ones(len(line)), at, width) for line in series])


def draw_curves(axes: Axes, methods: dict[str, list[dict]], names: Iterable[str], title: str) -> None:
    """Draw a line and the band of its interval for each method that has rows; the legend goes by the final score."""
    handles = []
    for name in (name for name in names if name in methods):
        steps, curves = smoothed_curves(methods[name])
        band = interval(curves)
        if band is not None:
            axes.fill_between(steps, *band, color=style(name)["color"], alpha=0.13, linewidth=0)
        (line,) = axes.plot(steps, iqm(curves), **style(name), linewidth=1.8)
        handles.append((float(iqm(scores(methods[name]))), name, line))
    numbers = sorted({len(methods[name]) for _, name, _ in handles})
    seeds = f"IQM and 95% interval over {' or '.join(map(str, numbers))} seeds" if numbers != [1] else "one seed"
    finish_axes(axes, f"{title} ({seeds})")
    axes.set_ylabel("achievements per episode", color=INK)
    handles.sort(key=lambda handle: -handle[0])
    axes.legend(
        [line for _, _, line in handles],
        [f"{value:.1f}  {name}" for value, name, _ in handles],
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        frameon=False,
        fontsize=9.5,
        handlelength=3.2,
        labelcolor=INK,
        labelspacing=0.7,
    )


def picture(methods: dict[str, list[dict]], panels: dict[str, Iterable[str]], path: Path) -> None:
    """Draw panels, title -> names, one below the other; nothing where no name has rows."""
    panels = {title: names for title, names in panels.items() if any(name in methods for name in names)}
    if panels:
        figure = Figure(figsize=(9.5, 4.6 * len(panels)), layout="constrained")
        for axes, (title, names) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels.items(), strict=True):
            draw_curves(axes, methods, names, title)
        save_figure(figure, path)


def success_rates(methods: dict[str, list[dict]], path: Path) -> None:
    """Draw the share of episodes with each achievement, mean over seeds: best methods on top, most frequent achievements left."""
    names = sorted(methods, key=lambda name: -iqm(scores(methods[name])))
    achievements = list(methods[names[0]][0]["final"]["success_rates"])
    rates = [[list(row["final"]["success_rates"].values()) for row in methods[name]] for name in names]
    percents = 100 * np.array([np.mean(seeds, axis=0) for seeds in rates])
    order = np.argsort(-percents.mean(axis=0), kind="stable")
    percents = percents[:, order]
    figure = Figure(figsize=(12.5, 1.9 + 0.34 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(percents, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for (row, column), percent in np.ndenumerate(percents):
        colour = "white" if percent > 60 else INK if percent else FAINT
        text = "<1" if 0 < percent < 0.5 else f"{percent:.0f}"
        axes.text(column, row, text, ha="center", va="center", fontsize=9, color=colour)
    axes.set_xticks(range(len(order)), [achievements[i] for i in order], rotation=40, ha="left", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), [f"{name}  {iqm(scores(methods[name])):.1f}" for name in names])
    axes.tick_params(top=True, bottom=False, labeltop=True, labelbottom=False, length=0, colors=INK, labelsize=9.5)
    axes.spines[:].set_visible(False)
    title = "episodes with the achievement in the last 5% of the training, %; beside the methods: achievements per episode"
    axes.set_xlabel(title, color=INK)
    save_figure(figure, path)


def main(args: Args) -> None:
    """Write the table and the pictures; raises UserError where there are no rows."""
    methods = by_method(read_rows(args.results))
    if not methods:
        raise UserError(f"no rows in {args.results / ROWS}: run benchmarks/pretraining.py first")
    table = {
        "notes": list(NOTES),
        "methods": [summarise(name, rows) for name, rows in methods.items()],
        "comparisons": compare(methods),
    }
    write_json(args.results / "table.json", table)
    write_text(args.results / "table.md", markdown(table))

    groups = {group: [name for name in methods if METHODS[name].group == group] for group in ("ppo", "dqn", "long", "pixels")}
    curves = {"Where the reward comes from": SOURCES, "What the policy reads": INPUTS}
    picture(methods, curves, args.results / "curves.png")
    twins = [name for dqn in groups["dqn"] for name in (dqn, dqn.removeprefix("dqn-"))]
    picture(methods, {"DQN beside PPO": twins}, args.results / "dqn.png")
    picture(methods, {"Five times the steps": groups["long"]}, args.results / "long.png")
    picture(methods, {"From pixels": groups["pixels"]}, args.results / "pixels.png")
    shown = {name: methods[name] for name in (*groups["ppo"], *groups["dqn"], *groups["long"])}
    if shown:
        success_rates(shown, args.results / "success_rates.png")


if __name__ == "__main__":
    run_cli(main, Args)

"""Statistics and numbers of the tables, as rliable has them (Agarwal et al., 2021), by scipy.

S seeds, P points.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from scipy import stats

RESAMPLES = 5_000  # draws of a bootstrap


def iqm(scores: np.ndarray, axis: int = 0) -> np.ndarray:
    """Return the interquartile mean, the mean without the lowest and the highest quarter."""
    return stats.trim_mean(scores, 0.25, axis=axis)


def interval(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the 95% percentile bootstrap of the interquartile mean over seeds, [S, ...].

    None with one seed.
    """
    return _bootstrap((scores,), iqm)


def difference_interval(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the 95% percentile bootstrap of the difference of means, None if either has one seed.

    The seeds, [S] and [S'], are drawn apart.
    """
    return _bootstrap((x, y), lambda x, y, axis: x.mean(axis) - y.mean(axis))


def probability_of_improvement(x: np.ndarray, y: np.ndarray) -> float:
    """Return P(X > Y) over all pairs of seeds, ties counted by half."""
    return float(((x[:, None] > y) + 0.5 * (x[:, None] == y)).mean())


def _bootstrap(
    samples: tuple[np.ndarray, ...], statistic: Callable[..., np.ndarray]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the ends of the interval, with a fixed seed."""
    if min(len(sample) for sample in samples) < 2:
        return None
    options = {"n_resamples": RESAMPLES, "axis": 0, "vectorized": True, "method": "percentile"}
    found = stats.bootstrap(samples, statistic, **options, rng=0).confidence_interval
    return found.low, found.high


def stratified_interval(scores: np.ndarray) -> tuple[float, float] | None:
    """Return the 95% percentile bootstrap of the interquartile mean over tasks and seeds, [S, K].

    The seeds of each of the K tasks are drawn apart. None with one seed.
    """
    num_seeds, num_tasks = scores.shape
    if num_seeds < 2:
        return None
    drawn = np.random.default_rng(0).integers(num_seeds, size=(RESAMPLES, num_seeds, num_tasks))
    means = iqm(scores[drawn, np.arange(num_tasks)].reshape(RESAMPLES, -1), axis=1)
    return tuple(np.percentile(means, [2.5, 97.5]))


# TEXT
def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a table as a page has it."""
    rules = ["---"] * len(heads)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, rules, *lines))


def rounded(value: Any) -> Any:
    """Return plain floats of four digits; None stays."""
    if value is None:
        return None
    if isinstance(value, tuple):
        return [rounded(item) for item in value]
    return round(float(value), 4)


def format_number(value: float | None, digits: int = 1) -> str:
    """Return a number as it is read, "" for None."""
    return "" if value is None else f"{value:.{digits}f}"


def format_ends(interval: list[float] | None) -> str:
    """Return an interval as it is read."""
    return "" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"

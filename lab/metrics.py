"""From an update's numbers to a line of metrics.jsonl, and from the lines to a summary."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from worlds.world import World

FIRST_STEPS = 1_000_000  # env steps over which "first_million" averages


def score_key(score_name: str) -> str:
    """Return the name under which metrics keep the mean score of an episode."""
    return f"{score_name}_per_episode"


def score_label(score_name: str) -> str:
    """Return the score's name as pictures and the progress bar write it."""
    return score_name.replace("_", " ")


def metrics_line(world: World, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Turn "episodes" (`worlds.vector.EpisodeStats`) among the metrics into means; keep the rest.

    Means are None where no episode has ended.
    """
    finished = metrics["episodes"]
    number = int(finished.episodes)
    rates = finished.achievements / number if number else None
    return {
        "episodes": number,
        score_key(world.score_name): float(finished.score) / number if number else None,
        "success_rates": _by_name(world, rates) if number else None,
        "episode_return": finished.episode_return / number if number else None,
        "episode_length": finished.episode_length / number if number else None,
        **{name: value for name, value in metrics.items() if name != "episodes"},
    }


def summarise(lines: Sequence[Mapping[str, Any]], world: World) -> dict[str, Any]:
    """Average the lines of a run, of which there is at least one.

    Means are over the episodes that ended in the last tenth of the training, or in all of it if
    none did; None without any. Those under "first_million" are over all episodes that ended within
    the first 1,000,000 env steps; "env_steps" there says how many of them the run has covered.
    """
    recent = [line for line in lines[-max(1, len(lines) // 10) :] if line["episodes"]]
    first = [line for line in lines if line["env_steps"] <= FIRST_STEPS]
    seconds = sum(line["time"]["seconds"] for line in lines)
    means = _means(recent or lines, world)
    covered = first[-1]["env_steps"] if first else 0
    return {
        **means,
        "percent_of_max": _percent_of_max(world, means["episode_return"]),
        "first_million": {"env_steps": covered, **_means(first, world)},
        "steps_without_answer": sum(line["steps_without_answer"] for line in lines) / len(lines),
        "pool_exhausted": lines[-1]["pool_exhausted"],
        "sps": lines[-1]["env_steps"] / seconds,
        "host_share": sum(line["time"]["host_seconds"] for line in lines) / seconds,
    }


def evaluation_statistics(
    world: World,
    scores: np.ndarray,
    achievements: np.ndarray,
    returns: np.ndarray,
    lengths: np.ndarray,
) -> dict[str, Any]:
    """Return the means over M episodes played, and the standard error of the mean score.

    scores, returns: [M] float32; achievements: [M, K] bool; lengths: [M] int32.
    """
    scores = np.asarray(scores, np.float64)
    success_rates = _by_name(world, np.asarray(achievements).mean(0))
    episode_return = float(jnp.mean(returns))  # summed in float32, as the device does
    return {
        "episodes": len(scores),
        score_key(world.score_name): float(scores.mean()),
        f"{world.score_name}_standard_error": float(scores.std() / np.sqrt(len(scores))),
        "episode_return": episode_return,
        "episode_length": float(jnp.mean(lengths)),
        "success_rates": success_rates,
        f"{world.name}_score": geometric_score(success_rates),
        "percent_of_max": _percent_of_max(world, episode_return),
    }


def geometric_score(success_rates: Mapping[str, float] | None) -> float | None:
    """Return exp(mean over K of ln(1 + rate in %)) - 1, in percent; None without rates.

    The score of Hafner (2022), "Benchmarking the Spectrum of Agent Capabilities", section 3.3. More
    than in the mean of the rates it counts that something rare is reached at all.
    """
    if not success_rates:
        return None
    percent = 100.0 * np.asarray(list(success_rates.values()), np.float64)
    return float(np.expm1(np.log1p(percent).mean()))


def costs(usage: Mapping[str, float], env_steps: int) -> dict[str, Any]:
    """Return what goals have cost, and what the model cost in a million env steps."""
    names = ("queries", "prompt_tokens", "generated_tokens", "language_model_seconds")
    return {**usage, "per_million_steps": {name: usage[name] * 1e6 / env_steps for name in names}}


def _means(lines: Sequence[Mapping[str, Any]], world: World) -> dict[str, Any]:
    """Average over all episodes that ended in these lines; None where there are none."""
    counted = [line for line in lines if line["episodes"]]
    episodes = sum(line["episodes"] for line in counted)

    def mean(get: Callable[[Mapping[str, Any]], float]) -> float | None:
        total = sum(get(line) * line["episodes"] for line in counted)
        return total / episodes if episodes else None

    key = score_key(world.score_name)
    success_rates = {
        name: mean(lambda line, name=name: line["success_rates"][name])
        for name in world.achievements
    }
    return {
        key: mean(lambda line: line[key]),
        "success_rates": success_rates,
        "episodes": episodes,
        "episode_return": mean(lambda line: line["episode_return"]),
        f"{world.name}_score": geometric_score(success_rates if episodes else None),
    }


def _by_name(world: World, rates: np.ndarray) -> dict[str, float]:
    """Name the rates [K] of the world's achievements."""
    return dict(zip(world.achievements, rates.tolist(), strict=True))


def _percent_of_max(world: World, episode_return: float | None) -> float | None:
    """Return a mean return in percent of the largest."""
    return None if episode_return is None else 100.0 * episode_return / world.max_return

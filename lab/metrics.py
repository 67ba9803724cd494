"""From an update's numbers to a line of metrics.jsonl, and from the lines to a summary."""

from collections.abc import Mapping, Sequence
from typing import Any


def metrics_line(achievements: Sequence[str], metrics: dict[str, Any]) -> dict[str, Any]:
    """Turn "episodes" (`worlds.vector.EpisodeStats`) among the metrics into means and success rates; keep the rest.

    achievements: the names, [K]. Means are None where no episode has ended.
    """
    finished = metrics["episodes"]
    number = int(finished.episodes)
    rates = finished.achievements / number if number else None
    return {
        "episodes": number,
        "achievements_per_episode": rates.sum() if number else None,
        "success_rates": dict(zip(achievements, rates.tolist(), strict=True)) if number else None,
        "episode_return": finished.episode_return / number if number else None,
        "episode_length": finished.episode_length / number if number else None,
        **{name: value for name, value in metrics.items() if name != "episodes"},
    }


def summarise(lines: list[dict[str, Any]], achievements: Sequence[str]) -> dict[str, Any]:
    """Average over the episodes that ended in the last tenth of the training, or in all of it if none did."""
    recent = [line for line in lines[-max(1, len(lines) // 10) :] if line["episodes"]]
    counted = recent or [line for line in lines if line["episodes"]]
    episodes = sum(line["episodes"] for line in counted)
    seconds = sum(line["time"]["seconds"] for line in lines)

    def mean(get):
        return sum(get(line) * line["episodes"] for line in counted) / episodes if episodes else None

    return {
        "achievements_per_episode": mean(lambda line: line["achievements_per_episode"]),
        "success_rates": {name: mean(lambda line, name=name: line["success_rates"][name]) for name in achievements},
        "episodes": episodes,
        "episode_return": mean(lambda line: line["episode_return"]),
        "steps_without_answer": sum(line["steps_without_answer"] for line in lines) / len(lines),
        "pool_exhausted": lines[-1]["pool_exhausted"],
        "sps": lines[-1]["env_steps"] / seconds,
        "host_share": sum(line["time"]["host_seconds"] for line in lines) / seconds,
    }


def costs(usage: Mapping[str, float], env_steps: int) -> dict[str, Any]:
    """Return what goals have cost, and under "per_million_steps" what the language model cost in a million env steps."""
    names = ("queries", "prompt_tokens", "generated_tokens", "language_model_seconds")
    return {**usage, "per_million_steps": {name: usage[name] * 1e6 / env_steps for name in names}}

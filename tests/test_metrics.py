"""Lines of metrics, summaries and evaluation statistics, by hand."""

import math
from dataclasses import dataclass
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from lab import metrics


@dataclass(frozen=True)
class SomeWorld:
    """The part of a world that metrics read."""

    achievements: tuple[str, ...] = ("take key", "open door")
    name: str = "toy"
    score_name: str = "doors_opened"
    max_return: float = 4.0


def finished(episodes: int, score: float, unlocked: list[int]) -> SimpleNamespace:
    """Make the sums of finished episodes as they come from the device."""
    return SimpleNamespace(
        episodes=np.int32(episodes),
        score=np.float32(score),
        achievements=np.asarray(unlocked, np.int32),
        episode_return=np.float32(1.5 * episodes),
        episode_length=np.int32(10 * episodes),
    )


def logged(env_steps: int, episodes: int, score: float = 0.0, unlocked=(0, 0), **changes) -> dict:
    """Make a line as a script logs it."""
    numbers = {
        "episodes": finished(episodes, score, list(unlocked)),
        "steps_without_answer": 0.25,
        "pool_exhausted": 3,
    }
    line = metrics.metrics_line(changes.pop("world", SomeWorld()), numbers)
    time = {"seconds": 2.0, "sps": 1.0, "host_seconds": 0.5}
    return {"env_steps": env_steps, "time": time, **line, **changes}


def test_line_has_means_of_the_finished_episodes():
    numbers = {"episodes": finished(4, 2.0, [3, 1]), "loss": 0.5}
    line = metrics.metrics_line(SomeWorld(), numbers)
    assert line == {
        "episodes": 4,
        "doors_opened_per_episode": 0.5,
        "success_rates": {"take key": 0.75, "open door": 0.25},
        "episode_return": 1.5,
        "episode_length": 10.0,
        "loss": 0.5,
    }
    third = metrics.metrics_line(SomeWorld(), {"episodes": finished(3, 1.0, [1, 0])})
    assert third["doors_opened_per_episode"] == 1 / 3 and type(third["episodes"]) is int
    none = metrics.metrics_line(SomeWorld(), {"episodes": finished(0, 0.0, [0, 0])})
    assert none["doors_opened_per_episode"] is None is none["success_rates"]


def test_geometric_score_by_hand():
    assert metrics.geometric_score({"a": 0.0, "b": 0.0}) == 0.0
    assert metrics.geometric_score({"a": 1.0}) == pytest.approx(100.0)
    expected = math.sqrt((1 + 50) * (1 + 2)) - 1
    assert metrics.geometric_score({"a": 0.5, "b": 0.02}) == pytest.approx(expected)
    assert metrics.geometric_score({}) is None is metrics.geometric_score(None)


def test_summary_averages_the_last_tenth_weighed_by_episodes():
    lines = [logged(100 * i, 1, 9.0, (1, 1)) for i in range(1, 19)]
    lines += [logged(1900, 1, 1.0, (1, 0)), logged(2000, 3, 1.0, (0, 1))]
    summary = metrics.summarise(lines, SomeWorld())
    assert summary["doors_opened_per_episode"] == 0.5 and summary["episodes"] == 4
    assert summary["success_rates"] == {"take key": 0.25, "open door": pytest.approx(0.25)}
    assert summary["toy_score"] == pytest.approx(25.0)
    assert summary["episode_return"] == 1.5 and summary["percent_of_max"] == 100 * 1.5 / 4
    assert summary["steps_without_answer"] == 0.25 and summary["pool_exhausted"] == 3
    assert summary["sps"] == 2000 / 40 and summary["host_share"] == 0.25
    first = summary["first_million"]  # a shorter run: all of it
    assert first["env_steps"] == 2000 and first["episodes"] == 22
    assert first["doors_opened_per_episode"] == (18 * 9 + 1 + 1) / 22
    assert first["success_rates"] == {"take key": 19 / 22, "open door": pytest.approx(19 / 22)}
    assert first["toy_score"] == pytest.approx(100 * 19 / 22)


def test_first_million_ends_at_a_million_env_steps():
    lines = [logged(400_000, 1, 1.0, (1, 0)), logged(1_000_000, 3, 0.0, (0, 0))]
    lines += [logged(1_000_001, 5, 50.0, (5, 5)), logged(1_400_000, 5, 50.0, (5, 5))]
    first = metrics.summarise(lines, SomeWorld())["first_million"]
    assert first["env_steps"] == 1_000_000 and first["episodes"] == 4
    assert first["success_rates"] == {"take key": 0.25, "open door": 0.0}
    assert first["toy_score"] == pytest.approx(math.sqrt(26) - 1)
    late = metrics.summarise(lines[2:], SomeWorld())["first_million"]
    assert late["env_steps"] == 0 == late["episodes"] and late["toy_score"] is None


def test_summary_without_episodes_and_without_achievements():
    none = metrics.summarise([logged(100, 0), logged(200, 0)], SomeWorld())
    for key in ("doors_opened_per_episode", "toy_score", "episode_return", "percent_of_max"):
        assert none[key] is None
    assert none["episodes"] == 0 == none["first_million"]["episodes"]
    assert none["first_million"]["env_steps"] == 200

    world = SomeWorld(achievements=(), name="wide")
    only = [logged(100 * i, 2 * (i < 5), 3.0, (), world=world) for i in range(1, 30)]
    summary = metrics.summarise(only, world)
    assert only[0]["success_rates"] == {} == summary["success_rates"]
    assert summary["doors_opened_per_episode"] == 1.5  # none ended in the last tenth: of all
    assert summary["wide_score"] is None is summary["first_million"]["wide_score"]


def test_evaluation_statistics_by_hand():
    statistics = metrics.evaluation_statistics(
        SomeWorld(),
        scores=np.array([0.0, 1.0, 1.0, 2.0], np.float32),
        achievements=np.array([[0, 0], [1, 0], [1, 0], [1, 1]], bool),
        returns=np.array([0.0, 1.0, 1.0, 4.0], np.float32),
        lengths=np.array([10, 20, 30, 41], np.int32),
    )
    assert statistics == {
        "episodes": 4,
        "doors_opened_per_episode": 1.0,
        "doors_opened_standard_error": math.sqrt(0.5) / 2,
        "episode_return": 1.5,
        "episode_length": 25.25,
        "success_rates": {"take key": 0.75, "open door": 0.25},
        "toy_score": pytest.approx(math.sqrt(76 * 26) - 1),
        "percent_of_max": 37.5,
    }
    nothing = np.zeros((4, 0), bool)
    zeros = np.zeros(4, np.float32)
    world = SomeWorld(achievements=())
    statistics = metrics.evaluation_statistics(world, zeros, nothing, zeros, zeros.astype(np.int32))
    assert statistics["success_rates"] == {} and statistics["toy_score"] is None


@pytest.mark.parametrize("episodes", [4, 64])
def test_evaluation_statistics_are_bit_equal_to_those_of_older_versions(episodes):
    names = tuple(f"achievement {i}" for i in range(22))
    rng = np.random.default_rng(episodes)
    achievements = rng.random((episodes, 22)) < rng.random(22)
    returns = jnp.asarray(rng.normal(size=episodes), jnp.float32)
    lengths = jnp.asarray(rng.integers(1, 10_000, episodes), jnp.int32)
    statistics = metrics.evaluation_statistics(
        SomeWorld(names, "old", "achievements"),
        achievements.sum(1).astype(np.float32),
        achievements,
        np.asarray(returns),
        np.asarray(lengths),
    )
    rates = achievements.mean(0)
    error = float(achievements.sum(1).std() / np.sqrt(episodes))
    assert statistics["achievements_per_episode"] == float(rates.sum())
    assert statistics["achievements_standard_error"] == error
    assert statistics["episode_return"] == float(returns.mean())
    assert statistics["episode_length"] == float(lengths.mean())
    assert statistics["success_rates"] == dict(zip(names, rates.tolist(), strict=True))


def test_costs_are_counted_for_a_million_env_steps():
    usage = {
        "queries": 10,
        "prompt_tokens": 100,
        "generated_tokens": 20,
        "language_model_seconds": 2.5,
        "answered": 9,
    }
    found = metrics.costs(usage, 500_000)
    assert found["answered"] == 9 and found["per_million_steps"]["queries"] == 20
    assert found["per_million_steps"]["language_model_seconds"] == 5.0

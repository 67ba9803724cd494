"""What all baselines have in common with the ELLM scripts: the files, the names of the metrics, and that a run is resumed."""

import importlib

import pytest

from tests.test_apt import APT_METRICS
from tests.test_ellm_ppo import assert_equal_trees
from tests.test_rnd import RND_METRICS
from tests.toy_world import ToyWorld
from tests.training import train, train_with_a_break

FIELDS = {"total_timesteps": 4 * 8 * 6, "checkpoint_every": 3}


def files(folder):
    """Return the names in a run's directory and among its checkpoints."""
    return {str(path.relative_to(folder)) for pattern in ("*", "checkpoints/*") for path in folder.glob(pattern)}


@pytest.mark.parametrize("learner", ["ppo", "dqn"])
def test_plain_baseline_is_resumed_and_all_write_the_same_files_and_metrics(monkeypatch, tmp_path, learner):
    ellm, plain = (importlib.import_module(name) for name in (f"ellm_{learner}", f"baselines.{learner}"))
    summary, whole, lines = train(monkeypatch, ToyWorld(), tmp_path, "ellm", None, ellm, goal_source="none", **FIELDS)
    their_summary, resumed, resumed_lines = train_with_a_break(monkeypatch, ToyWorld(), tmp_path, "plain", None, plain, **FIELDS)
    assert_equal_trees(whole.params, resumed.params)
    assert lines == resumed_lines and len(lines) == 6

    for name, own in (("plain", set()), ("rnd", set(RND_METRICS)), ("apt", set(APT_METRICS))):
        if own:
            script = importlib.import_module(f"baselines.{learner}_{name}")
            their_summary, _, their_lines = train(monkeypatch, ToyWorld(), tmp_path, name, None, script, **FIELDS)
            assert set(their_lines[-1]) == set(lines[-1]) | own
        assert set(their_summary) == set(summary) - {"goals", "language_model"}
        assert files(tmp_path / name) == files(tmp_path / "ellm")

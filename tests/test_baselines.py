"""What all baselines have in common with the ELLM scripts: files, names of metrics, resumption."""

import importlib

import pytest

from tests.toy.world import ToyWorld
from tests.training import assert_equal_trees, train, train_with_a_break

FIELDS = {"total_timesteps": 4 * 8 * 6, "checkpoint_every": 3}
OWN_METRICS = {
    "rnd": {"rnd_loss", "bonus_mean", "bonus_std", "bonus_scale"},
    "apt": {"inverse_loss", "inverse_accuracy", "bonus_mean", "bonus_std", "knn_distance"},
}


def files(folder):
    """Return the names in a run's directory and among its checkpoints."""
    paths = [*folder.glob("*"), *folder.glob("checkpoints/*")]
    return {str(path.relative_to(folder)) for path in paths}


@pytest.mark.parametrize("learner", ["ppo", "dqn"])
def test_plain_baseline_is_resumed_and_all_write_the_same_files_and_metrics(
    monkeypatch, tmp_path, learner
):
    def run(train, name, script, **fields):
        script = importlib.import_module(script)
        return train(monkeypatch, ToyWorld(), tmp_path, name, None, script, **FIELDS, **fields)

    summary, whole, lines = run(train, "ellm", f"ellm_{learner}", goal_source="none")
    theirs, resumed, resumed_lines = run(train_with_a_break, "plain", f"baselines.{learner}")
    assert_equal_trees(whole.params, resumed.params)
    assert lines == resumed_lines and len(lines) == 6
    assert set(theirs) == set(summary) and files(tmp_path / "plain") == files(tmp_path / "ellm")

    for name, own in OWN_METRICS.items():
        theirs, _, their_lines = run(train, name, f"baselines.{learner}_{name}")
        assert set(their_lines[-1]) == set(lines[-1]) | own
        assert set(theirs) == set(summary) and files(tmp_path / name) == files(tmp_path / "ellm")

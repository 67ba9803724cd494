"""Pictures of runs: drawn from what the runs logged, titled by their score."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lab import plots
from lab.errors import UserError
from lab.run import Run


def log_runs(
    path: Path,
    names: tuple[str, ...] = ("collect wood", "place table"),
    score_name: str | None = None,
    evaluate_every: int | None = None,
) -> list[Path]:
    """Log two little runs; without a name of the score they look like those of older versions."""
    extra = {} if score_name is None else {"score_name": score_name}
    key = f"{score_name or 'achievements'}_per_episode"
    for seed in (0, 1):
        with Run(path / str(seed), {"seed": seed}, extra) as run:
            for i in range(1, 30):
                rates = dict.fromkeys(names, i / 30) if i > 3 else None
                mean = i / 15 if i > 3 else None
                line = {"env_steps": 100 * i, "episodes": 2, key: mean, "success_rates": rates}
                run.log(line)
                if evaluate_every and i % evaluate_every == 0:
                    run.log_evaluation({"env_steps": 100 * i, key: i / 20 + seed / 10})
    return [path / "0", path / "1"]


def ink(path: Path) -> float:
    """Return the share of pixels that are not white."""
    with Image.open(path) as image:
        return float((np.asarray(image.convert("L")) < 250).mean())


def test_plots_draw_the_runs(tmp_path):
    runs = log_runs(tmp_path)
    with Run(tmp_path / "empty", {}) as run:
        line = {"env_steps": 1, "achievements_per_episode": None, "success_rates": None}
        run.log({"episodes": 0, **line})
    plots.learning_curve(runs[0], tmp_path / "one.png")
    plots.learning_curve(runs, tmp_path / "two.png")
    plots.learning_curve(tmp_path / "empty", tmp_path / "none.png")
    named = {"llm": runs, "oracle": runs[0], "empty": tmp_path / "empty"}
    plots.compare_curves(named, tmp_path / "compare.png")
    assert ink(tmp_path / "one.png") > 1.2 * ink(tmp_path / "none.png") > 0
    assert ink(tmp_path / "two.png") > 0.01 and ink(tmp_path / "compare.png") > 0.01
    assert not list(tmp_path.glob("*.tmp"))


def coloured(path: Path, colour: str) -> np.ndarray:
    """Return the columns in which pixels of just that colour stand."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    with Image.open(path) as image:
        return np.flatnonzero((np.asarray(image.convert("RGB")) == wanted).all(-1).any(0))


def test_world_without_achievements_has_one_panel_with_its_score(tmp_path):
    with_names = log_runs(tmp_path / "a", score_name="doors_opened")
    without = log_runs(tmp_path / "b", names=(), score_name="doors_opened")
    plots.learning_curve(with_names[0], tmp_path / "two_panels.png")
    plots.learning_curve(without[0], tmp_path / "one_panel.png")
    widths = [Image.open(tmp_path / f"{name}.png").width for name in ("one_panel", "two_panels")]
    assert widths[0] < 0.7 * widths[1] and len(coloured(tmp_path / "one_panel.png", "#0072B2")) > 99
    plots.compare_curves({"a": with_names, "b": without}, tmp_path / "compare.png")
    old = log_runs(tmp_path / "old")
    with pytest.raises(UserError, match=r"different scores \(achievements, doors_opened\)"):
        plots.compare_curves({"a": with_names, "old": old}, tmp_path / "refused.png")


def test_held_out_evaluations_are_drawn_beside_the_training_episodes(tmp_path):
    names = ()  # one panel: its second colour is the evaluations' alone
    without = log_runs(tmp_path / "a", names, "doors_opened")
    runs = log_runs(tmp_path / "b", names, "doors_opened", evaluate_every=5)
    plots.learning_curve(without, tmp_path / "without.png")
    assert not len(coloured(tmp_path / "without.png", plots.COLOURS[1]))
    for run_dirs, name in ((runs[0], "one"), (runs, "two")):
        plots.learning_curve(run_dirs, tmp_path / f"{name}.png")
        columns = coloured(tmp_path / f"{name}.png", plots.COLOURS[1])
        assert np.ptp(columns) > 400  # from 500 to 2,500 of 2,900 env steps
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "two.png").read_bytes()
    (
        runs[1] / "evaluations.jsonl"
    ).unlink()  # steps at which one run was not evaluated are left out
    plots.learning_curve(runs, tmp_path / "half.png")
    assert not len(coloured(tmp_path / "half.png", plots.COLOURS[1]))


def test_smoothing_weighs_by_episodes_and_bridges_gaps():
    steps, values = np.array([0.0, 1.0, 1e9]), np.array([0.0, 1.0, 5.0])
    weights = np.array([1.0, 3.0, 1.0])
    smoothed = plots.smooth(steps, values, weights, np.array([0.5, 4e8, 1e9]), 1.0)
    np.testing.assert_allclose(smoothed, [0.75, 1.0, 5.0])

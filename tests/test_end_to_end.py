"""The whole with its real parts: Crafter, recorded and live answers, a sentence encoder."""

import json

import pytest

import ellm_ppo
from goals.sources import MODEL_FILES, find_recorded
from goals.store import Answer, Store
from lab import evaluate
from lab.run import read_metrics
from worlds import make_world
from worlds.world import WorldArgs

TINY = {
    **{"num_envs": 4, "num_steps": 4, "num_minibatches": 2, "update_epochs": 1},
    **{"hidden_size": 16, "total_timesteps": 32},
}
SUMMARY = {
    *("achievements_per_episode", "success_rates", "crafter_score", "percent_of_max"),
    *("first_million", "sps", "wall_seconds", "compile_seconds", "queries", "store_hits"),
    *("scenes", "steps_without_answer", "language_model", "git_commit"),
}


@pytest.mark.slow
def test_default_run_learns_from_recorded_rules_and_is_evaluated_and_filmed(tmp_path, capsys):
    run_dir = tmp_path / "run"
    args = ellm_ppo.Args(
        run_dir=str(run_dir), store=str(tmp_path / "store.sqlite"), evaluate_episodes=2, **TINY
    )
    summary = ellm_ppo.main(args)
    assert "recorded answers of qwen2.5-coder-1.5b" in capsys.readouterr().out.splitlines()[0]
    assert summary.keys() >= SUMMARY and len(summary["success_rates"]) == 22
    assert (
        summary["queries"] == 0
        and summary["store_hits"] > 2000
        and summary["steps_without_answer"] == 0
    )
    assert json.loads((run_dir / "summary.json").read_text()) == summary
    assert {p.name for p in run_dir.iterdir()} >= {
        "config.json",
        "metrics.jsonl",
        "checkpoints",
        "film.gif",
        "curve.png",
    }
    statistics = evaluate.main(evaluate.Args(run_dir=str(run_dir), episodes=2))
    assert statistics["episodes"] == 2 and 1 <= statistics["episode_length"] <= 400
    assert (
        json.loads((run_dir / "evaluation.json").read_text())["success_rates"]
        == statistics["success_rates"]
    )


@pytest.mark.slow
def test_a_real_model_is_asked_once_and_its_answers_serve_the_next_run(tmp_path):
    runs = []
    for name in ("first", "second"):
        args = ellm_ppo.Args(
            run_dir=str(tmp_path / name), store=str(tmp_path / "store.sqlite"), llm="gemma3-270m",
            goal_form="open",
            prompt_scope="compact", max_goal_tokens=24, evaluate_episodes=0, **TINY,
        )  # fmt: skip
        runs.append((ellm_ppo.main(args), read_metrics(tmp_path / name)))
    (first, first_lines), (second, second_lines) = runs
    assert first["queries"] == first["scenes"] > 0 and first["goals"] >= 135
    assert second["queries"] == 0 and second["store_hits"] == first["queries"]
    with Store(tmp_path / "store.sqlite", read_only=True) as store:
        assert store.count()["answers"] == first["queries"]
    for line in first_lines + second_lines:
        line.pop("time")
    assert first_lines == second_lines


@pytest.mark.parametrize("form", ["rules", "open", "closed"])  # pairs: see test_pairs.py
@pytest.mark.parametrize("llm", MODEL_FILES)
def test_recorded_answers_are_whole(llm, form):
    """All rules; of the 1.5B model's lists and likelihoods those of at least 3,000 scenes."""
    path = find_recorded(make_world(WorldArgs()), llm)[form]
    assert path.stat().st_size <= 2 * 2**20  # what a clone need not regret
    with Store(path, read_only=True) as store:
        assert len(store.models()) == 1 and not store.verify()[1]
        asked = {"rules": "yes-no", "open": "max_tokens", "closed": "likelihood"}[form]
        number = sum(isinstance(row, Answer) and asked in row.parameters for row in store.rows())
    assert number >= {"rules": 2138, "open": 500, "closed": 500}[form]
    assert number >= 3000 or form == "rules" or llm != "qwen2.5-coder-1.5b"


@pytest.mark.slow
def test_pixels_text_goals_and_the_games_own_actions_go_together(tmp_path):
    args = ellm_ppo.Args(
        run_dir=str(tmp_path / "run"), store=str(tmp_path / "store.sqlite"), observation="pixels",
        actions="base", captions="effect", game_rules="craftax", goal_source="oracle",
        evaluate_episodes=0, **TINY,
    )  # fmt: skip
    ellm_ppo.main(args)
    lines = read_metrics(tmp_path / "run")
    assert len(lines) == 2 and all(line["entropy"] > 2.5 for line in lines)

"""The comparison of pretraining methods: rows by hand, order, resuming, statistics, figures. Nothing is trained here."""

import dataclasses
import importlib
import json
import subprocess
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
import tyro
from PIL import Image
from scipy import stats

from benchmarks import figures, mended_rules, pretraining
from goals import rules
from goals.recipes import find_recipe
from lab.errors import UserError
from lab.run import read_json, write_json
from worlds import make_world
from worlds.crafter import ACHIEVEMENTS

EVALUATION = {
    "episodes": 2,
    "achievements_per_episode": 1.51239,
    "achievements_standard_error": 0.5,
}


def write_run(run_dir, lines, evaluation=EVALUATION, **summary):
    """Write what a finished run leaves behind; lines: (env steps, episodes, share with "eat", share with "sleep")."""
    run_dir.mkdir(parents=True)
    write_json(
        run_dir / "config.json",
        {"arguments": {"total_timesteps": 100_000}, "git_commit": "ab12", "git_dirty": False},
    )
    summary = {"sps": 9000.00001, "wall_seconds": 12.0, "compile_seconds": 3.0, **summary}
    write_json(
        run_dir / "summary.json", summary | ({"evaluation": evaluation} if evaluation else {})
    )
    with open(run_dir / "metrics.jsonl", "w") as file:
        for env_steps, episodes, eat, sleep in lines:
            rates = {"eat": eat, "sleep": sleep} if episodes else None
            line = {"env_steps": env_steps, "episodes": episodes, "success_rates": rates}
            file.write(
                json.dumps({**line, "achievements_per_episode": eat + sleep if episodes else None})
                + "\n"
            )


LINES = [
    *((10_000, 1, 1.0, 0.0), (20_000, 3, 0.0, 0.0)),  # the first bin, its end included
    (30_000, 0, None, None),  # the second, without episodes; the third has no line at all
    *((70_000, 2, 1.0, 0.5), (95_000, 1, 1.0, 0.0)),  # 95,000 is not among the last 5%
    *((96_000, 1, 1.0, 1.0), (98_000, 0, None, None), (100_000, 2, 0.5, 0.0)),
]


# ---- rows


def test_a_row_by_hand(tmp_path):
    write_run(tmp_path / "run", LINES, queries=0, steps_without_answer=0.0)
    row = pretraining.make_row("rnd-text", 2, tmp_path / "run")
    assert row["curve"] == {
        "env_steps": [20_000, 40_000, 60_000, 80_000, 100_000],
        "achievements_per_episode": [0.25, None, None, 1.5, 1.0],  # the last: (1 + 2 + 2 * 0.5) / 4
    }
    # Episodes that ended after 95,000 steps: one with both, two of which one has eaten.
    assert row["final"] == {
        "achievements_per_episode": 1.0,
        "success_rates": {"eat": 0.6667, "sleep": 0.3333},
    }
    assert (
        row["command"]
        == "python -m baselines.ppo_rnd --text-observation facts --seed 2 --total-timesteps 100000"
    )
    assert (row["method"], row["group"], row["seed"], row["learner"]) == (
        "rnd-text",
        "ppo",
        2,
        "ppo",
    )
    assert row["evaluation"]["achievements_per_episode"] == 1.5124 and row["sps"] == 9000.0
    assert (
        row["total_timesteps"] == 100_000 and row["git_commit"] == "ab12" and not row["git_dirty"]
    )
    assert row["queries"] == 0 and row["steps_without_answer"] == 0.0 and "CPU" in row["machine"]


def test_a_row_without_evaluation_and_final_episodes(tmp_path):
    write_run(tmp_path / "run", [(20_000, 1, 1.0, 0.0), (40_000, 0, None, None)], evaluation=None)
    row = pretraining.make_row("dqn-oracle", 1, tmp_path / "run")
    assert row["final"] == {
        "achievements_per_episode": None,
        "success_rates": {"eat": None, "sleep": None},
    }
    assert row["learner"] == "dqn" and not {"evaluation", "queries", "steps_without_answer"} & set(
        row
    )


def test_a_row_stands_once(tmp_path):
    first, other = (
        {"method": "rnd", "seed": 1, "sps": 1.0},
        {"method": "rnd", "seed": 2, "sps": 2.0},
    )
    assert pretraining.append_row(first, tmp_path)
    assert pretraining.append_row(other, tmp_path)
    assert not pretraining.append_row({**first, "sps": 3.0}, tmp_path)
    assert pretraining.read_rows(tmp_path) == [first, other]
    assert [file.name for file in tmp_path.iterdir()] == ["runs.jsonl"]  # no lock for git to see


# ---- which runs, and in which order


def test_seed_1_of_all_methods_comes_first():
    args = pretraining.Args(only=("rnd", "oracle", "oracle-5m"))
    first = [("oracle", 1), ("rnd", 1), ("oracle-5m", 1)]
    assert pretraining.plan(args) == [
        *first,
        *(("oracle", 2), ("rnd", 2)),
        *(("oracle", 3), ("rnd", 3)),
    ]
    assert len(pretraining.plan(pretraining.Args())) == sum(
        len(method.seeds) for method in pretraining.METHODS.values()
    )


def test_groups_and_seeds_are_chosen():
    names = ["dqn-oracle", "dqn-ellm-rules-1.5b", "dqn-novelty", "dqn-rnd"]
    assert pretraining.plan(pretraining.Args(group=("dqn",), seeds=(3,))) == [
        (name, 3) for name in names
    ]
    with pytest.raises(UserError, match="--only rdn is unknown"):
        pretraining.plan(pretraining.Args(only=("rdn",)))
    with pytest.raises(UserError, match="no method"):
        pretraining.plan(pretraining.Args(group=("pixels",), seeds=(2,)))


@pytest.fixture
def started(monkeypatch):
    """Record the commands that would be run; those of novelty fail, all others leave a finished run behind."""
    commands = []

    def run(command, cwd):
        assert cwd == pretraining.ROOT
        commands.append(command[1:])
        if "novelty" in command:
            return subprocess.CompletedProcess(command, 2)
        write_run(Path(command[command.index("--run-dir") + 1]), LINES)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_a_failure_is_told_and_the_rest_goes_on(tmp_path, started, capsys):
    args = pretraining.Args(
        only=("novelty", "rnd"), seeds=(1,), runs=tmp_path / "runs", results=tmp_path / "results"
    )
    with pytest.raises(SystemExit) as stop:
        pretraining.main(args)
    assert (
        stop.value.code == 1
        and "novelty, seed 1: failed with exit code 2" in capsys.readouterr().out
    )
    where = [
        "--run-dir",
        str(tmp_path / "runs" / "rnd-s1"),
        "--store",
        str(tmp_path / "runs" / "rnd-s1.sqlite"),
        "--no-film",
    ]
    assert started[1] == [
        "-m",
        "baselines.ppo_rnd",
        "--seed",
        "1",
        "--total-timesteps",
        "1000000",
        *where,
    ]
    assert [(row["method"], row["seed"]) for row in pretraining.read_rows(args.results)] == [
        ("rnd", 1)
    ]


def test_what_is_finished_is_not_run_again(tmp_path, started, capsys):
    args = pretraining.Args(
        only=("rnd",), seeds=(1, 2), runs=tmp_path / "runs", results=tmp_path / "results"
    )
    write_run(args.runs / "rnd-s1", LINES)
    for _ in range(2):
        pretraining.main(args)
    assert [command[command.index("--seed") + 1] for command in started] == ["2"]
    assert [row["seed"] for row in pretraining.read_rows(args.results)] == [1, 2]
    capsys.readouterr()
    pretraining.main(dataclasses.replace(args, runs=tmp_path / "elsewhere"))
    assert "has a row of it already, which stays" in capsys.readouterr().out
    assert len(started) == 3 and len(pretraining.read_rows(args.results)) == 2


@pytest.mark.parametrize("name", pretraining.METHODS)
def test_commands_parse(name):
    command = pretraining.METHODS[name].command
    module, flags = (
        (command[1], command[2:])
        if command[0] == "-m"
        else (command[0].removesuffix(".py"), command[1:])
    )
    script = importlib.import_module(module.replace("/", "."))
    tyro.cli(script.Args, args=[*flags, "--run-dir", "r", "--store", "s.sqlite"])


def test_mended_rules_are_as_told_and_the_others_stay(monkeypatch):
    world, trained = make_world("crafter"), []
    asked, facts = world.captions[1:], rules.asked_facts(world)
    scores = (
        np.full(len(asked), 9.0),
        asked,
        facts,
        np.full((len(asked), len(facts)), 9.0),
        find_recipe(""),
    )
    plain = rules.compile_rules(world, *scores)
    monkeypatch.setattr(rules, "compile_rules", rules.compile_rules)
    monkeypatch.setattr(
        mended_rules.ellm_ppo,
        "main",
        lambda args: trained.append(rules.compile_rules(world, *scores)),
    )
    mended_rules.main(mended_rules.Args())
    (mended,) = trained
    for caption, goal in enumerate(world.captions):
        if goal in mended_rules.MENDED:
            needs = {
                fact
                for fact, is_needed in zip(world.facts, mended.needs[caption], strict=True)
                if is_needed
            }
            assert (
                needs == set(mended_rules.MENDED[goal]) and not mended.alternatives[caption].any()
            )
        else:
            for field in ("sensible", "needs", "alternatives"):
                np.testing.assert_array_equal(
                    getattr(mended, field)[caption], getattr(plain, field)[caption]
                )
    with pytest.raises(UserError, match="--goal-form rules"):
        mended_rules.main(mended_rules.Args(goal_form="open"))


# ---- statistics


def test_interquartile_mean_by_hand():
    assert figures.iqm(np.array([0.0, 1.0, 2.0, 100.0])) == 1.5
    assert figures.iqm(np.array([1.0, 2.0, 6.0])) == 3.0  # nothing is cut of three


def test_interval_of_three_seeds_is_their_range():
    curves = np.array([[1.0, 5.0], [2.0, 4.0], [6.0, 4.5]])
    np.testing.assert_array_equal(figures.interval(curves), [[1.0, 4.0], [6.0, 5.0]])
    assert figures.interval(curves[:1]) is None


def test_interval_of_five_seeds_is_near_the_exact_one():
    values = np.array([1.0, 1.5, 2.5, 4.0, 7.0])
    exact = [stats.trim_mean(draw, 0.25) for draw in product(values, repeat=5)]
    np.testing.assert_allclose(
        figures.interval(values), np.percentile(exact, [2.5, 97.5]), atol=0.15
    )
    assert figures.interval(values) == figures.interval(values)


def test_difference_of_means_by_hand():
    x, y = np.array([5.0, 6.0, 7.0]), np.array([1.0, 1.5])
    assert figures.probability_of_improvement(x, y) == 1.0
    assert (
        figures.probability_of_improvement(np.array([1.0, 2.0]), np.array([1.0, 3.0]))
        == (0.5 + 0 + 1 + 0) / 4
    )
    means_x = [sum(draw) / 3 for draw in product(x, repeat=3)]
    differences = [a - b for a in means_x for b in (1.0, 1.25, 1.25, 1.5)]
    np.testing.assert_allclose(
        figures.difference_interval(x, y), np.percentile(differences, [2.5, 97.5]), atol=0.1
    )
    assert figures.difference_interval(x, y[:1]) is None


# ---- table and pictures


def synthetic_row(name, seed):
    method, score = pretraining.METHODS[name], 3.0 + len(name) / 10 + seed
    steps = list(range(20_000, method.total_timesteps + 1, 20_000))
    values = [None if seed == 2 and step == 20_000 else score * step / steps[-1] for step in steps]
    return {
        **{
            "method": name,
            "group": method.group,
            "seed": seed,
            "total_timesteps": method.total_timesteps,
            "sps": 100.0,
        },
        "curve": {"env_steps": steps, "achievements_per_episode": values},
        "final": {
            "achievements_per_episode": score,
            "success_rates": dict.fromkeys(ACHIEVEMENTS, score / 22),
        },
        **(
            {}
            if name == "random"
            else {
                "evaluation": {
                    "achievements_per_episode": score,
                    "achievements_standard_error": 0.3,
                }
            }
        ),
    }


def draw(folder, names, most_seeds):
    for name in names:
        for seed in pretraining.METHODS[name].seeds[:most_seeds]:
            pretraining.append_row(synthetic_row(name, seed), folder)
    figures.main(figures.Args(folder))
    return read_json(folder / "table.json"), {file.name for file in folder.glob("*.png")}


@pytest.mark.parametrize("most_seeds", [1, 3])
def test_everything_is_drawn(tmp_path, most_seeds):
    table, pictures = draw(tmp_path, reversed(pretraining.METHODS), most_seeds)
    assert pictures == {"curves.png", "dqn.png", "long.png", "pixels.png", "success_rates.png"}
    for picture in pictures:
        assert len(Image.open(tmp_path / picture).convert("L").getcolors()) > 50
    assert [row["method"] for row in table["methods"]] == list(pretraining.METHODS)
    row = table["methods"][0]
    scores = [3.6 + seed for seed in range(1, most_seeds + 1)]
    assert row["seeds"] == list(range(1, most_seeds + 1)) and row["number_of_seeds"] == most_seeds
    assert row["iqm"] == row["mean"] == row["evaluation_mean"] == pytest.approx(np.mean(scores))
    assert row["interval"] == (None if most_seeds == 1 else [4.6, 6.6])
    assert row["evaluation_standard_error"] == pytest.approx(0.3 / np.sqrt(most_seeds), abs=1e-4)
    assert len(table["comparisons"]) == len(figures.CLAIMS)
    comparison = next(
        row for row in table["comparisons"] if row["claim"] == "ellm-rules-1.5b > novelty"
    )
    assert comparison["difference_of_means"] == 0.8
    assert (comparison["interval"] is None) == (most_seeds == 1)
    line = {
        1: "| oracle | 1 | 4.60 |  | 4.60 | 4.60 ± 0.30 | 100 |",
        3: "| oracle | 3 | 5.60 | 4.60 to 6.60 | 5.60 | 5.60 ± 0.17 | 100 |",
    }
    assert line[most_seeds] in (tmp_path / "table.md").read_text()


def test_only_what_has_rows_is_drawn(tmp_path):
    table, pictures = draw(tmp_path, ["rnd", "random"], 3)
    assert pictures == {"curves.png", "success_rates.png"} and not table["comparisons"]
    assert table["methods"][1]["evaluation_mean"] is None
    with pytest.raises(UserError, match="no rows"):
        figures.main(figures.Args(tmp_path / "empty"))


def test_all_methods_have_a_look_and_panels_name_methods():
    looks = {name: figures.style(name) for name in pretraining.METHODS if name != "grounded"}
    for panel in (figures.SOURCES, figures.INPUTS):
        assert len(panel) <= 12
        assert not any(looks[a] == looks[b] for a, b in combinations(panel, 2))
    assert {name for claim in figures.CLAIMS for name in claim} <= set(pretraining.METHODS)

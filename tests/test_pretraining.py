"""The comparison of pretraining methods: rows by hand, order, claims. Nothing is trained here."""

import dataclasses
import importlib
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import tyro

from benchmarks import pretraining, resolve_modes, tuning
from goals.forms import make_form
from goals.sources import find_recorded
from goals.store import Store
from lab.errors import UserError
from lab.run import write_json
from worlds import make_world

EVALUATION = {
    "episodes": 2,
    "achievements_per_episode": 1.51239,
    "achievements_standard_error": 0.5,
    "crafter_score": 7.00001,
    "percent_of_max": 6.9,
}
FIRST_MILLION = {"env_steps": 100_000, "crafter_score": 3.14159}
LINES = [  # env steps, episodes, share with "eat", share with "sleep"
    *((10_000, 1, 1.0, 0.0), (20_000, 3, 0.0, 0.0)),  # the first bin, its end included
    (30_000, 0, None, None),  # the second, without episodes; the third has no line at all
    *((70_000, 2, 1.0, 0.5), (95_000, 1, 1.0, 0.0)),  # 95,000 is not among the last 5%
    *((96_000, 1, 1.0, 1.0), (98_000, 0, None, None), (100_000, 2, 0.5, 0.0)),
]
KEY_METHODS = [
    *("oracle", "ellm", "ellm-blind", "novelty", "game", "standard-game", "standard-ellm"),
    *("standard-ellm-game", "standard-oracle", "standard-novelty", "dqn-ellm", "dqn-oracle"),
]


def write_run(run_dir, lines, **summary):
    """Write what a finished run leaves behind."""
    run_dir.mkdir(parents=True, exist_ok=True)
    arguments = {"total_timesteps": 100_000}
    config = {"arguments": arguments, "git_commit": "ab12", "git_dirty": False}
    config |= {"score_name": "achievements", "device_kind": "cpu"}
    write_json(run_dir / "config.json", config)
    summary = {"sps": 9000.00001, "wall_seconds": 12.0, "compile_seconds": 3.0, **summary}
    write_json(run_dir / "summary.json", summary)
    with open(run_dir / "metrics.jsonl", "w") as file:
        for env_steps, episodes, eat, sleep in lines:
            line = {"env_steps": env_steps, "episodes": episodes}
            line["success_rates"] = {"eat": eat, "sleep": sleep} if episodes else None
            line["achievements_per_episode"] = eat + sleep if episodes else None
            file.write(json.dumps(line) + "\n")


def parse(command):
    """Return the arguments that a script gets."""
    if command[0] == "-m":
        module, flags = command[1], command[2:]
    else:
        module, flags = command[0].removesuffix(".py"), command[1:]
    script = importlib.import_module(module)
    return tyro.cli(script.Args, args=[*flags, "--run-dir", "r", "--store", "s.sqlite"])


def parse_method(name):
    """Return the arguments that a method's script gets."""
    return parse(pretraining.METHODS[name].command)


# ---- rows


def test_a_row_by_hand(tmp_path):
    costs = {"queries": 0, "steps_without_answer": 0.0}
    told = {"evaluation": EVALUATION, "first_million": FIRST_MILLION}
    write_run(tmp_path / "run", LINES, **told, **costs, unasked=1)
    row = pretraining.make_row("rnd-blind", 2, tmp_path / "run")
    assert row["curve"] == {
        "env_steps": [20_000, 40_000, 60_000, 80_000, 100_000],
        # The last: (1 + 2 + 2 * 0.5) / 4.
        "achievements_per_episode": [0.25, None, None, 1.5, 1.0],
    }
    # Episodes that ended after 95,000 steps: one with both, two of which one has eaten.
    rates = {"eat": 0.6667, "sleep": 0.3333}
    assert row["final"] == {"achievements_per_episode": 1.0, "success_rates": rates}
    flags = "--text-observation none --seed 2 --total-timesteps 100000"
    assert row["command"] == f"python -m baselines.ppo_rnd {flags}"
    assert (row["method"], row["group"], row["seed"]) == ("rnd-blind", "ppo", 2)
    assert row["evaluation"] == {
        **EVALUATION,
        "achievements_per_episode": 1.5124,
        "crafter_score": 7.0,
    }
    assert row["first_million"] == {"env_steps": 100_000, "crafter_score": 3.1416}
    assert (row["sps"], row["wall_seconds"], row["compile_seconds"]) == (9000.0, 12.0, 3.0)
    assert row["total_timesteps"] == 100_000 and row["learner"] == "ppo"
    assert row["git_commit"] == "ab12" and not row["git_dirty"] and "CPU" in row["machine"]
    assert row["device"] == "cpu"
    assert row["queries"] == 0 and row["steps_without_answer"] == 0.0 and "unasked" not in row


def test_a_row_without_evaluation_and_final_episodes(tmp_path):
    write_run(tmp_path / "run", [(20_000, 1, 1.0, 0.0), (40_000, 0, None, None)])
    row = pretraining.make_row("dqn-oracle", 1, tmp_path / "run")
    rates = {"eat": None, "sleep": None}
    assert row["final"] == {"achievements_per_episode": None, "success_rates": rates}
    assert row["learner"] == "dqn" and not {"evaluation", "first_million", "queries"} & set(row)


def test_a_row_stands_once(tmp_path):
    first = {"method": "rnd", "seed": 1, "sps": 1.0}
    other = {"method": "rnd", "seed": 2, "sps": 2.0}
    assert pretraining.append_row(first, tmp_path)
    assert pretraining.append_row(other, tmp_path)
    assert not pretraining.append_row({**first, "sps": 3.0}, tmp_path)
    assert pretraining.read_rows(tmp_path) == [first, other]
    assert [file.name for file in tmp_path.iterdir()] == ["runs.jsonl"]  # no lock for git to see


# ---- which runs, and in which order


def test_key_methods_come_first_seed_by_seed_and_the_slow_groups_last():
    runs = pretraining.plan(pretraining.Args())
    methods = pretraining.METHODS
    assert len(runs) == sum(len(method.seeds) for method in methods.values())
    assert runs[: len(KEY_METHODS)] == [(name, 1) for name in KEY_METHODS]
    is_last = [methods[name].group in pretraining.LAST for name, _ in runs]
    assert is_last == sorted(is_last) and any(is_last)
    rest = runs[: is_last.index(True)]
    by_seed = [[name for name, number in rest if number == seed] for seed in (1, 2, 3)]
    for part in (rest, runs[len(rest) :]):
        assert [seed for _, seed in part] == sorted(seed for _, seed in part)
    names = [name for name in methods if methods[name].group not in pretraining.LAST]
    assert by_seed[0] == by_seed[1] == by_seed[2] == names


def test_groups_and_seeds_are_chosen():
    names = ["dqn-ellm", "dqn-oracle", "dqn-novelty", "dqn-rnd"]
    args = pretraining.Args(group=("dqn",), seeds=(3,))
    assert pretraining.plan(args) == [(name, 3) for name in names]
    args = pretraining.Args(only=("rnd", "oracle"), seeds=(2, 1))
    assert pretraining.plan(args) == [("oracle", 1), ("rnd", 1), ("oracle", 2), ("rnd", 2)]
    with pytest.raises(UserError, match="--only rdn is unknown"):
        pretraining.plan(pretraining.Args(only=("rdn",)))
    with pytest.raises(UserError, match="no method"):
        pretraining.plan(pretraining.Args(group=("pixels",), seeds=(2,)))


@pytest.fixture
def started(monkeypatch):
    """Record the commands that would be run; novelty fails, all others finish their run."""
    commands = []

    def run(command, cwd):
        assert cwd == pretraining.ROOT
        commands.append(command[1:])
        if "novelty" in command:
            return SimpleNamespace(returncode=2)
        write_run(Path(command[command.index("--run-dir") + 1]), LINES, evaluation={})
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


@pytest.fixture
def args(tmp_path):
    """Two seeds of one method, in folders of their own."""
    where = {"runs": tmp_path / "runs", "results": tmp_path / "results"}
    return pretraining.Args(only=("rnd",), seeds=(1, 2), **where)


def test_a_failure_is_told_and_the_rest_goes_on(args, started, capsys):
    args = dataclasses.replace(args, only=("novelty", "rnd"), seeds=(1,))
    with pytest.raises(SystemExit) as stop:
        pretraining.main(args)
    assert stop.value.code == 1
    assert "novelty, seed 1: failed with exit code 2" in capsys.readouterr().out
    run_dir = str(args.runs / "rnd-s1")
    where = ["--run-dir", run_dir, "--store", f"{run_dir}.sqlite", "--no-film"]
    length = ["--seed", "1", "--total-timesteps", "1000000"]
    assert started[1] == ["-m", "baselines.ppo_rnd", *length, *where]
    rows = pretraining.read_rows(args.results)
    assert [(row["method"], row["seed"]) for row in rows] == [("rnd", 1)]


def test_what_is_finished_is_not_run_again(args, started, capsys):
    write_run(args.runs / "rnd-s1", LINES, evaluation={})
    for _ in range(2):
        pretraining.main(args)
    assert [command[command.index("--seed") + 1] for command in started] == ["2"]
    assert [row["seed"] for row in pretraining.read_rows(args.results)] == [1, 2]
    capsys.readouterr()
    pretraining.main(dataclasses.replace(args, runs=args.runs / "elsewhere"))
    assert capsys.readouterr().out.count("has a row of it") == 2
    assert len(started) == 1 and len(pretraining.read_rows(args.results)) == 2


def test_what_was_trained_but_not_evaluated_goes_on(args, started):
    write_run(args.runs / "rnd-s1", LINES)
    pretraining.main(args)
    assert [command[command.index("--seed") + 1] for command in started] == ["1", "2"]


def test_a_run_that_another_process_is_at_is_left_to_it(args, started, capsys):
    with pretraining.claim(args.runs / "rnd-s1") as is_ours:
        assert is_ours
        with pretraining.claim(args.runs / "rnd-s1") as is_ours:
            assert not is_ours
        pretraining.main(args)
    assert "rnd, seed 1: another process is at it" in capsys.readouterr().out
    assert [command[command.index("--seed") + 1] for command in started] == ["2"]
    pretraining.main(args)  # the claim is gone
    assert [row["seed"] for row in pretraining.read_rows(args.results)] == [2, 1]


# ---- the methods


@pytest.mark.parametrize("name", pretraining.METHODS)
def test_commands_parse(name):
    args = parse_method(name)
    is_standard = pretraining.METHODS[name].group == "standard"
    assert (args.actions, args.game_rules) == (("base", "craftax") if is_standard else (None, None))
    if name == "random":
        steps = pretraining.METHODS[name].total_timesteps
        assert args.start_e == args.end_e == 1 and args.learning_starts >= steps


def test_methods_read_what_their_names_say():
    read = {"both": (True, "facts"), "goals": (True, "none"), "scene": (False, "facts")}
    read["blind"] = (False, "none")
    for name in ("oracle", "oracle-blind", "ellm", "ellm-goals", "ellm-scene", "ellm-blind"):
        args, _, inputs = parse_method(name), *name.partition("-")[1:]
        assert (args.goal_conditioned, args.text_observation) == read[inputs or "both"]
    for name in ("rnd", "apt"):
        assert parse_method(name).text_observation == "facts"
        assert parse_method(f"{name}-blind").text_observation == "none"


@pytest.mark.parametrize("name", ["ellm-lists", "ellm-lists-270m"])
def test_lists_are_recorded_of_the_prompt_that_is_asked(name):
    args = parse_method(name)
    world = make_world(args)
    with Store(find_recorded(world, args.llm)["open"], read_only=True) as store:
        prompts = {prompt for _, prompt, _ in store.sources()}
    assert prompts == {make_form(world, args).prompt_hash}


def test_commands_of_the_smaller_comparisons_parse():
    for learner, variants in tuning.VARIANTS.items():
        for flags in variants.values():
            args = parse([f"ellm_{learner}.py", *tuning.BASE[learner], *flags])
            assert args.num_updates > 0
    for way in resolve_modes.WAYS.values():
        args = parse(["ellm_ppo.py", *way])
        assert args.total_timesteps == max(resolve_modes.POINTS)


def test_a_window_before_each_point_that_was_reached():
    numbers = [(50_000, 2.0), (80_000, 3.0), (100_000, 5.0)]
    lines = [
        {"env_steps": step, "episodes": 1, "achievements_per_episode": value}
        for step, value in numbers
    ]
    assert resolve_modes.means(lines) == {"50,000": 2.0, "100,000": 4.0}


def test_a_setting_by_tenths(tmp_path):
    write_run(tmp_path / "lr", LINES)
    row = tuning.row("ppo", tmp_path / "lr")
    curve = row["achievements_per_episode_by_tenths"]
    assert curve == [1.0, 0.0, None, None, None, None, 1.5, None, None, 1.0]
    assert (row["name"], row["final"], row["env_steps"]) == ("lr", 1.0, 100_000)

"""What comes after a training costs nothing but itself; a run is evaluated by what made it."""

import json
import os
import shutil
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import ellm_ppo
from goals.service import GoalService
from lab import evaluate, run, session
from lab.cli import run_cli
from lab.errors import LastStepError, UserError
from lab.run import Run, new_run_dir, read_config, read_metrics, write_json
from tests.helpers.processes import ROOT
from tests.helpers.table_model import TableModel
from tests.toy.world import ToyWorld
from tests.training import count_programs, train

STEPS = 4 * 8 * 6
ODD = "r[1] *?#%20 {ü}"  # of what patterns, shells and addresses read otherwise


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a toy run in a directory of an odd name, filmed."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        fields = {"total_timesteps": STEPS, "evaluate_episodes": 2, "goal_form": "open"}
        train(patch, ToyWorld(), folder, ODD, TableModel(), **fields)
    return folder


@pytest.fixture
def run_dir(trained, tmp_path):
    """A copy of the run that a test may spoil."""
    shutil.copytree(trained / ODD, tmp_path / "run")
    return tmp_path / "run"


def exit_code(monkeypatch, *argv):
    monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, argv)])
    try:
        run_cli(evaluate.main, evaluate.Args)
    except SystemExit as left:
        return left.code
    return 0


def fail(*args, **kwargs):
    raise OSError("no more space")


# PATHS
def test_a_run_of_an_odd_name_is_whole_and_goes_on(monkeypatch, trained):
    found = {path.name for path in (trained / ODD).iterdir()}
    assert found >= {"config.json", "summary.json", "curve.png", "film.gif", "checkpoints"}
    fields = {"total_timesteps": STEPS, "evaluate_episodes": 2, "goal_form": "open"}
    before = read_metrics(trained / ODD)
    summary, state, _ = train(monkeypatch, ToyWorld(), trained, ODD, TableModel(), **fields)
    assert state.update == 6 and read_metrics(trained / ODD) == before and not summary["failed"]
    statistics = evaluate.main(evaluate.Args(run_dir=str(trained / ODD), episodes=2, film=True))
    assert statistics["episodes"] == 2


def test_directories_named_by_the_clock_are_told_apart(tmp_path):
    made = [new_run_dir(tmp_path / "a" / "run") for _ in range(3)]
    assert [path.name for path in made] == ["run", "run-2", "run-3"]
    for path in made:
        Run(path, {}).close()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to .*: choose another --run-dir"):
        new_run_dir(tmp_path / "file" / "run")


# AFTER THE TRAINING
@pytest.mark.parametrize(
    ("what", "where", "name"),
    [
        ("the evaluation", session, "play"),
        ("the picture", session, "learning_curve"),
        ("the film", session, "make_film"),
        ("asking", GoalService, "finish"),
    ],
)
def test_a_last_step_that_fails_is_told_and_all_else_is_there(
    monkeypatch, trained, tmp_path, capsys, what, where, name
):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    for file in ("summary.json", "film.gif", "curve.png"):
        (tmp_path / ODD / file).unlink()
    monkeypatch.setattr(where, name, fail)
    fields = {"total_timesteps": STEPS, "evaluate_episodes": 2, "goal_form": "open"}
    fields |= {"prompt": str(trained / "toy_open_v1.txt")}
    summary, _, _ = train(monkeypatch, ToyWorld(), tmp_path, ODD, TableModel(), **fields)
    assert summary["failed"] == {what: "OSError: no more space"}
    assert json.loads((tmp_path / ODD / "summary.json").read_text()) == summary
    said, is_evaluated = capsys.readouterr(), what != "the evaluation"
    assert f"{what} failed (OSError: no more space)" in said.err
    assert ("evaluation" in summary) == is_evaluated
    assert ("held out" in said.out.splitlines()[-1]) == is_evaluated
    left_out = {"the picture": {"curve.png"}, "the film": {"film.gif"}, "asking": set()}
    missing = left_out.get(what, {"film.gif"})
    expected = {"curve.png", "film.gif"} - missing
    assert expected == {p.name for p in (tmp_path / ODD).iterdir()} & {"curve.png", "film.gif"}


def test_a_tracker_that_fails_ends_alone(monkeypatch, tmp_path, capsys):
    class Broken:
        def __init__(self, *args):
            pass

        log = close = staticmethod(fail)

    monkeypatch.setitem(run.TRACKERS, "broken", Broken)
    monkeypatch.setattr(run, "_check_tracker", lambda track: None)
    with Run(tmp_path / "r", {}, track="broken") as tracked:
        for step in (1, 2):
            tracked.log({"env_steps": step})
    assert len(read_metrics(tmp_path / "r")) == 2
    assert capsys.readouterr().err.count("tracking has failed (OSError: no more space)") == 1


def test_a_film_asked_for_alone_that_fails_exits_with_3(monkeypatch, run_dir, capsys):
    monkeypatch.setattr(evaluate, "make_film", fail)
    assert exit_code(monkeypatch, "--run-dir", run_dir, "--episodes", 2, "--film") == 3
    said = capsys.readouterr().err
    assert "error: the film failed (OSError: no more space)" in said and "Traceback" not in said
    assert (run_dir / "evaluation.json").exists()
    with pytest.raises(LastStepError):
        evaluate.main(evaluate.Args(run_dir=str(run_dir), episodes=2, film=True))


# EVALUATING OTHERS' RUNS
def test_a_read_only_run_is_evaluated_elsewhere(monkeypatch, run_dir, tmp_path, capsys):
    def locked(**where):
        if Path(where["dir"]).resolve() == run_dir:
            raise PermissionError(13, "Permission denied")
        return os.fdopen(os.open(os.devnull, os.O_RDONLY))

    monkeypatch.setattr(evaluate.tempfile, "TemporaryFile", locked)  # also where root may write
    before = sorted(path for path in run_dir.rglob("*"))
    assert exit_code(monkeypatch, "--run-dir", run_dir, "--episodes", 2) == 2
    assert "(Permission denied): give --out DIRECTORY" in capsys.readouterr().err
    out = tmp_path / "new" / "out"
    assert exit_code(monkeypatch, "--run-dir", run_dir, "--episodes", 2, "--out", out) == 0
    assert (out / "evaluation.json").exists()
    assert sorted(path for path in run_dir.rglob("*")) == before


def test_a_run_whose_store_cannot_be_written_is_evaluated_with_another(run_dir, tmp_path):
    config = read_config(run_dir)
    config["arguments"] |= {"store": "/proc/nowhere/store.sqlite"}
    write_json(run_dir / "config.json", config)
    with pytest.raises(UserError, match="--store"):
        evaluate.main(evaluate.Args(run_dir=str(run_dir), episodes=1))
    store = str(tmp_path / "another.sqlite")
    assert evaluate.main(evaluate.Args(run_dir=str(run_dir), episodes=1, store=store))


def test_an_error_in_the_midst_of_a_run_says_how_it_goes_on(monkeypatch, tmp_path):
    def gone(self, scenes, captions, done):
        raise UserError("the server is gone")

    monkeypatch.setattr(GoalService, "observe", gone)
    fields = {"total_timesteps": STEPS, "goal_source": "none"}
    with pytest.raises(UserError, match="the server is gone; go on with --run-dir .*run$"):
        train(monkeypatch, ToyWorld(), tmp_path, "run", **fields)


def test_a_run_whose_server_is_gone_is_evaluated_if_its_policy_reads_no_goals(run_dir):
    config = read_config(run_dir)
    config["arguments"] |= {"llm_url": "http://127.0.0.1:9/v1"}
    write_json(run_dir / "config.json", config)
    statistics = evaluate.main(evaluate.Args(run_dir=str(run_dir), episodes=2))
    assert statistics["episodes"] == 2


def test_a_fork_in_any_folder_is_evaluated_by_itself(monkeypatch, run_dir, tmp_path, capsys):
    fork = tmp_path / "fork" / "ellm_ppo.py"
    fork.parent.mkdir()
    source = (ROOT / "ellm_ppo.py").read_text()
    fork.write_text(source + "\nWHO = 'the fork'\n")
    record = Run(tmp_path / "r", {}, script=fork)
    record.close()
    ours = read_config(tmp_path / "r")
    config = read_config(run_dir) | {k: ours[k] for k in ours if k.startswith("script")}
    write_json(run_dir / "config.json", config)
    assert evaluate.load_script(evaluate.find_script(run_dir)).WHO == "the fork"
    # Of a repository beside this one, whose paths are the same.
    write_json(run_dir / "config.json", config | {"script": "ellm_ppo.py"})
    assert evaluate.find_script(run_dir) == fork
    assert evaluate.main(evaluate.Args(run_dir=str(run_dir), episodes=1))["episodes"] == 1
    # Changed since: ours is taken, which is said; without one the user decides.
    fork.write_text(source + "\nWHO = 'another'\n")
    assert evaluate.find_script(run_dir) == ROOT / "ellm_ppo.py"
    assert "ellm_ppo.py is not what it was when it trained" in capsys.readouterr().err
    write_json(run_dir / "config.json", config)
    with pytest.raises(UserError, match=r"ellm_ppo.py, which has changed since: give --script"):
        evaluate.find_script(run_dir)
    assert evaluate.load_script(fork).WHO == "another"
    with pytest.raises(UserError, match="--script .* is no Python file"):
        evaluate.load_script(tmp_path / "nowhere.py")
    with pytest.raises(UserError, match="is no Python file"):
        evaluate.load_script(run_dir / "config.json")
    with pytest.raises(UserError, match=r"cli.py trains nothing: give --script FILE"):
        evaluate.load_script(ROOT / "lab" / "cli.py")
    write_json(run_dir / "config.json", {})
    with pytest.raises(UserError, match="has no whole config.json"):
        evaluate.find_script(run_dir)


@pytest.mark.parametrize("name", ["script", "script_file"])
def test_what_lies_in_a_runs_directory_is_not_run(run_dir, name):
    (run_dir / "evil.py").write_text("raise SystemExit('run')\n")
    config = read_config(run_dir) | {"script_sha256": evaluate.sha256(run_dir / "evil.py")}
    write_json(run_dir / "config.json", config | {name: str(run_dir / "evil.py"), "script": "x.py"})
    with pytest.raises(UserError, match="give --script FILE"):
        evaluate.find_script(run_dir)


# NUMBERS THAT ARE NONE
@pytest.mark.parametrize("what", ["loss", "parameter"])
def test_a_run_that_is_not_finite_stops_with_its_last_good_checkpoint(monkeypatch, tmp_path, what):
    update = ellm_ppo.update

    def spoil(setup, tables, state, rollout):
        state, metrics = update(setup, tables, state, rollout)
        if state.update == 5 and what == "loss":
            metrics["value_loss"] = jnp.float32(np.nan)
        if state.update == 5 and what == "parameter":
            first = sorted(state.params["params"])[0]
            bias = state.params["params"][first]["bias"].at[0].set(jnp.inf)
            layer = {**state.params["params"][first], "bias": bias}
            params = {"params": {**state.params["params"], first: layer}}
            return state.replace(params=params), {**metrics, "value_loss": jnp.float32(0)}
        return state, metrics

    monkeypatch.setattr(ellm_ppo, "update", spoil)
    name = "value_loss" if what == "loss" else "a parameter"
    fields = {"total_timesteps": STEPS, "goal_source": "none"}
    every = 2 if what == "loss" else 5
    message = f"^{name} is not finite after update 5, " + (
        "the checkpoint of update 4 is kept" if what == "loss" else "there is no checkpoint"
    )
    with pytest.raises(UserError, match=message):
        train(monkeypatch, ToyWorld(), tmp_path, "run", checkpoint_every=every, **fields)
    assert len(read_metrics(tmp_path / "run")) == 5
    saved = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert saved == (["2", "4"] if what == "loss" else [])


def test_looking_for_numbers_that_are_none_compiles_nothing(monkeypatch, tmp_path):
    fields = {"total_timesteps": STEPS, "goal_source": "none", "checkpoint_every": 2}
    programs = count_programs(monkeypatch, ToyWorld(), tmp_path, "run", **fields)
    assert len(programs) == 6 and programs[-1] == programs[1]

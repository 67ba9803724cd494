"""Run directories: configuration, lines of metrics and evaluations, trackers."""

import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab.errors import UserError
from lab.run import (
    CONFIG,
    EVALUATIONS,
    METRICS,
    Run,
    read_config,
    read_evaluations,
    read_metrics,
)
from tests.helpers.processes import ROOT, python


def test_config_records_arguments_and_environment(tmp_path):
    script = ROOT / "lab" / "cli.py"
    arguments, extra = {"seed": 1, "path": Path("a/b")}, {"prompts": {"p": "ab12"}}
    packages = ("pytest", "a-game-that-nobody-installs")
    with Run(tmp_path / "r", arguments, extra, script=script, packages=packages) as run:
        assert not run.resuming
    config = read_config(tmp_path / "r")
    assert config["arguments"] == {"seed": 1, "path": "a/b"} and config["prompts"] == {"p": "ab12"}
    assert config["packages"]["jax"] == jax.__version__
    assert config["packages"]["pytest"] == pytest.__version__
    assert None not in config["packages"].values() and packages[1] not in config["packages"]
    assert config["script"] == "lab/cli.py" and "git_commit" in config and config["start_time"]
    assert config["script_sha256"] == sha256(script.read_bytes()).hexdigest()
    assert config["device_count"] == jax.device_count()
    assert not list((tmp_path / "r").glob("*.tmp"))


def test_scripts_of_one_name_are_told_apart(tmp_path):
    for fork in ("a", "b"):
        (tmp_path / fork).mkdir()
        (tmp_path / fork / "ellm_ppo.py").write_text(f"# {fork}\n")
        Run(tmp_path / "runs" / fork, {}, script=tmp_path / fork / "ellm_ppo.py").close()
    one, two = (read_config(tmp_path / "runs" / fork) for fork in ("a", "b"))
    assert one["script"] == (tmp_path / "a" / "ellm_ppo.py").resolve().as_posix() != two["script"]
    assert one["script_sha256"] != two["script_sha256"]
    Run(tmp_path / "runs" / "a", {}, script=tmp_path / "nowhere" / "-c").close()
    assert read_config(tmp_path / "runs" / "a")["resumed"][0]["script_sha256"] is None


def test_git_commit_of_the_scripts_repository(tmp_path):
    repo = tmp_path / "repo"
    repo.mkdir()
    (repo / "script.py").write_text("pass\n")

    def git(*command):
        identity = ("-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false")
        command = ["git", *identity, *command]
        return subprocess.run(command, cwd=repo, check=True, capture_output=True, text=True)

    Run(tmp_path / "before", {}, script=repo / "script.py").close()
    assert read_config(tmp_path / "before")["git_commit"] is None
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    (repo / "results").mkdir()
    (repo / "results" / "rows.jsonl").write_text("")  # what a run leaves is no other code
    Run(tmp_path / "clean", {}, script=repo / "script.py").close()
    (repo / "fork.py").write_text("pass\n")
    Run(tmp_path / "dirty", {}, script=repo / "script.py").close()
    clean, dirty = read_config(tmp_path / "clean"), read_config(tmp_path / "dirty")
    assert clean["git_commit"] == dirty["git_commit"] == git("rev-parse", "HEAD").stdout.strip()
    assert clean["git_dirty"] is False and dirty["git_dirty"] is True


def test_another_configuration_is_refused_and_nothing_written(tmp_path):
    config = {"seed": 1, "gamma": 0.9, "track": "none"}
    Run(tmp_path, config).close()
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(UserError, match=r"gamma is 0\.9 there, 0\.95 here"):
        Run(tmp_path, {**config, "gamma": 0.95})
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_free_and_unlisted_fields_may_differ(tmp_path):
    Run(tmp_path, {"seed": 1, "track": "none", "num_threads": 2}, {"prompts": "a"}).close()
    changed = {"seed": 1, "track": "none", "num_threads": 4}
    Run(tmp_path, changed, {"prompts": "b"}, free={"num_threads"}).close()
    with Run(tmp_path, changed, {"prompts": "b"}, identity=["seed"]) as run:
        assert run.resuming
    config = read_config(tmp_path)
    assert config["arguments"]["num_threads"] == 2 and config["prompts"] == "a"
    news = [(part["arguments"], part["prompts"]) for part in config["resumed"]]
    assert news == [({"num_threads": 4}, "b")] * 2
    with pytest.raises(UserError, match="prompts is 'a' there, 'b' here"):
        Run(tmp_path, changed, {"prompts": "b"}, identity=["seed", "prompts"])


def test_directory_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="thesis.tex"):
        Run(tmp_path, {})
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match="is a file"):
        Run(tmp_path / "thesis.tex", {})
    half = tmp_path / "half"  # a run killed while config.json was being written
    half.mkdir()
    (half / (CONFIG + ".tmp")).write_text("{")
    Run(half, {"seed": 1}).close()
    assert read_config(half)["arguments"] == {"seed": 1}


@pytest.mark.skipif(sys.platform == "win32", reason="no fcntl")
def test_two_processes_cannot_share_a_run(tmp_path):
    with Run(tmp_path, {}):
        code = "import sys; from lab.run import Run; Run(sys.argv[1], {})"
        _, error = python(code, str(tmp_path), stderr=subprocess.PIPE).communicate()
        assert "another process is running" in error


def test_unknown_and_missing_trackers(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="tensorboard, wandb"):
        Run(tmp_path / "a", {}, track="mlflow")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install wandb"):
        Run(tmp_path / "b", {}, track="wandb")
    assert not list(tmp_path.iterdir())


def test_tensorboard_receives_the_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for steps in ((1, 2, 3), (2, 4)):  # the second process resumes from a checkpoint at step 1
        with Run(tmp_path, {}, track="tensorboard") as run:
            for step in steps:
                run.log({"env_steps": step, "success_rates": {"collect wood": step / 10}})
                run.log_evaluation({"env_steps": step, "episode_return": step / 2})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()

    def scalars(name):
        return [(event.step, round(event.value, 6)) for event in events.Scalars(name)]

    assert scalars("success_rates/collect wood") == [(1, 0.1), (2, 0.2), (4, 0.4)]
    assert scalars("evaluation/episode_return") == [(1, 0.5), (2, 1.0), (4, 2.0)]


def test_metrics_round_trip(tmp_path):
    values = {
        "third": 1 / 3,
        "single": np.float32(0.1),
        "array": jnp.arange(2),
        "nan": float("nan"),
        "none": None,
    }
    with Run(tmp_path, {}) as run:
        run.log({"env_steps": 1, **values, "time": {"sps": np.inf}})
        first = read_metrics(tmp_path)  # flushed: to be seen while the run goes on
        run.log({"env_steps": 2})
    assert first == read_metrics(tmp_path)[:1] and len(read_metrics(tmp_path)) == 2
    line = first[0]
    assert line["third"] == 1 / 3 and np.float32(line["single"]) == np.float32(0.1)
    assert line["array"] == [0, 1]
    assert line["nan"] is None and line["none"] is None and line["time"] == {"sps": None}
    with pytest.raises(TypeError), Run(tmp_path, {}) as run:
        run.log({"object": object()})


def test_truncation_drops_what_came_after_the_checkpoint(tmp_path):
    with Run(tmp_path, {}) as run:
        for step in (10, 20, 30):
            run.log({"env_steps": step, "loss": 0.1 * step})
            run.log_evaluation({"env_steps": step, "episode_return": 1 / step})
        kept = {name: _lines(tmp_path / name)[:2] for name in (METRICS, EVALUATIONS)}
        run.truncate_after(20)
        assert {name: _lines(tmp_path / name) for name in kept} == kept
        run.log({"env_steps": 40})
        run.log_evaluation({"env_steps": 40, "episode_return": 1.0})
    assert [line["env_steps"] for line in read_metrics(tmp_path)] == [10, 20, 40]
    assert [line["episode_return"] for line in read_evaluations(tmp_path)] == [0.1, 0.05, 1.0]


def _lines(file: Path) -> list[bytes]:
    """Return the lines of a file."""
    return file.read_bytes().splitlines()


def test_evaluations_are_seen_at_once_and_survive_resuming(tmp_path):
    with Run(tmp_path, {}) as run:
        run.log({"env_steps": 1})
        assert read_evaluations(tmp_path) == [] and not (tmp_path / EVALUATIONS).exists()
        run.log_evaluation({"env_steps": 1, "success_rates": {"a": np.float32(0.5)}, "nan": np.nan})
        expected = [{"env_steps": 1, "success_rates": {"a": 0.5}, "nan": None}]
        assert read_evaluations(tmp_path) == expected
    with open(tmp_path / EVALUATIONS, "a") as file:
        file.write('{"env_steps": 2, "torn')
    with Run(tmp_path, {}) as run:
        run.truncate_after(1)
        run.log_evaluation({"env_steps": 2})
    assert read_evaluations(tmp_path) == [*expected, {"env_steps": 2}]
    (tmp_path / EVALUATIONS).write_text("garbage\n")
    with pytest.raises(UserError, match=f"{EVALUATIONS} line 1"):
        read_evaluations(tmp_path)


def test_line_torn_by_a_kill_is_dropped(tmp_path):
    with Run(tmp_path, {}) as run:
        run.log({"env_steps": 1})
        run.log({"env_steps": 2})
    with open(tmp_path / METRICS, "a") as file:
        file.write('{"env_steps": 3, "lo')
    assert [line["env_steps"] for line in read_metrics(tmp_path)] == [1, 2]
    with Run(tmp_path, {}) as run:
        run.log({"env_steps": 3})
    assert [line["env_steps"] for line in read_metrics(tmp_path)] == [1, 2, 3]


def test_damaged_files_are_named(tmp_path):
    Run(tmp_path, {}).close()
    (tmp_path / METRICS).write_text('{"env_steps": 1}\ngarbage\n{"env_steps": 2}\n')
    with pytest.raises(UserError, match="line 2"):
        read_metrics(tmp_path)
    (tmp_path / CONFIG).write_text("{")
    with pytest.raises(UserError, match=CONFIG):
        Run(tmp_path, {})
    with pytest.raises(UserError, match="is it the directory of a run"):
        read_metrics(tmp_path / "nowhere")


def test_summary_replaces_the_one_before(tmp_path):
    with Run(tmp_path, {}) as run:
        run.write_summary({"achievements_per_episode": np.float32(2.5)})
        run.write_summary({"achievements_per_episode": jnp.float32(3.5)})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"achievements_per_episode": 3.5}


@pytest.mark.skipif(os.sep == "\\", reason="a backslash parts folders here")
def test_a_backslash_in_a_path_is_refused(tmp_path):
    with pytest.raises(UserError, match="has a backslash in it: choose another --run-dir"):
        Run(tmp_path / "a\\b", {})
    assert not list(tmp_path.iterdir())


def test_a_discarded_run_leaves_nothing(tmp_path):
    Run(tmp_path / "r", {}).discard()
    assert not (tmp_path / "r").exists()


def test_a_path_that_is_no_text_is_refused(tmp_path):
    with pytest.raises(UserError, match="has bytes in it that are no text"):
        Run(tmp_path / os.fsdecode(b"a\xff"), {})

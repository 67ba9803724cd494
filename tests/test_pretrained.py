"""Agents that ship: small, safe, and whatever else they were."""

import dataclasses
import gzip
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import ellm_ppo
from lab import pretrained
from lab.errors import UserError
from lab.evaluate import Args as EvaluateArgs
from lab.evaluate import load_run
from lab.evaluate import main as evaluate
from lab.pretrained import PARAMETERS, find_run, load_parameters
from lab.run import read_config
from lab.transfer import take_parameters
from tests.toy.world import ToyWorld
from tests.training import assert_equal_trees, load_state, make_args, open_script, train
from worlds import make_world
from worlds.world import WorldArgs

TOY = "tests.toy.world:ToyWorld"
FIELDS = {"goal_source": "oracle", "goal_conditioned": True, "total_timesteps": 128, "prompt": None}


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """Ship the agent of a toy run; return the folder of the shipped, and the run's."""
    folder = tmp_path_factory.mktemp("shipped")
    with pytest.MonkeyPatch.context() as patch:
        train(patch, ToyWorld(), folder, "run", checkpoint_every=1, evaluate_episodes=2, **FIELDS)
    args = pretrained.Args(run_dir=str(folder / "run"), name="toy-agent", out=folder)
    assert pretrained.main(args) == folder / "toy-agent"
    return folder


@pytest.fixture
def here(monkeypatch, shipped):
    """Let agents ship from there."""
    monkeypatch.setattr(pretrained, "SHIPPED", shipped)
    return shipped


def test_it_is_found_by_name_loaded_and_half_as_precise(here):
    folder = find_run("toy-agent", "--from-run")
    assert folder == here / "toy-agent"
    state = load_state(make_args(ellm_ppo, here, "run", **FIELDS), ToyWorld())
    found = load_parameters(folder, state.params)
    half = jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), state.params)
    assert_equal_trees(found, half)
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "summary.json", PARAMETERS
    }  # fmt: skip


def test_its_command_is_kept_and_no_path(here):
    config = read_config(here / "toy-agent")
    assert config["command"].startswith("python ellm_ppo.py ")
    assert "--goal-source=oracle" in config["command"] and f"--env={TOY}" in config["command"]
    assert str(here) not in str(config)


def test_a_run_begins_with_it_and_its_play_can_be_seen(here, monkeypatch, tmp_path):
    args = make_args(ellm_ppo, tmp_path, "next", seed=5, from_run="toy-agent", **FIELDS)
    setup, service = open_script(ellm_ppo, args, ToyWorld())
    fresh = ellm_ppo.init_state(setup, service.tables)
    begun = take_parameters(args, fresh)
    service.close()
    _, service, params = load_run(ellm_ppo, here / "toy-agent")
    service.close()
    assert_equal_trees(begun.params, params)
    monkeypatch.chdir(tmp_path)
    found = evaluate(EvaluateArgs(run_dir="toy-agent", episodes=4, film=True))
    assert found["episodes"] == 4
    made = {path.name for path in (tmp_path / "runs" / "toy-agent").iterdir()}
    assert made == {"evaluation.json", "film.gif"}


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda file: file.write_bytes(b"no such thing"), "is damaged .* fetch it anew$"),
        (lambda file: file.write_bytes(file.read_bytes()[:-40]), "is damaged .* fetch it anew$"),
    ],
)
def test_a_damaged_file_is_refused(shipped, tmp_path, damage, said):
    folder = tmp_path / "agent"
    folder.mkdir()
    for path in (shipped / "toy-agent").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    damage(folder / PARAMETERS)
    with pytest.raises(UserError, match=said):
        load_run(ellm_ppo, folder)


def test_what_does_not_fit_is_named(here, tmp_path):
    args = make_args(ellm_ppo, tmp_path, "x", **{**FIELDS, "hidden_size": 32})
    args = dataclasses.replace(args, from_run="toy-agent")
    setup, service = open_script(ellm_ppo, args, ToyWorld())
    fresh = ellm_ppo.init_state(setup, service.tables)
    service.close()
    with pytest.raises(UserError, match="does not fit: --hidden-size 16 there, 32 here$"):
        take_parameters(args, fresh)


def test_an_unknown_name_is_refused_with_those_known(here):
    with pytest.raises(UserError, match="^--guide x is not there: .*agent: .*toy-agent"):
        find_run("x", "--guide")


@pytest.mark.parametrize("name", ["../x", "Big", "toy-agent", ""])
def test_a_name_must_be_new_and_plain(here, name):
    with pytest.raises(UserError, match="^--name .*: (give one of small|.* already)"):
        pretrained.main(pretrained.Args(run_dir=str(here / "run"), name=name, out=here))


def test_an_unfinished_run_does_not_ship(here, tmp_path):
    shutil.copytree(here / "run", tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.raises(UserError, match="is not finished and evaluated"):
        pretrained.main(pretrained.Args(run_dir=str(tmp_path / "run"), name="x", out=tmp_path))


def test_numbers_that_are_none_are_refused(here, tmp_path):
    shutil.copytree(here / "toy-agent", tmp_path / "agent")
    arrays = load_file(tmp_path / "agent" / PARAMETERS)
    name = next(iter(arrays))
    for bad in (np.full_like(arrays[name], np.nan), arrays[name].astype(np.int8)):
        save_file({**arrays, name: bad}, tmp_path / "agent" / PARAMETERS)
        with pytest.raises(UserError, match="is not of finite float16"):
            load_run(ellm_ppo, tmp_path / "agent")


def test_a_tuned_and_guided_agent_of_a_task_ships_with_its_command(here, monkeypatch, tmp_path):
    world = make_world(WorldArgs(TOY, task="leave"))
    fields = {"goal_source": "task", "goal_conditioned": True, "task": "leave", "prompt": None}
    fields |= {"from_run": "toy-agent", "guide": "toy-agent", "fine_tune": "heads"}
    fields |= {"total_timesteps": 64, "evaluate_episodes": 2}
    train(monkeypatch, world, tmp_path, "run", **fields)
    monkeypatch.undo()
    monkeypatch.setattr(pretrained, "SHIPPED", here)
    pretrained.main(pretrained.Args(run_dir=str(tmp_path / "run"), name="tuned", out=tmp_path))
    command = read_config(tmp_path / "tuned")["command"]
    for flag in ("--task=leave", "--from-run=toy-agent", "--guide=toy-agent", "--fine-tune=heads"):
        assert flag in command
    assert "goal-source" not in command, "a task's default"
    policy, service, _ = load_run(ellm_ppo, tmp_path / "tuned")
    assert policy.setup.world == world
    service.close()


def test_rules_that_play_has_corrected_ship_too(tmp_path):
    fields = {**FIELDS, "goal_source": "grounded", "evidence": True, "evaluate_episodes": 2}
    with pytest.MonkeyPatch.context() as patch:
        train(patch, ToyWorld(), tmp_path, "run", **fields)
    pretrained.main(pretrained.Args(run_dir=str(tmp_path / "run"), name="learnt", out=tmp_path))
    states = []
    for folder in ("run", "learnt"):
        _, service, _ = load_run(ellm_ppo, tmp_path / folder)
        states.append(service.state())
        service.close()
    assert states[0] == states[1] and states[0]["evidence"]["round"]
    file = tmp_path / "learnt" / "service.json.gz"
    whole = file.read_bytes()
    for damaged in (gzip.compress(b'{"goals": []}'), gzip.compress(b"{"), whole[:-40], b"{}", None):
        file.unlink() if damaged is None else file.write_bytes(damaged)
        with pytest.raises(UserError, match="service.json.gz is damaged .*: fetch it anew$"):
            load_run(ellm_ppo, tmp_path / "learnt")


def test_an_agent_that_goes_on_asking_does_not_ship(shipped, tmp_path):
    fields = {**FIELDS, "text_observation": "caption", "evaluate_episodes": 2}
    with pytest.MonkeyPatch.context() as patch:
        train(patch, ToyWorld(), tmp_path, "run", **fields)
    with pytest.raises(UserError, match="goes on asking"):
        pretrained.main(pretrained.Args(run_dir=str(tmp_path / "run"), name="x", out=tmp_path))
    assert not (tmp_path / "x").exists()

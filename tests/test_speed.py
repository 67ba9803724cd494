"""Speeds are measured in small form: everything runs, nothing is compiled while it is timed."""

import json

import jax
import jax.numpy as jnp
import pytest

import ellm_dqn
import ellm_ppo
from benchmarks import speed
from lab.compile_clock import CompileClock
from worlds import make_world

TOY = {"env": "tests.toy.world:ToyWorld", "num_envs": 4, "num_steps": 8, "hidden_size": 16}
PPO = {"num_minibatches": 2, "update_epochs": 1}
DQN = {"train_frequency": 16, "sample_size": 8, "learning_starts": 0, "buffer_size": 256}
DQN["target_network_frequency"] = 64


def counting(num_envs):
    """Return what stands for craftax, which takes long to compile: it counts to three."""

    def reset(key):
        return jnp.zeros((num_envs, 5)), jnp.zeros(num_envs, jnp.int32)

    def step(key, states, actions):
        done = states == 2
        states = jnp.where(done, 0, states + 1)
        return jax.nn.one_hot(states, 5), states, jnp.ones(num_envs), done

    return speed.Craftax(reset, step)


def test_worlds_and_updates_are_measured_beside_references(tmp_path, monkeypatch):
    for name in ("optimistic", "auto_reset"):
        monkeypatch.setattr(speed, name, counting)
    size = {"env": TOY["env"], "goal_source": "oracle", "num_envs": 4, "num_steps": 4}
    out = tmp_path / "speed.json"
    result = speed.main(speed.Args(rounds=2, default_rounds=0, out=out, **size))
    kinds = {
        "env_only": ["ours", "optimistic", "auto_reset"],
        "training": ["ellm", "none", "optimistic"],
    }
    assert {kind: list(table) for kind, table in result["all_rounds"].items()} == kinds
    for table in result["all_rounds"].values():
        assert all(len(rounds) == 2 and min(rounds) > 0 for rounds in table.values())
    assert len(result["ratios"]) == 4 and min(result["ratios"].values()) > 0
    assert result["command"].startswith("python -m benchmarks.speed")
    assert json.loads(out.read_text()) == result


@pytest.mark.slow
def test_craftax_is_stepped_at_random():
    speed.random_reference(speed.Args(num_envs=4, num_steps=4), speed.optimistic)()


@pytest.mark.parametrize("make", [speed.optimistic, speed.auto_reset])
@pytest.mark.parametrize("num_envs", [4, 32])
def test_craftax_keeps_its_shapes(make, num_envs):
    craftax = make(num_envs)
    key, actions = jax.random.key(0), jnp.zeros(num_envs, jnp.int32)
    observations, states = jax.eval_shape(craftax.reset, key)
    stepped = jax.eval_shape(craftax.step, key, states, actions)
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (stepped[:2], (observations, states))]
    assert shapes[0] == shapes[1]
    assert stepped[2].shape == stepped[3].shape == (num_envs,) and stepped[3].dtype == bool


@pytest.mark.parametrize(
    ("script", "fields"), [(ellm_ppo, PPO), (ellm_dqn, DQN)], ids=["ppo", "dqn"]
)
def test_learners_are_measured_by_what_they_read(script, fields):
    speeds = speed.measure_inputs(script, 2, goal_source="oracle", **TOY, **fields)
    assert list(speeds) == ["both", "blind", "caption"]
    assert all(len(rounds) == 2 and min(rounds) > 0 for rounds in speeds.values())


def test_what_was_rehearsed_is_neither_compiled_nor_embedded_again(monkeypatch):
    embedded = []

    class Service(speed.GoalService):
        def know(self, scenes):
            before = self.num_scenes
            super().know(scenes)
            embedded.append(self.num_scenes - before)

    monkeypatch.setattr(speed, "GoalService", Service)
    fields = {"goal_source": "oracle", "text_observation": "caption", **TOY, **PPO}
    run, steps = speed.train_ours(ellm_ppo, 3, **fields)
    rehearsed, clock = list(embedded), CompileClock()
    assert steps == 32 and sum(rehearsed) > 0
    for _ in range(3):
        run()
    # The same scenes are met again, in the same order; their embeddings come from the store.
    assert embedded == rehearsed * 2 and clock.programs == 0


def test_tables_without_goals():
    args = ellm_ppo.Args(env=TOY["env"], goal_source="none", **speed.BLIND)
    tables = speed.no_tables(args)
    assert not tables.embeddings.size and not tables.fact_embeddings.size
    assert len(tables.sensible) >= len(make_world(args).captions)


def test_ratios_are_medians_round_by_round():
    speeds = {"ours": [1.0, 4.0, 9.0], "reference": [1.0, 2.0, 3.0]}
    assert speed.ratio(speeds, "ours", "reference") == 2.0


def test_uses_of_a_step_are_those_of_the_defaults():
    uses = speed.uses_of_a_step()
    assert uses["ppo"] == "4: passes in minibatches of 512"
    assert uses["dqn"] == "4: 64 transitions per 16 env steps"

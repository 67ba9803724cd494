"""The DQN script: its loss by hand, a replay that never mixes episodes, probes, exactness."""

import ast
import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

import ellm_dqn
import goals.scene_tables
from goals.arguments import GoalArgs
from goals.service import GoalService
from lab.arguments import RunArgs
from lab.cli import parse
from lab.compile_clock import CompileClock
from lab.errors import UserError
from lab.play import Policy, play
from lab.replay import Transitions
from tests.helpers.table_model import Chatty, TableModel
from tests.helpers.tables import make_tables
from tests.toy.world import PictureWorld, ProbeWorld, ToyWorld
from tests.training import assert_equal_trees, load_state, make_args, train_with_a_break
from tests.training import train as train_script
from worlds.frames import FrameStack
from worlds.world import Transition, WorldArgs


def train(*arguments, **fields):
    return train_script(*arguments, script=ellm_dqn, **fields)


def begin(args, world):
    """Return what a run of these arguments begins with: setup, tables, state and rollout."""
    service = GoalService(world, args, seed=args.seed)
    service.prepare()
    setup, tables = ellm_dqn.make_setup(args, world), service.tables
    state = ellm_dqn.init_state(setup, tables)
    return setup, tables, state, ellm_dqn.empty_rollout(setup, tables, state)


# The loss


class Table:
    """Stands for a network: values are a table of parameters."""

    def apply(self, params, state, tables):
        return params[state]


def test_loss_by_hand_is_double_and_gives_the_target_no_gradient():
    """The online table chooses the action, the target table rates it."""
    params, target_params = (
        jnp.asarray([[1.0, 2.0], [5.0, 3.0]]),
        jnp.asarray([[0.0, 0.0], [7.0, 90.0]]),
    )
    batch = Transitions(*map(jnp.asarray, ([0], [1], [0.25], [0.25], [1])))
    loss_of = partial(
        ellm_dqn.dqn_loss, Table(), ellm_dqn.Args(munchausen=0.0, policy_temperature=0.0), None
    )
    loss, parts = loss_of(params, target_params, batch)
    assert float(parts["target"]) == 0.25 + 0.25 * 7.0 and float(loss) == 0.0
    batch = batch.replace(returns=jnp.asarray([0.75]))  # now half a unit short
    loss_alone = jax.value_and_grad(lambda *p: loss_of(*p, batch)[0], argnums=(0, 1))
    loss, gradients = loss_alone(params, target_params)
    assert (
        float(loss) == 0.125
        and gradients[0].tolist() == [[0.0, -0.5], [0.0, 0.0]]
        and not gradients[1].any()
    )


def test_munchausen_target_by_hand():
    params, target_params = jnp.zeros((2, 2)), jnp.asarray([[0.3, 0.1], [0.5, 0.7]])
    batch = Transitions(*map(jnp.asarray, ([0, 0], [1, 0], [0.25, 0.25], [0.5, 0.0], [1, 1])))
    args = ellm_dqn.Args(munchausen=0.9, policy_temperature=0.1)
    log_policy = np.log(np.exp([3.0, 1.0]) / np.exp([3.0, 1.0]).sum())
    soft_value = 0.1 * np.log(np.exp(5.0) + np.exp(7.0))
    expected = [
        0.25 + 0.9 * 0.1 * log_policy[1] + 0.5 * soft_value,
        0.25 + 0.9 * 0.1 * log_policy[0],
    ]
    parts = ellm_dqn.dqn_loss(Table(), args, None, params, target_params, batch)[1]
    assert float(parts["target"]) == pytest.approx(np.mean(expected), rel=1e-5)
    args = dataclasses.replace(
        args, policy_temperature=10.0
    )  # a log-probability counts no lower than -1
    batch = jax.tree.map(lambda x: x[1:], batch)
    parts = ellm_dqn.dqn_loss(Table(), args, None, params, target_params, batch)[1]
    assert float(parts["target"]) == pytest.approx(0.25 - 0.9)


def test_chance_of_a_random_action_falls_linearly():
    args = ellm_dqn.Args(total_timesteps=1000, exploration_fraction=0.5, start_e=1.0, end_e=0.1)
    chances = [float(ellm_dqn.exploration(args, jnp.asarray(step))) for step in (0, 250, 500, 1000)]
    np.testing.assert_allclose(chances, [1.0, 0.55, 0.1, 0.1], rtol=1e-6)


# The replay


@struct.dataclass
class TaleState:
    episode: jax.Array
    end: jax.Array
    timestep: jax.Array


@dataclass(frozen=True)
class TaleWorld(ToyWorld):
    """Each observation tells of which episode it is, at which step, and how that episode ends.

    Frames tell it by three pixels.
    """

    max_episode_steps: int = 8
    frames: bool = False
    captions = ("nothing", *(f"caption {i}" for i in range(40)))

    def reset(self, key):
        episode, end = jax.random.randint(key, (2,), 0, jnp.asarray([250, 12]))
        return TaleState(episode, end, jnp.zeros((), jnp.int32))

    def step(self, key, state, action):
        after = state.replace(timestep=state.timestep + 1)
        terminated = after.timestep >= state.end
        caption = (1 + state.timestep).astype(jnp.int32)
        reward = state.episode + 0.01 * after.timestep
        truncated = (after.timestep >= self.max_episode_steps) & ~terminated
        score, achievements = jnp.zeros(()), jnp.zeros(2, bool)
        return after, Transition(caption, reward, terminated, truncated, score, achievements)

    def observe(self, state):
        told = jnp.stack([state.episode, state.timestep, state.end])
        if self.frames:
            return jnp.zeros((36, 36), jnp.uint8).at[0, :3].set(told.astype(jnp.uint8))
        return told.astype(jnp.float32)

    def scene(self, state):
        return (state.episode + 256 * state.timestep).astype(jnp.uint32)[None]

    def oracle(self, state):
        return jnp.arange(41) == 1 + state.timestep % 3


@pytest.mark.parametrize("frames", [False, True], ids=["symbols", "frames"])
def test_replay_gives_back_what_happened(tmp_path, frames):
    """Sample a replay that has wrapped around; each transition must fit what its inputs tell."""
    world = TaleWorld(frames=frames)
    world = FrameStack(world, 3) if frames else world
    fields = {
        "goal_source": "oracle",
        "goal_conditioned": True,
        "text_observation": "facts",
        "total_timesteps": 4000,
    }
    args = make_args(
        ellm_dqn, tmp_path, "run", buffer_size=4 * 40, sample_size=64, gamma=0.5, **fields
    )
    setup, tables, state, rollout = begin(args, world)
    sample = jax.jit(partial(ellm_dqn.sample_batch, setup))
    kinds = set()
    for round_number in range(20):
        state, rollout, _ = ellm_dqn.collect(setup, tables, state, rollout)
        state, _ = ellm_dqn.update(setup, tables, state, rollout)
        if (
            round_number < 7
        ):  # until the first episodes, which begin in their midst, are overwritten
            continue
        batch = sample(state.replay, jax.random.key(round_number))
        batch = jax.device_get(batch)
        inputs, following = batch.inputs, batch.next_inputs
        stacks, next_stacks = (
            np.moveaxis(x.observation[:, 0, :3], -1, 1) if frames else x.observation[:, None]
            for x in (inputs, following)
        )
        for b in range(len(batch.returns)):
            episode, t, end = (int(x) for x in stacks[b, -1])
            last = min(end if end > 0 else 1, world.max_episode_steps)
            steps = min(args.n_step, last - t)
            over = t + steps == last
            terminated = over and end <= world.max_episode_steps
            assert batch.discounts[b] == (0.0 if terminated else 0.5**steps)
            first_goals = {
                1 + k for k in range(last) if k < 3
            }  # the oracle suggests captions 1, 2, 3; each is reached once
            reached = [
                1 + t + i in first_goals and 1 + t + i == 1 + (t + i) % 3 for i in range(steps)
            ]
            expected = sum(0.5**i for i in range(steps) if reached[i])
            assert batch.returns[b] == pytest.approx(expected)
            assert inputs.captions_so_far[b].nonzero()[0].tolist() == list(range(1, t + 1))
            kinds.add("terminated" if terminated else "truncated" if over else "going on")
            ages = np.arange(world.history)[::-1]
            told = [[episode, max(t - age, 0), end] for age in ages]
            assert stacks[b].astype(int).tolist() == told
            if not terminated:
                told = [[episode, max(t + steps - age, 0), end] for age in ages]
                assert next_stacks[b].astype(int).tolist() == told
                captions = following.captions_so_far[b].nonzero()[0].tolist()
                assert captions == list(range(1, t + steps + 1))
    assert kinds == {"terminated", "truncated", "going on"}
    assert int(state.replay.cuts.max()) > jax.tree.leaves(state.replay.last)[0].shape[1]


def test_replay_stays_where_it_is_and_nothing_is_compiled_again(tmp_path):
    world = ToyWorld()
    args = make_args(ellm_dqn, tmp_path, "run", goal_source="oracle", total_timesteps=3200)
    setup, tables, state, rollout = begin(args, world)
    clock, places, programs = CompileClock(), [], []
    for _ in range(6):
        state, rollout, _ = ellm_dqn.collect(setup, tables, state, rollout)
        with jax.transfer_guard("disallow"):
            state, _ = ellm_dqn.update(setup, tables, state, rollout)
        jax.block_until_ready(state)
        leaves = jax.tree.leaves(state.replay.steps)
        places.append([leaf.unsafe_buffer_pointer() for leaf in leaves if leaf.size])
        programs.append(clock.programs)
    assert places[2:] == places[1:2] * 4 and programs[2:] == programs[1:2] * 4


# The learner


@pytest.mark.parametrize("kind", ["constant", "observation", "delayed", "action"])
def test_learner_answers_the_probe(monkeypatch, tmp_path, kind):
    fields = {"goal_source": "none", "num_envs": 16, "total_timesteps": 16 * 8 * 100}
    fields |= {
        "learning_rate": 3e-3,
        "sample_size": 64,
        "gamma": 0.5,
        "target_network_frequency": 128,
        "end_e": 0.1,
        "checkpoint_every": 1000,
    }
    fields |= {"policy_temperature": 0.0, "munchausen": 0.0}
    _, state, lines = train(monkeypatch, ProbeWorld(kind=kind), tmp_path, kind, **fields)
    observations = jnp.asarray([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    inputs = ellm_dqn.PolicyInput(
        observations, jnp.zeros((4, 3), bool), *(jnp.zeros((4, 0)) for _ in range(4))
    )
    values = ellm_dqn.DuelingNetwork(2, 16, "narrow").apply(state.params, inputs, make_tables())
    if kind == "constant":
        np.testing.assert_allclose(values[:2], np.ones((2, 2)), atol=0.1)
    elif kind == "observation":
        np.testing.assert_allclose(values[:2], [[-1.0, -1.0], [1.0, 1.0]], atol=0.15)
    elif kind == "delayed":
        np.testing.assert_allclose(values[:2], np.full((2, 2), 0.5), atol=0.15)
    else:
        np.testing.assert_allclose(values[:2], [[1.0, -1.0], [-1.0, 1.0]], atol=0.2)
        assert lines[-1]["reward_per_step"] > 0.7


def test_learns_to_reach_suggested_goals_without_the_worlds_reward(monkeypatch, tmp_path):
    fields = {"goal_form": "open", "num_envs": 16, "total_timesteps": 16 * 8 * 200}
    fields |= {"learning_rate": 3e-3, "sample_size": 64, "gamma": 0.9, "hidden_size": 64}
    fields |= {"learning_starts": 512, "target_network_frequency": 256, "checkpoint_every": 1000}
    fields |= {"end_e": 0.05, "exploration_fraction": 0.7}
    fields |= {"policy_temperature": 0.0, "munchausen": 0.0}
    _, _, lines = train(monkeypatch, ToyWorld(), tmp_path, "learn", TableModel(), **fields)
    means = [sum(line["success_rates"].values()) for line in lines if line["episodes"]]
    assert np.mean(means[:10]) < 1.2 and np.mean(means[-20:]) > 1.7


# Ways that must lead to the same result


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"goal_conditioned": True, "text_observation": "caption"},
        {"goal_source": "oracle", "goal_conditioned": True},
    ],
    ids=["blind", "reads", "oracle"],
)
def test_run_repeats_bit_for_bit_and_one_that_was_killed_ends_there_too(
    monkeypatch, tmp_path, fields
):
    model = TableModel()
    settings = {"goal_form": "open", "total_timesteps": 4 * 8 * 6, "checkpoint_every": 3, **fields}
    cold, whole, whole_lines = train(monkeypatch, ToyWorld(), tmp_path, "whole", model, **settings)
    assert len(model.prompts) == len(set(model.prompts)) == cold["queries"]
    _, resumed, resumed_lines = train_with_a_break(
        monkeypatch, ToyWorld(), tmp_path, "killed", model, ellm_dqn, **settings
    )
    assert_equal_trees(whole, resumed)
    assert whole_lines == resumed_lines and len(whole_lines) == 6 and whole_lines[-1]["td_loss"] > 0
    assert len(model.prompts) == cold["queries"]  # the second run found all answers in the store


def test_room_for_goals_grows_without_a_trace(monkeypatch, tmp_path):
    settings = {"goal_form": "open", "goal_conditioned": True, "total_timesteps": 4 * 8 * 6}
    roomy, _, roomy_lines = train(monkeypatch, ToyWorld(), tmp_path, "roomy", Chatty(), **settings)
    monkeypatch.setattr(goals.scene_tables, "GOAL_CAPACITY", 32)
    settings["store"] = str(tmp_path / "other.sqlite")
    grown, state, grown_lines = train(
        monkeypatch, ToyWorld(), tmp_path, "grown", Chatty(), **settings
    )
    words = state.achieved.shape[1] // 32
    assert grown["goals"] == roomy["goals"] > 32 and state.replay.last.goals.shape[-1] == words
    assert state.replay.steps.inputs.goals.shape[-1] == words
    for a, b in zip(roomy_lines, grown_lines, strict=True):
        assert a["success_rates"] == b["success_rates"] and a["scenes"] == b["scenes"]
        np.testing.assert_allclose(a["td_loss"], b["td_loss"], rtol=1e-4)


def test_the_papers_network_learns_without_clipped_gradients(monkeypatch, tmp_path):
    paper = {**ellm_dqn.PRESETS["paper"], "total_timesteps": 4 * 8 * 4, "buffer_size": 1000}
    kept = ("network", "adam_eps", "max_grad_norm", "policy_temperature", "munchausen")
    fields = {name: paper[name] for name in (*kept, "total_timesteps", "buffer_size")}
    fields |= {"goal_source": "oracle", "goal_conditioned": True, "text_observation": "facts"}
    _, state, lines = train(monkeypatch, PictureWorld(), tmp_path, "run", **fields)
    layers = state.params["params"]
    assert not any("LayerNorm" in name for name in (*layers, *layers["PaperTorso_0"]))
    heads = [name for name in layers if name.startswith("Dense")]
    assert len(heads) == 6 and lines[-1]["td_loss"] > 0
    chex.assert_tree_all_finite(state.params)


@pytest.mark.parametrize("ends", [False, True])
def test_rewards_are_clipped_and_the_time_limit_ends_if_asked(tmp_path, ends):
    args = make_args(
        ellm_dqn, tmp_path, "run", goal_source="none", reward_clip=0.5, time_limit_ends=ends
    )
    setup, tables, state, rollout = begin(args, TaleWorld())
    for _ in range(2):
        state, rollout, _ = ellm_dqn.collect(setup, tables, state, rollout)
        state, _ = ellm_dqn.update(setup, tables, state, rollout)
    steps, cut = state.replay.steps, np.asarray(rollout.truncated).T
    assert cut.any() and np.abs(np.asarray(rollout.rewards)).max() > 1
    assert np.abs(np.asarray(steps.rewards)).max() == 0.5
    last = np.asarray(steps.terminated)[:, 8:16], np.asarray(steps.truncated)[:, 8:16]
    assert last[0][cut].all() == ends and last[1][cut].any() != ends


def test_nothing_is_learned_before_the_start(monkeypatch, tmp_path):
    fields = {"goal_source": "none", "total_timesteps": 4 * 8 * 4, "learning_starts": 4 * 8 * 3}
    _, state, lines = train(monkeypatch, ToyWorld(), tmp_path, "run", **fields)
    assert [line["td_loss"] > 0 for line in lines] == [False, False, True, True]
    chex.assert_tree_all_finite(state.params)


def test_evaluation_and_film_are_there(monkeypatch, tmp_path):
    fields = {"goal_source": "oracle", "total_timesteps": 64, "evaluate_episodes": 3}
    summary, _, _ = train(monkeypatch, ToyWorld(), tmp_path, "run", **fields)
    assert summary["evaluation"]["episodes"] == 3
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files >= {"config.json", "metrics.jsonl", "summary.json", "checkpoints"}
    assert files >= {"film.gif", "curve.png"}
    args, world = make_args(ellm_dqn, tmp_path, "run", **fields), ToyWorld()
    service = GoalService(world, args, seed=args.seed)
    service.prepare()
    policy = Policy(ellm_dqn.make_setup(args, world), ellm_dqn.act)
    params = load_state(args, world, ellm_dqn).params
    again = [play(policy, service, params, 3, jax.random.key(5))[0] for _ in range(2)]
    assert again[0] == again[1]


# Input


def test_every_argument_of_the_algorithm_is_read():
    tree = ast.parse(Path(ellm_dqn.__file__).read_text(encoding="utf-8"))
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    read = {node.attr for node in nodes if isinstance(node.ctx, ast.Load)}
    groups = (RunArgs, WorldArgs, GoalArgs)
    of_groups = {field.name for group in groups for field in dataclasses.fields(group)}
    assert {field.name for field in dataclasses.fields(ellm_dqn.Args)} - of_groups <= read


def test_preset_is_the_papers_and_yields_to_what_is_given():
    def given(*argv):
        return parse(ellm_dqn.Args, lambda args: ellm_dqn.PRESETS[args.preset], argv)

    paper = given("--preset", "paper", "--num-envs", "16")
    expected = {
        "learning_rate": 6.25e-5,
        "sample_size": 64,
        "train_frequency": 4,
        "target_network_frequency": 8000,
        "n_step": 3,
    }
    expected |= {
        "gamma": 0.99,
        "start_e": 1.0,
        "end_e": 0.01,
        "learning_starts": 5000,
        "total_timesteps": 5_000_000,
    }
    expected |= {
        "buffer_size": 5_000_000,
        "hidden_size": 512,
        "observation": "frames",
        "num_envs": 16,
        "seed": 1,
    }
    expected |= {"policy_temperature": 0.0, "munchausen": 0.0, "max_grad_norm": 0.0}
    expected |= {"adam_eps": 1e-8, "reward_clip": 1.0, "evaluation_e": 0.001}
    expected |= {"time_limit_ends": True, "network": "paper"}
    assert {name: getattr(paper, name) for name in expected} == expected
    assert paper.exploration_fraction * paper.total_timesteps == 1_000_000
    assert given() == ellm_dqn.Args()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train_frequency": 7}, "--train-frequency 7"),
        ({"train_frequency": 16, "target_network_frequency": 24}, "--target-network-frequency 24"),
        ({"total_timesteps": 10}, "--total-timesteps 10"),
        ({"buffer_size": 40}, "--buffer-size 40"),
        ({"policy_temperature": 0.0}, "--munchausen 0.9"),
        ({"env": "nowhere"}, "crafter"),
    ],
)
def test_bad_input_is_one_clear_error_and_leaves_nothing(tmp_path, fields, message):
    args = make_args(ellm_dqn, tmp_path, "run", **{"llm": "toy-model", "prompt": None, **fields})
    with pytest.raises(UserError, match=message) as error:
        ellm_dqn.main(args)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()

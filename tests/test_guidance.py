"""Rewards on the way to goals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ellm_dqn
import ellm_ppo
from goals.arguments import GoalArgs
from goals.guidance import GoalHead, check_guide, find_guide, guide_rewards, make_goal_head
from goals.service import GoalService
from lab.errors import UserError
from tests.toy.world import LENGTH, ToyWorld
from tests.training import assert_equal_trees, train, train_with_a_break
from worlds.crafter.world import Crafter
from worlds.frames import FrameStack
from worlds.housekeep.world import Housekeep
from worlds.world import Guide

GAMMA = 0.9


def guides(nearness, found):
    nearness, found = jnp.asarray(nearness), jnp.asarray(found)
    nothing = jnp.zeros((*nearness.shape, 0))
    return Guide(nothing, nothing.astype(bool), nearness, found)


def rewards(args, steps, following, last, terminated, truncated):
    ends = jnp.asarray(terminated), jnp.asarray(truncated)
    return guide_rewards(args, GAMMA, steps, following, last, *ends)


def test_nearness_is_paid_as_a_potential_so_that_ways_round_gain_nothing():
    """Discounted and summed over an episode they come to the same, whatever is done."""
    args = GoalArgs(approach_coef=2.0)
    nearness = np.random.default_rng(0).random((5, 3), np.float32)
    steps = guides(nearness, np.zeros((5, 3), np.float32))
    zeros, no = guides(jnp.zeros(3), jnp.zeros(3)), np.zeros((5, 3), bool)
    over = no.copy()
    over[-1] = True
    paid = rewards(args, steps, zeros, zeros, over, no)
    total = (GAMMA ** np.arange(5)[:, None] * paid).sum(0)
    np.testing.assert_allclose(total, -2.0 * nearness[0], atol=1e-6)


def test_an_episode_that_is_cut_is_worth_what_it_came_near_to():
    args = GoalArgs(approach_coef=1.0, discovery_coef=0.5)
    steps = guides([[0.5], [0.25]], [[3.0], [0.0]])
    following, last = guides([1.0], [2.0]), guides([0.75], [4.0])
    paid = rewards(args, steps, following, last, [[False], [False]], [[True], [False]])
    expected = [[GAMMA * 0.75 - 0.5 + 0.5], [GAMMA * 1.0 - 0.25 + 0.5 * 2.0]]
    np.testing.assert_allclose(paid, expected, atol=1e-6)
    paid = rewards(args, steps, following, last, [[True], [False]], [[False], [False]])
    np.testing.assert_allclose(paid[0], [-0.5], atol=1e-6)


@pytest.mark.parametrize("script", [ellm_ppo, ellm_dqn])
def test_what_was_reached_already_is_wrong(script, tmp_path):
    world = Housekeep("3")
    args = GoalArgs(goal_source="oracle", store=str(tmp_path / "store.sqlite"))
    service = GoalService(world, args)
    service.prepare()
    suggested = jnp.zeros((1, service.num_goals), bool).at[0, 1].set(True)
    achieved, paid = jnp.zeros_like(suggested), []
    for caption in (1, 0, 1, 2):
        step, achieved = script.reward_step(
            service.tables, 0.99, suggested, achieved, jnp.array([caption]), -0.1
        )
        paid.append(float(step[0]))
    service.close()
    np.testing.assert_allclose(paid, [1.0, 0.0, -0.1, -0.1], atol=1e-6)


def test_the_guide_is_of_the_captions_that_goals_match(tmp_path):
    world = Housekeep("3")
    args = GoalArgs(goal_source="oracle", goal_view=True, store=str(tmp_path / "store.sqlite"))
    service = GoalService(world, args)
    service.prepare()
    start = jnp.array(world.house.start)
    state = world.reset(None).replace(seen_in=start, first_in=start)
    goals = jnp.zeros((1, service.num_goals), bool).at[0, 1 + 2].set(True)
    states = jax.tree.map(lambda x: x[None], state)
    guide = find_guide(args, world, service.tables, states, goals)
    where = np.flatnonzero(guide.view[0, : len(world.house.receptacles)])
    assert where.tolist() == [start[2]]
    assert 0 < guide.nearness[0] <= 1
    service.close()


def test_a_world_that_cannot_guide_says_so():
    args = GoalArgs(approach_coef=1.0)
    with pytest.raises(UserError, match="^world toy does not tell where goals are: give --no-goal"):
        check_guide(args, ToyWorld())
    with pytest.raises(UserError, match="world toy does not tell where goals are"):
        check_guide(args, FrameStack(ToyWorld()))
    check_guide(args, FrameStack(Housekeep()))
    check_guide(GoalArgs(approach_coef=1.0, goal_source="none"), ToyWorld())
    check_guide(GoalArgs(), ToyWorld())
    with pytest.raises(UserError, match="^world crafter counts no finds: give --discovery-coef 0"):
        check_guide(GoalArgs(discovery_coef=0.1), Crafter())
    check_guide(GoalArgs(goal_view=True, goal_head="faced", approach_coef=0.1), Crafter())
    for source in ("none", "novelty-paper"):
        args = GoalArgs(goal_source=source, goal_head="verbs")
        with pytest.raises(UserError, match=f"--goal-head verbs needs .*{source} has none"):
            check_guide(args, Crafter())


# THE HEAD
class GuidedToy(ToyWorld):
    """The toy, which tells what its actions are called and in which cell one has to stand."""

    counts_finds = True

    def guide(self, state, named):
        places, caption = jnp.array([0, LENGTH - 1]), jnp.array([0, 0, 1, 2])
        is_wanted = named[1:3]
        view = jax.nn.one_hot(places, LENGTH) * is_wanted[:, None]
        is_here = is_wanted & (state.position == places)
        acts = jnp.stack([named[caption], jnp.concatenate([jnp.zeros(2, bool), is_here])], -1)
        return Guide(view.ravel(), acts, is_here.any().astype(jnp.float32), jnp.float32(0))


def test_the_head_adds_its_gains_where_goals_name_actions():
    head = GoalHead((0, 1, 1), reads_faced=True)
    acts = jnp.array([[[1, 0], [1, 1], [0, 0]], [[0, 0], [1, 0], [1, 1]]], bool)
    features = jnp.array([[1.0, 0.0], [0.0, 2.0]])
    params = head.init(jax.random.key(0), features, acts)
    kernel = jnp.array([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])  # alpha, beta of two verbs
    params["params"]["Dense_0"] |= {"kernel": kernel, "bias": jnp.array([0.0, 0.0, 0.0, 0.5])}
    added = head.apply(params, features, acts)
    np.testing.assert_allclose(added, [[1.0, 3.0 + 4.5, 0.0], [0.0, 14.0, 14.0 + 16.5]])
    shared = GoalHead((0, 0, 0), reads_faced=False)
    params = shared.init(jax.random.key(0), features, acts)
    assert params["params"]["Dense_0"]["kernel"].shape == (2, 1)
    added = np.array(shared.apply(params, features, acts))
    assert added[0, 0] == added[0, 1] != 0 == added[0, 2]


def test_heads_by_their_names():
    world = Crafter()
    assert make_goal_head(GoalArgs(), world) is None
    assert make_goal_head(GoalArgs(goal_head="verbs", goal_source="none"), world) is None
    named, faced, verbs = (
        make_goal_head(GoalArgs(goal_head=kind), world) for kind in ("named", "faced", "verbs")
    )
    assert set(named.verbs) == set(faced.verbs) == {0}
    assert (named.reads_faced, faced.reads_faced, verbs.reads_faced) == (False, True, True)
    number = dict(zip(world.actions, verbs.verbs, strict=True))
    assert number["mine stone"] == number["mine coal"] != number["place stone"]
    assert len(set(verbs.verbs)) == max(verbs.verbs) + 1 == 10  # do, move, sleep, seven verbs


@pytest.mark.parametrize("script", [ellm_ppo, ellm_dqn])
def test_a_run_with_a_head_resumes_bit_for_bit(monkeypatch, tmp_path, script):
    fields = {"goal_source": "oracle", "goal_head": "verbs", "goal_view": True}
    fields |= {"script": script, "total_timesteps": 256, "checkpoint_every": 1}
    run = monkeypatch, GuidedToy(), tmp_path
    _, whole, lines = train(*run, "whole", **fields)
    _, resumed, resumed_lines = train_with_a_break(*run, "broken", **fields)
    assert_equal_trees(whole.params, resumed.params)
    assert lines == resumed_lines
    gains = whole.params["params"]["goal_head"]["Dense_0"]["bias"]
    assert np.abs(np.array(gains)).max() > 0, "the head learns"


def test_what_the_replay_holds_of_goals_comes_back(tmp_path):
    args = ellm_dqn.Args(goal_source="oracle", goal_head="faced", store=str(tmp_path / "s.sqlite"))
    setup = ellm_dqn.make_setup(args, Crafter())
    rng = np.random.default_rng(0)
    acts = jnp.array(rng.random((3, len(setup.world.actions), 2)) < 0.5)
    empty = jnp.zeros((3, 0))
    inputs = ellm_dqn.PolicyInput(
        observation=jnp.zeros((3, *setup.world.observation_shape)),
        captions_so_far=jnp.zeros((3, len(setup.world.captions)), bool),
        text=empty,
        goals=empty,
        goal_view=empty,
        goal_acts=acts,
    )
    packed = ellm_dqn.pack_input(setup, inputs)
    assert packed.goal_acts.dtype == jnp.uint8 and packed.goal_acts.size < acts.size / 7
    assert (ellm_dqn.unpack_input(setup, packed).goal_acts == acts).all()

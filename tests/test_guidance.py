"""Rewards on the way to goals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ellm_dqn
import ellm_ppo
from goals.arguments import GoalArgs
from goals.guidance import check_guide, find_guide, guide_rewards
from goals.service import GoalService
from lab.errors import UserError
from tests.toy.world import ToyWorld
from worlds.frames import FrameStack
from worlds.housekeep.world import Housekeep
from worlds.world import Guide

GAMMA = 0.9


def guides(nearness, found):
    nearness, found = jnp.asarray(nearness), jnp.asarray(found)
    return Guide(jnp.zeros((*nearness.shape, 0)), nearness, found)


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

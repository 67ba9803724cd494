"""The replay: numbers by hand, and plain Python that keeps lists of all that ever happened."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from lab.replay import (
    add,
    can_sample,
    empty_replay,
    gather_observations,
    n_step_returns,
    sample_sequences,
    sample_transitions,
)

NUM_ENVS, NUM_STEPS, LENGTH, LIMIT = 3, 4, 18, 5  # N, T, L, and the time limit of an episode


@struct.dataclass
class Inputs:
    """A frame that tells env, episode and time, words, and an input that is switched off."""

    observation: jax.Array
    words: jax.Array
    nothing: jax.Array


@dataclasses.dataclass(frozen=True)
class Frames:
    """What the replay asks of a world."""

    history: int

    def unpack_observation(self, packed):
        return jnp.moveaxis(packed, -2, -1)


class Tale:
    """Episodes of N envs that end at their own time or at the limit, told step by step."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.told = [[] for _ in range(NUM_ENVS)]  # of each env: one dict a step
        self.episode, self.time = np.zeros(NUM_ENVS, int), np.zeros(NUM_ENVS, int)

    def inputs(self, n, episode, time):
        frame = np.asarray([n, episode, time], np.uint8)
        return Inputs(frame, np.asarray([100 * episode + time], np.uint32), np.zeros(0, bool))

    def tell(self) -> dict:
        """Return the next T steps as `add` takes them."""
        last = [self.inputs(n, 0, 0) for n in range(NUM_ENVS)]
        for _ in range(NUM_STEPS):
            for n in range(NUM_ENVS):
                before = self.inputs(n, self.episode[n], self.time[n])
                terminated = bool(self.rng.random() < 0.1)
                truncated = self.time[n] + 1 == LIMIT and not terminated
                after = self.inputs(n, self.episode[n], self.time[n] + 1)
                if truncated:
                    last[n] = after
                step = {
                    "inputs": before,
                    "after": after,
                    "actions": np.int32(len(self.told[n]) * NUM_ENVS + n),
                    "rewards": np.float32(self.rng.integers(-8, 8)),
                    "terminated": terminated,
                    "truncated": truncated,
                }
                self.told[n].append(step)
                done = terminated or truncated
                self.episode[n] += done
                self.time[n] = 0 if done else self.time[n] + 1

        def stack(name):
            rows = [[env[t][name] for env in self.told] for t in range(-NUM_STEPS, 0)]
            rows = [jax.tree.map(lambda *x: np.stack(x), *row) for row in rows]
            return jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *rows)

        names = ("inputs", "actions", "rewards", "terminated", "truncated")
        told = {name: stack(name) for name in names}
        return told | {"last": jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *last)}

    def step(self, action) -> tuple[list[dict], int]:
        """Return the steps of the env that took this action, and which of them it was."""
        return self.told[int(action) % NUM_ENVS], int(action) // NUM_ENVS


def begin(num_steps: int = LENGTH):
    zero = Inputs(
        jnp.zeros((NUM_ENVS, 3), jnp.uint8),
        jnp.zeros((NUM_ENVS, 1), jnp.uint32),
        jnp.zeros((NUM_ENVS, 0), bool),
    )
    return empty_replay(zero, num_steps, LIMIT)


@partial(jax.jit, donate_argnums=0)
def remember(replay, told):
    return add(replay, **told)


def at(tree, *place):
    return jax.tree.map(lambda x: x[place], tree)


def stacked(inputs: Inputs, history: int) -> list[list[int]]:
    """Return the frames up to these inputs, newest last, none from before the episode's first."""
    env, episode, time = (int(x) for x in inputs.observation)
    times = [max(time - age, 0) for age in range(history - 1, -1, -1)]
    return [[env] * history, [episode] * history, times]


# Numbers by hand


def test_returns_by_hand_stop_where_the_episode_ends():
    rewards = jnp.asarray([[1.0, 2.0, 4.0]] * 5)
    terminated = jnp.asarray([[0, 0, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 1]], bool)
    truncated = jnp.asarray([[0, 0, 0], [0, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 0]], bool)
    returns, discounts, steps, cut = n_step_returns(rewards, terminated, truncated, 0.5)
    assert returns.tolist() == [3.0, 2.0, 2.0, 1.0, 3.0]
    assert discounts.tolist() == [0.125, 0.0, 0.25, 0.0, 0.0]
    assert steps.tolist() == [3, 2, 2, 1, 3] and cut.tolist() == [False, False, True, False, False]


def test_observations_by_hand_do_not_reach_back_into_another_episode():
    packed = jnp.arange(6)[None].repeat(4, 0)[..., None]
    done = jnp.zeros((4, 6), bool).at[1, 1].set(True).at[2, 2].set(True).at[3, 3].set(True)
    observations = gather_observations(Frames(3), packed, done, jnp.asarray([3, 3, 3, 3]))
    assert observations[:, 0].tolist() == [[1, 2, 3], [2, 2, 3], [3, 3, 3], [1, 2, 3]]


# Against plain Python


def test_replay_holds_the_newest_steps_in_order_and_the_states_that_were_cut():
    tale, replay = Tale(0), begin()
    num_last = replay.last.words.shape[1]
    for _ in range(12):
        replay = remember(replay, tale.tell())
        held = jax.device_get(replay)
        for n, told in enumerate(tale.told):
            assert held.added == len(told)
            cuts = [i for i, step in enumerate(told) if step["truncated"]]
            assert held.cuts[n] == len(cuts)
            for i, step in list(enumerate(told))[-LENGTH:]:
                found = at(held.steps, n, i % LENGTH)
                for name in ("actions", "rewards", "terminated", "truncated"):
                    assert getattr(found, name) == step[name]
                jax.tree.map(np.testing.assert_array_equal, found.inputs, step["inputs"])
                if step["truncated"]:
                    env, place = divmod(int(found.place), num_last)
                    assert env == n
                    last = at(held.last, env, place)
                    jax.tree.map(np.testing.assert_array_equal, last, step["after"])
    assert held.added > 2 * LENGTH and held.cuts.max() > num_last


@pytest.mark.parametrize("rounds", [1, 3, 4, 9], ids=["few", "some", "full", "wrapped"])
def test_sequences_are_those_that_the_key_draws(rounds):
    """Say again which numbers are drawn: a run must draw the same ones for ever."""
    tale, replay, length = Tale(1), begin(16), 4
    for _ in range(rounds):
        replay = remember(replay, tale.tell())
    sample = jax.jit(sample_sequences, static_argnums=(2, 3))
    for seed in range(3):
        drawn = sample(replay, jax.random.key(seed), 32, length)
        rest, start_key = jax.random.split(jax.random.key(seed))
        _, env_key = jax.random.split(rest)
        total = rounds * NUM_STEPS
        held = min(total, 16)
        starts = jax.random.randint(start_key, (32,), 0, held - length + 1)
        envs = jax.random.randint(env_key, (32,), 0, NUM_ENVS)
        for b, (start, n) in enumerate(zip(starts.tolist(), envs.tolist(), strict=True)):
            first = total - held + start
            steps = tale.told[n][first : first + length]
            assert drawn.actions[b].tolist() == [step["actions"] for step in steps]
            assert drawn.inputs.words[b, :, 0].tolist() == [step["inputs"].words for step in steps]


def test_every_sequence_is_drawn_equally_often():
    tale, replay = Tale(2), begin(8)
    for _ in range(5):
        replay = remember(replay, tale.tell())
    drawn = np.asarray(sample_sequences(replay, jax.random.key(0), 6000, 3).actions)
    firsts, counts = np.unique(drawn[:, 0], return_counts=True)
    assert firsts.tolist() == list(range(12 * NUM_ENVS, 18 * NUM_ENVS))
    assert (np.diff(drawn, axis=1) == NUM_ENVS).all()
    assert np.abs(counts - 6000 / 18).max() < 5 * np.sqrt(6000 / 18)


@pytest.mark.parametrize("history", [1, 3])
@pytest.mark.parametrize("n_step", [1, 3])
def test_transitions_equal_plain_python(history, n_step):
    world, tale, replay, gamma = Frames(history), Tale(3), begin(), 0.5
    sample = jax.jit(partial(sample_transitions, world), static_argnums=(2, 3, 4))
    kinds = set()
    for seed in range(14):
        replay = remember(replay, tale.tell())
        if not can_sample(replay, history + n_step):
            continue
        drawn = jax.device_get(sample(replay, jax.random.key(seed), 64, n_step, gamma))
        for b in range(64):
            told, first = tale.step(drawn.actions[b])
            end, value = first, 0.0
            while end < first + n_step:
                value += gamma ** (end - first) * told[end]["rewards"]
                end += 1
                if told[end - 1]["terminated"] or told[end - 1]["truncated"]:
                    break
            step = told[end - 1]
            assert drawn.returns[b] == value
            assert drawn.discounts[b] == (0.0 if step["terminated"] else gamma ** (end - first))
            before = told[first]["inputs"]
            assert drawn.inputs.observation[b].tolist() == stacked(before, history)
            assert drawn.inputs.words[b] == before.words and not drawn.inputs.nothing.size
            kinds.add((step["terminated"], step["truncated"]))
            if not step["terminated"]:
                after = step["after"]
                found = drawn.next_inputs
                assert found.observation[b].tolist() == stacked(after, history)
                assert found.words[b] == after.words
    assert kinds == {(True, False), (False, True), (False, False)}


def test_there_is_nothing_to_sample_before_there_are_enough_steps():
    tale, replay = Tale(4), begin()
    enough = []
    for _ in range(3):
        enough.append([bool(can_sample(replay, length)) for length in (1, 4, 5, 8)])
        replay = remember(replay, tale.tell())
    assert enough == [[False] * 4, [True, True, False, False], [True] * 4]


# Memory


def test_arrays_stay_where_they_are():
    tale, replay = Tale(5), begin()
    places, told = [], [tale.tell() for _ in range(8)]
    for steps in told:
        replay = remember(replay, steps)
        leaves = jax.tree.leaves((replay.steps, replay.last))
        places.append([leaf.unsafe_buffer_pointer() for leaf in leaves if leaf.size])
    assert places[1:] == places[:1] * 7


def test_rollout_longer_than_the_replay_is_an_error():
    tale, replay = Tale(6), begin(NUM_STEPS - 1)
    with pytest.raises(AssertionError):
        add(replay, **tale.tell())

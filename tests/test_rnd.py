"""RND and NovelD against plain numpy, what they read against a plain loop, exact resumption."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from baselines import dqn, dqn_rnd, ppo, ppo_rnd
from bonuses import noveld, rnd
from bonuses.bonus import Moves, Seen
from goals.tables import embed_facts, lookup
from lab.errors import UserError
from tests.toy.world import PictureWorld, ToyWorld
from tests.training import (
    assert_equal_trees,
    count_programs,
    make_args,
    open_script,
    train,
    train_with_a_break,
)
from worlds.frames import FrameStack

SCRIPTS = {"ppo": ppo_rnd, "dqn": dqn_rnd}
RND_METRICS = {"rnd_loss", "bonus_mean", "bonus_std", "bonus_scale"}
reward = jax.jit(lambda bonus, *inputs: bonus.reward(*inputs), static_argnums=0)
NOT_DONE = np.zeros((8, 4), bool)


@dataclasses.dataclass(frozen=True)
class TellingWorld(ToyWorld):
    """The observation tells the moment and the end too, so that no state is mistaken for another.

    Any open at the door ends the episode.
    """

    max_episode_steps: int = 8

    def step(self, key, state, action):
        return super().step(key, state.replace(has_key=state.has_key | (action == 3)), action)

    def observe(self, state):
        moment = jnp.stack([state.open, state.timestep / self.max_episode_steps])
        return jnp.concatenate([super().observe(state), moment.astype(jnp.float32)])


@dataclasses.dataclass(frozen=True)
class GreyWorld(ToyWorld):
    """Grey pictures, for stacks of them."""

    observation_shape: ClassVar[tuple[int, ...]] = (36, 36)

    def observe(self, state):
        return jnp.zeros((36, 36), jnp.uint8).at[:, state.position * 9].set(255)


def begin(script, world, folder, **fields):
    """Return setup, service, state and an empty rollout before the first step."""
    args = make_args(script, folder, "begin", **fields)
    setup, service = open_script(script, args, world)
    state = script.init_state(setup, service.tables)
    return setup, service, state, script.empty_rollout(setup, service.tables, state)


def flat(tree):
    return jax.tree.map(
        lambda x: np.asarray(x).reshape(x.shape[0] * x.shape[1], *x.shape[2:]), tree
    )


def rnd_of(bonus):
    """Return what RND knows, also below NovelD."""
    return getattr(bonus, "rnd", bonus)


# The bonus against plain numpy


def test_running_statistics_equal_numpy_over_batches():
    rng, seen = np.random.default_rng(0), []
    statistics = rnd.no_statistics(3)
    for size in (40, 1, 300, 7):
        values = rng.normal([0, 5, 100], [1, 0.01, 20], (size, 3)).astype(np.float32)
        values[:, 1] = 5.0 if size == 40 else values[:, 1]
        seen.append(values)
        statistics = jax.jit(rnd.add_to_statistics)(statistics, jnp.asarray(values))
        both = np.concatenate(seen).astype(np.float64)
        assert float(statistics.count) == len(both)
        np.testing.assert_allclose(statistics.mean, both.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(statistics.variance, both.var(0), rtol=1e-4, atol=1e-7)


def plain_embedding(params, x):
    """Apply dense layers in numpy: leaky rectifier after the first, none after the last."""
    layers = [params["params"][f"Dense_{i}"] for i in range(len(params["params"]))]
    for number, layer in enumerate(jax.tree.map(np.asarray, layers)):
        x = x @ layer["kernel"] + layer["bias"]
        if number < len(layers) - 1:
            x = np.where(x > 0, x, (0.2 if number == 0 else 0.0) * x)
    return x


class PlainBonus:
    """The bonus in plain numpy: it keeps all that it saw, and a set of each episode's states."""

    def __init__(self, gamma, alpha=None):
        self.gamma, self.alpha, self.observations, self.returns = gamma, alpha, [], []
        self.running, self.visited = None, {}

    def normalise(self, observations):
        seen = np.concatenate(self.observations).astype(np.float64)
        return (observations - seen.mean(0)) / np.sqrt(seen.var(0) + 1e-8)

    def errors(self, bonus, observations, text):
        x = np.concatenate([np.clip(self.normalise(observations), -5, 5), text], -1)
        return (plain_embedding(bonus.predictor, x) - plain_embedding(bonus.target, x)) ** 2

    def rewards(self, bonus, before, after, done, text_before, text_after):
        """Reward observations before and after steps, [T, N, D]."""
        before, after, done = map(np.asarray, (before, after, done))
        self.observations.append(after.reshape(-1, after.shape[-1]))
        rewards = self.errors(bonus, after, text_after).mean(-1)
        if self.alpha is not None:
            both = ((after, text_after), (before, text_before))
            norms = [np.sqrt(self.errors(bonus, *x).sum(-1)) for x in both]
            self.is_first = np.zeros(done.shape, bool)
            for t, n in np.ndindex(done.shape):
                seen = self.visited.setdefault(n, {before[t, n].tobytes()})
                self.is_first[t, n] = after[t, n].tobytes() not in seen
                seen.add(after[t, n].tobytes())
                if done[t, n]:
                    del self.visited[n]
            rewards = np.maximum(norms[0] - self.alpha * norms[1], 0) * self.is_first
        if self.running is None:
            self.running = np.zeros(done.shape[1])
        for reward in rewards:
            self.running = self.gamma * self.running + reward
            self.returns.extend(self.running)
        self.scale = np.std(self.returns)
        return rewards / self.scale


class Walk:
    """Rollouts of random walks in a heap of observations, seldom far out.

    Episodes have at most 12 steps.
    """

    def __init__(self, num_words, far=0.2):
        self.rng, self.num_words, self.far = np.random.default_rng(0), num_words, far
        self.heap = self.rng.normal(size=(12, 5)).astype(np.float32)
        self.now, self.ages = self.rng.integers(0, 12, 4), np.zeros(4, int)

    def next(self):
        """Return the moves [T, N, ...] of a rollout and where an episode ended [T, N]."""
        before, after = (np.zeros((8, 4, 5), np.float32) for _ in range(2))
        done = np.zeros((8, 4), bool)
        for t in range(8):
            before[t] = self.heap[self.now]
            moves = self.rng.random(4) < 0.6
            self.now = np.where(moves, self.rng.integers(0, 12, 4), self.now)
            self.heap[11, 4] += 30.0 * (self.rng.random() < self.far)
            after[t] = self.heap[self.now]
            self.ages += 1
            done[t] = (self.ages >= 12) | (self.rng.random(4) < 0.1)
            self.ages[done[t]] = 0
            self.now = np.where(done[t], self.rng.integers(0, 12, 4), self.now)
        scenes = self.rng.integers(1, 1 << 7, (2, 8, 4, self.num_words)).astype(np.uint32)
        pairs = zip((before, after), scenes, strict=True)
        return Moves(*(Seen(*map(jnp.asarray, pair)) for pair in pairs)), jnp.asarray(done)


@pytest.mark.parametrize("text", ["none", "facts"])
@pytest.mark.parametrize("with_noveld", [False, True], ids=["rnd", "noveld"])
def test_rewards_equal_plain_numpy_over_rollouts(tmp_path, with_noveld, text):
    fields = {"noveld": with_noveld, "noveld_alpha": 0.7, "text_observation": text, "gamma": 0.9}
    setup, service, state, _ = begin(
        ppo_rnd, ToyWorld(), tmp_path, rnd_learning_rate=1e-3, **fields
    )
    walk = Walk(int(text == "facts"), far=0.0 if with_noveld else 0.2)
    bonus, plain, shares, clipped = (
        state.bonus,
        PlainBonus(0.9, 0.7 if with_noveld else None),
        [],
        0,
    )
    for number in range(6):
        moves, done = walk.next()
        texts = [np.zeros((8, 4, 0))] * 2
        if text == "facts":
            scenes = [seen.scenes.reshape(32, -1) for seen in (moves.before, moves.after)]
            texts = [embed_facts(service.tables, x).reshape(8, 4, -1) for x in scenes]
            assert all(np.linalg.norm(t, axis=-1) == pytest.approx(1, abs=1e-4) for t in texts)
        observations = moves.before.observation, moves.after.observation
        expected = plain.rewards(rnd_of(bonus), *observations, done, *texts)
        noted = moves if with_noveld else moves.after
        key = jax.random.key(number)
        rewards, bonus, metrics = reward(setup.bonus, service.tables, bonus, noted, done, key)
        np.testing.assert_allclose(rewards, expected, rtol=2e-3, atol=1e-4)
        np.testing.assert_allclose(rnd_of(bonus).running_return, plain.running, rtol=1e-3)
        expected = {"mean": expected.mean(), "std": expected.std(), "scale": plain.scale}
        for name, value in expected.items():
            np.testing.assert_allclose(metrics[f"bonus_{name}"], value, rtol=2e-3)
        clipped += (np.abs(plain.normalise(np.asarray(moves.after.observation))) > 5).sum()
        if with_noveld:
            np.testing.assert_allclose(metrics["first_visits"], plain.is_first.mean(), rtol=1e-6)
            shares.append(plain.is_first.mean())
    if with_noveld:
        assert 0.1 < np.mean(shares) < 0.9 and (np.asarray(rewards) > 0).any()
        counts = [len(plain.visited.get(n, ())) and walk.ages[n] + 1 for n in range(4)]
        assert np.asarray(bonus.num_visited).tolist() == counts
    else:
        assert clipped > 0 and set(metrics) == RND_METRICS


def test_a_state_is_as_new_as_its_episode(tmp_path):
    """One env walks a, b, b, a and begins anew at b: staying and going back is no first visit.

    At the end of the episode all is forgotten.
    """
    _, _, state, _ = begin(ppo_rnd, ToyWorld(), tmp_path, noveld=True, num_envs=1)
    states = np.asarray([0, 1, 1, 0, 2, 1, 0, 1, 3])  # the episode ends with the step to the 2
    after = states[1:].copy()
    after[3] = 2
    before = states[:-1].copy()
    before[4] = 1
    rows, no_scenes = np.eye(5, dtype=np.float32), jnp.zeros((8, 1, 0), jnp.uint32)
    moves = Moves(*(Seen(jnp.asarray(rows[x][:, None]), no_scenes) for x in (before, after)))
    done = jnp.asarray(np.arange(8) == 3)[:, None]
    is_first, bonus = noveld.find_first_visits(state.bonus, moves, done)
    #        0-1  1-1    1-0    0-2  | 1-1    1-0   0-1    1-3
    wanted = [True, False, False, True, False, True, False, True]
    assert is_first[:, 0].tolist() == wanted and bonus.num_visited.tolist() == [5]


def test_hashes_tell_observations_apart():
    rng = np.random.default_rng(0)
    shifts = np.arange(0, 12, 4, dtype=np.uint32)[None]
    picture = rng.integers(0, 2, (9, 9, 3), np.uint8)
    for observations in (
        np.concatenate([np.eye(64), 1 - np.eye(64), np.zeros((1, 64))]).astype(np.float32),
        (np.arange(2000, dtype=np.uint32)[:, None] >> shifts) & 15,
        np.stack([np.roll(picture, i, axis) for axis in (0, 1) for i in range(1, 9)]),
    ):
        hashes = np.asarray(noveld.hash_observations(jnp.asarray(observations))).tolist()
        assert len(set(hashes)) == len(observations)


def test_bonus_falls_where_the_agent_was_and_is_high_where_it_was_not(tmp_path):
    setup, service, state, rollout = begin(ppo_rnd, ToyWorld(), tmp_path, rnd_learning_rate=3e-3)
    here = np.zeros((8, 4, 5), np.float32)
    here[..., 0], here[::2, :2, 1] = 1.0, 1.0
    seen = rollout.noted.replace(observation=jnp.asarray(here))
    unseen = jax.tree.map(lambda x: x[:1, :1], rollout.noted)
    unseen = unseen.replace(observation=jnp.asarray([[[0.0, 0.0, 1.0, 0.0, 1.0]]]))
    bonus, losses, errors = state.bonus, [], []
    for number in range(30):
        key = jax.random.key(number)
        _, bonus, metrics = reward(setup.bonus, service.tables, bonus, seen, NOT_DONE, key)
        losses.append(float(metrics["rnd_loss"]))
        found = [setup.bonus.prediction_errors(service.tables, bonus, x)[0] for x in (seen, unseen)]
        errors.append([float(error.max()) for error in found])
    assert losses[-1] < 0.1 * losses[0] and errors[-1][0] < 0.1 * errors[0][0]
    assert errors[-1][1] > 10 * errors[-1][0]


# What the predictor learns


def test_one_gradient_step_is_adams_on_the_squared_error(tmp_path):
    fields = {"rnd_epochs": 1, "rnd_minibatch_size": 32}
    setup, service, state, _ = begin(ppo_rnd, ToyWorld(), tmp_path, **fields)
    (moves, done), bonus = Walk(0).next(), state.bonus
    key = jax.random.key(0)
    _, after, metrics = reward(setup.bonus, service.tables, bonus, moves.after, done, key)
    x = flat(moves.after.observation).astype(np.float64)
    x = np.clip((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-8), -5, 5).astype(np.float32)
    features, nothing = plain_embedding(bonus.target, x), jnp.zeros((32, 0))

    def loss(params):
        return ((rnd.Embedding(128, 16, 2).apply(params, x, nothing) - features) ** 2).mean()

    optimizer, predictor = optax.adam(1e-4), bonus.predictor
    updates, _ = optimizer.update(jax.grad(loss)(predictor), optimizer.init(predictor), predictor)
    expected = optax.apply_updates(predictor, updates)
    pairs = zip(*map(jax.tree.leaves, (after.predictor, expected)), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(metrics["rnd_loss"], loss(predictor), rtol=1e-4)


@pytest.mark.parametrize("learner", SCRIPTS)
def test_predictor_learns_and_target_stays_in_training(monkeypatch, tmp_path, learner):
    """The weight of the bonus is in the policy, or in the replay, and not in the predictor."""
    script, states, fields = SCRIPTS[learner], [], {"total_timesteps": 32}
    if learner == "dqn":
        fields = {"total_timesteps": 64, "learning_starts": 1000}
    for coef in (0.0, 1.0):
        run = f"{coef}", None, script
        _, state, _ = train(monkeypatch, ToyWorld(), tmp_path, *run, intrinsic_coef=coef, **fields)
        states.append(state)
    assert_equal_trees(*(state.bonus for state in states))
    start = begin(script, ToyWorld(), tmp_path)[2].bonus
    assert_equal_trees(start.target, states[1].bonus.target)
    predictors = start.predictor, states[1].bonus.predictor
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), *predictors)))
    learned = [s.params if learner == "ppo" else s.replay.steps.rewards for s in states]
    leaves = zip(*map(jax.tree.leaves, learned), strict=True)
    assert any((np.asarray(a) != b).any() for a, b in leaves)


def test_share_of_the_rollout_that_is_learned_from():
    def minibatches(script=ppo_rnd, **fields):
        args = script.Args(**fields)
        return rnd.RND(args, ToyWorld(), 1, args.num_envs, args.num_steps, 16, 0.9).minibatches

    # 2048 states a pass, however many envs.
    sizes = {32: (4, 512), 16: (2, 512), 1024: (4, 512), 3: (1, 192)}
    assert {n: minibatches(num_envs=n) for n in sizes} == sizes
    assert minibatches(rnd_proportion=0.25) == (1, 512)
    assert minibatches(num_envs=128, rnd_proportion=1.0) == (16, 512)
    assert minibatches(rnd_proportion=0.5, rnd_minibatch_size=300) == (3, 341)
    assert minibatches(dqn_rnd) == (1, 512)


# What the bonus reads


@pytest.mark.parametrize("learner", SCRIPTS)
def test_moves_are_of_the_states_before_and_after_each_action(tmp_path, learner):
    """Step every env in a plain loop by the rollout's actions.

    Fresh states come from the pool in the order of ends.
    """
    script, world = SCRIPTS[learner], TellingWorld()
    fields = {"text_observation": "facts", "noveld": True}
    setup, service, state, buffers = begin(script, world, tmp_path, **fields)
    pool = [
        jax.tree.map(lambda x, i=i: x[i], state.envs.pool[0]) for i in range(setup.envs.pool_size)
    ]
    states = [jax.tree.map(lambda x, n=n: x[n], state.envs.states) for n in range(4)]
    step, see, tell = jax.jit(world.step), jax.jit(world.observe), jax.jit(world.scene)
    taken, terminations, truncations = 0, 0, 0
    for _ in range(6):
        state, buffers, _ = script.collect(setup, service.tables, state, buffers)
        rollout, before, after = jax.device_get(buffers), [], []
        for t, n in np.ndindex(8, 4):
            reached, transition = step(jax.random.key(0), states[n], rollout.actions[t, n])
            before.append((see(states[n]), tell(states[n])))
            after.append((see(reached), tell(reached)))
            assert bool(transition.terminated) == rollout.terminated[t, n]
            assert bool(transition.truncated) == rollout.truncated[t, n]
            terminations += transition.terminated
            truncations += transition.truncated
            if transition.terminated or transition.truncated:
                reached, taken = pool[taken % len(pool)], taken + 1
            states[n] = reached
        for seen, expected in ((rollout.noted.before, before), (rollout.noted.after, after)):
            seen = flat(seen)
            np.testing.assert_array_equal(seen.observation, np.stack([x for x, _ in expected]))
            np.testing.assert_array_equal(seen.scenes, np.stack([x for _, x in expected]))
        state = state.replace(step=jnp.zeros((), jnp.int32))
    assert terminations > 2 and truncations > 2


def test_rollout_is_rewarded_for_the_states_it_led_to(tmp_path):
    """A real rollout earns what plain numpy gives for the observations after the actions."""
    setup, service, state, rollout = begin(ppo_rnd, TellingWorld(), tmp_path)
    bonus, plain = jax.tree.map(jnp.copy, state.bonus), PlainBonus(setup.args.gamma)
    state, rollout, _ = ppo_rnd.collect(setup, service.tables, state, rollout)
    nothing, after = np.zeros((8, 4, 0)), rollout.noted.observation
    expected = plain.rewards(bonus, after, after, NOT_DONE, nothing, nothing)
    _, metrics = ppo_rnd.update(setup, service.tables, state, rollout)
    np.testing.assert_allclose(metrics["reward_per_step"], expected.mean(), rtol=1e-3)
    np.testing.assert_allclose(metrics["bonus_std"], expected.std(), rtol=1e-3)


@pytest.mark.parametrize("learner", SCRIPTS)
def test_collection_that_stops_at_unknown_words_equals_one_that_never_stops(tmp_path, learner):
    """Terminal states, in which no policy acts, are known too when the rollout is full."""
    script, rollouts, ends = SCRIPTS[learner], [], []
    fields = {"text_observation": "caption", "noveld": True}
    for known_before in (False, True):
        setup, service, state, rollout = begin(script, TellingWorld(), tmp_path, **fields)
        if known_before:
            service.know(np.arange(1 << len(ToyWorld.facts), dtype=np.uint32)[:, None])
        stops, bonus = 0, setup.bonus.rnd
        for _ in range(3):
            state, rollout, unknown = script.collect(setup, service.tables, state, rollout)
            while np.asarray(unknown.mask).any():
                service.know(np.asarray(unknown.scenes)[np.asarray(unknown.mask)])
                stops += 1
                state, rollout, unknown = script.collect(setup, service.tables, state, rollout)
            for seen in (rollout.noted.before, rollout.noted.after):
                seen = jax.tree.map(jnp.asarray, flat(seen))
                text = bonus.read(service.tables, state.bonus.rnd.observations, seen)[1]
                assert np.asarray(text).any(-1).all()
                rows = np.asarray(lookup(service.tables.text_rows, seen.scenes))
                embeddings = np.asarray(service.tables.text_embeddings)
                np.testing.assert_array_equal(text, embeddings[rows])
            ends.append(bool(rollout.terminated.any()))
            state = state.replace(step=jnp.zeros((), jnp.int32))
        assert (stops == 0) == known_before
        rollouts.append(jax.device_get(rollout))
    assert_equal_trees(*rollouts)
    assert any(ends)


@pytest.mark.parametrize(
    ("learner", "world", "kernel"),
    [
        ("ppo", PictureWorld(), (8, 8, 3, 32)),
        ("dqn", FrameStack(GreyWorld(), 3), (8, 8, 1, 32)),
    ],
    ids=["ppo-pixels", "dqn-frames"],
)
def test_pictures_are_read_by_convolutions_of_stacked_ones_the_newest(
    monkeypatch, tmp_path, learner, world, kernel
):
    fields = {"total_timesteps": 4 * 8 * 2, "noveld": True, "rnd_features": 8}
    _, state, lines = train(monkeypatch, world, tmp_path, "run", None, SCRIPTS[learner], **fields)
    bonus = state.bonus.rnd
    for params in (bonus.target, bonus.predictor):
        assert params["params"]["Convolution_0"]["kernel"].shape == kernel
    assert bonus.observations.mean.shape == (36, 36, kernel[2])
    columns = np.asarray(bonus.observations.mean).sum((0, 2)) > 0
    assert set(np.flatnonzero(columns)) <= {0, 9, 18, 27} and columns.any()
    assert 0 < lines[-1]["first_visits"] < 1 and lines[-1]["bonus_std"] > 0
    assert all(np.isfinite(line[name]) for line in lines for name in RND_METRICS)


# Ways that must lead to the same result


@pytest.mark.parametrize(
    ("learner", "text"), [("ppo", "facts"), ("dqn", "none"), ("dqn", "caption")]
)
def test_without_the_bonus_it_is_the_plain_baseline_bit_for_bit(
    monkeypatch, tmp_path, learner, text
):
    plain = {"ppo": ppo, "dqn": dqn}[learner]
    fields = {"total_timesteps": 4 * 8 * 6, "text_observation": text}
    _, a, a_lines = train(monkeypatch, ToyWorld(), tmp_path, "plain", None, plain, **fields)
    fields |= {"extrinsic_coef": 1.0, "intrinsic_coef": 0.0, "noveld": text == "facts"}
    script = SCRIPTS[learner]
    _, b, b_lines = train(monkeypatch, ToyWorld(), tmp_path, "rnd", None, script, **fields)
    for field in dataclasses.fields(a):
        assert_equal_trees(*(jax.tree.leaves(getattr(state, field.name)) for state in (a, b)))
    own = RND_METRICS | ({"first_visits"} if text == "facts" else set())
    for x, y in zip(a_lines, b_lines, strict=True):
        assert y.pop("scenes") >= x.pop("scenes")  # the words of terminal states are known here
        assert set(y) - set(x) == own
        assert {name: y[name] for name in x} == x and y["bonus_std"] > 0
    assert len(a_lines) == 6


@pytest.mark.parametrize(("learner", "text"), [("ppo", "none"), ("dqn", "caption")])
def test_resumed_run_ends_where_an_undisturbed_one_ends(monkeypatch, tmp_path, learner, text):
    fields = {"total_timesteps": 4 * 8 * 6, "checkpoint_every": 3, "text_observation": text}
    fields |= {"noveld": True, "rnd_proportion": 0.6}
    first, second = (("whole", None, SCRIPTS[learner]), ("killed", None, SCRIPTS[learner]))
    _, whole, lines = train(monkeypatch, ToyWorld(), tmp_path, *first, **fields)
    _, resumed, resumed_lines = train_with_a_break(
        monkeypatch, ToyWorld(), tmp_path, *second, **fields
    )
    assert_equal_trees(whole, resumed)
    assert lines == resumed_lines and len(lines) == 6
    bonus = whole.bonus.rnd
    assert float(bonus.observations.count) == float(bonus.returns.count) == 4 * 8 * 6


def test_nothing_compiles_after_the_first_updates(monkeypatch, tmp_path):
    fields = {"total_timesteps": 4 * 8 * 8, "noveld": True}
    for name, script in SCRIPTS.items():
        counts = count_programs(monkeypatch, ToyWorld(), tmp_path, name, None, script, **fields)
        assert counts[0] > 0 and counts[2:] == counts[1:2] * 6


# Input


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rnd_proportion": 0.0}, "--rnd-proportion 0.0"),
        ({"rnd_proportion": 1.5}, "--rnd-proportion 1.5"),
        ({"rnd_minibatch_size": 0}, "--rnd-minibatch-size 0"),
    ],
)
@pytest.mark.parametrize("learner", SCRIPTS)
def test_wrong_arguments_are_named(monkeypatch, tmp_path, learner, fields, message):
    with pytest.raises(UserError, match=message):
        train(monkeypatch, ToyWorld(), tmp_path, "wrong", None, SCRIPTS[learner], **fields)
    assert not (tmp_path / "wrong").exists()

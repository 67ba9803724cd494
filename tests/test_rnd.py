"""RND and NovelD: the bonus against plain numpy, what it reads against a plain loop of the world, exactness of the rest."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from baselines import dqn, dqn_rnd, ppo, ppo_rnd
from lab.errors import UserError
from tests.test_ellm_ppo import assert_equal_trees
from tests.toy_world import PictureWorld, ToyWorld
from tests.training import count_programs, make_args, train, train_with_a_break
from worlds.frames import FrameStack

SCRIPTS = {"ppo": ppo_rnd, "dqn": dqn_rnd}
RND_METRICS = {"rnd_loss", "bonus_mean", "bonus_std", "bonus_scale"}
reward_novelty = jax.jit(ppo_rnd.reward_novelty, static_argnums=0)


@dataclasses.dataclass(frozen=True)
class TellingWorld(ToyWorld):
    """The observation tells the moment and the end too, so that no state is mistaken for another; any open at the door ends it."""

    max_episode_steps: int = 8

    def step(self, key, state, action):
        return super().step(key, state.replace(has_key=state.has_key | (action == 3)), action)

    def observe(self, state):
        moment = jnp.stack([state.open, state.timestep / self.max_episode_steps]).astype(jnp.float32)
        return jnp.concatenate([super().observe(state), moment])


@dataclasses.dataclass(frozen=True)
class GreyWorld(ToyWorld):
    """Grey pictures, for stacks of them."""

    def observe(self, state):
        return jnp.zeros((36, 36), jnp.uint8).at[:, state.position * 9].set(255)


def begin(script, world, folder, **fields):
    """Return setup, service, state and collector before the first step."""
    args = make_args(script, folder, "begin", **fields)
    service = script.make_service(args, world)
    service.prepare()
    setup = script.make_setup(args, world, service)
    state = script.init_state(setup, service.tables)
    return setup, service, state, script.empty_collector(setup, state)


def flat(tree):
    return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), tree)


# The bonus against plain numpy


def test_running_statistics_equal_numpy_over_batches():
    rng, seen = np.random.default_rng(0), []
    statistics = ppo_rnd.no_statistics(3)
    for size in (40, 1, 300, 7):
        values = rng.normal([0, 5, 100], [1, 0.01, 20], (size, 3)).astype(np.float32)
        values[:, 1] = 5.0 if size == 40 else values[:, 1]
        seen.append(values)
        statistics = jax.jit(ppo_rnd.add_to_statistics)(statistics, jnp.asarray(values))
        both = np.concatenate(seen).astype(np.float64)
        assert float(statistics.count) == len(both)
        np.testing.assert_allclose(statistics.mean, both.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(statistics.variance, both.var(0), rtol=1e-4, atol=1e-7)


def plain_embedding(params, x):
    """Apply dense layers in numpy: leaky rectifier after the first, none after the last."""
    layers = [jax.tree.map(np.asarray, params["params"][f"Dense_{i}"]) for i in range(len(params["params"]))]
    for number, layer in enumerate(layers):
        x = x @ layer["kernel"] + layer["bias"]
        if number < len(layers) - 1:
            x = np.where(x > 0, x, (0.2 if number == 0 else 0.0) * x)
    return x


class PlainBonus:
    """The bonus in plain numpy: it keeps everything that it has seen, and a set of the states seen in each episode."""

    def __init__(self, gamma, alpha=None):
        self.gamma, self.alpha, self.observations, self.returns = gamma, alpha, [], []
        self.running, self.visited = None, {}

    def normalise(self, observations):
        seen = np.concatenate(self.observations).astype(np.float64)
        return (observations - seen.mean(0)) / np.sqrt(seen.var(0) + 1e-8)

    def errors(self, bonus, observations, text):
        x = np.concatenate([np.clip(self.normalise(observations), -5, 5), text], -1)
        return (plain_embedding(bonus.predictor, x) - plain_embedding(bonus.target, x)) ** 2

    def rewards(self, bonus, rollout, text_before, text_after):
        rollout = jax.device_get(rollout)
        num_steps, num_envs = rollout.actions.shape
        before, after = rollout.before.observation, rollout.after.observation
        self.observations.append(after.reshape(-1, after.shape[-1]))
        rewards = self.errors(bonus, after, text_after).mean(-1)
        if self.alpha is not None:
            norms = [np.sqrt(self.errors(bonus, *x).sum(-1)) for x in ((after, text_after), (before, text_before))]
            self.is_first = np.zeros((num_steps, num_envs), bool)
            for t in range(num_steps):
                for n in range(num_envs):
                    seen = self.visited.setdefault(n, {before[t, n].tobytes()})
                    self.is_first[t, n] = after[t, n].tobytes() not in seen
                    seen.add(after[t, n].tobytes())
                    if rollout.terminated[t, n] or rollout.truncated[t, n]:
                        del self.visited[n]
            rewards = np.maximum(norms[0] - self.alpha * norms[1], 0) * self.is_first
        if self.running is None:
            self.running = np.zeros(num_envs)
        for reward in rewards:
            self.running = self.gamma * self.running + reward
            self.returns.extend(self.running)
        self.scale = np.std(self.returns)
        return rewards / self.scale


class Walk:
    """Rollouts of random walks in a heap of observations, seldom far out, in episodes of at most 12 steps."""

    def __init__(self, rollout, far=0.2):
        self.rng, self.blank, self.far = np.random.default_rng(0), rollout, far
        self.heap = self.rng.normal(size=(12, 5)).astype(np.float32)
        self.now, self.ages = self.rng.integers(0, 12, 4), np.zeros(4, int)

    def next(self):
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
        terminated = done & (self.rng.random((8, 4)) < 0.5)
        scenes = self.rng.integers(1, 1 << 7, (2, 8, 4, self.blank.after.scenes.shape[-1])).astype(np.uint32)
        return self.blank.replace(
            before=ppo_rnd.Moment(jnp.asarray(before), jnp.asarray(scenes[0])),
            after=ppo_rnd.Moment(jnp.asarray(after), jnp.asarray(scenes[1])),
            terminated=jnp.asarray(terminated),
            truncated=jnp.asarray(done & ~terminated),
        )


@pytest.mark.parametrize("text", ["none", "facts"])
@pytest.mark.parametrize("noveld", [False, True], ids=["rnd", "noveld"])
def test_rewards_equal_plain_numpy_over_rollouts(tmp_path, noveld, text):
    fields = {"noveld": noveld, "noveld_alpha": 0.7, "text_observation": text, "gamma": 0.9, "rnd_learning_rate": 1e-3}
    setup, service, state, collector = begin(ppo_rnd, ToyWorld(), tmp_path, **fields)
    walk, plain, bonus = Walk(collector.rollout, far=0.0 if noveld else 0.2), PlainBonus(0.9, 0.7 if noveld else None), state.bonus
    shares, clipped = [], 0
    for number in range(6):
        rollout = walk.next()
        if text == "facts":
            scenes = [moment.scenes.reshape(32, -1) for moment in (rollout.before, rollout.after)]
            texts = [np.asarray(ppo_rnd.embed_facts(service.tables, s)).reshape(8, 4, -1) for s in scenes]
            assert all(np.linalg.norm(t, axis=-1) == pytest.approx(1, abs=1e-4) for t in texts)
        else:
            texts = [np.zeros((8, 4, 0))] * 2
        expected = plain.rewards(bonus, rollout, *texts)
        rewards, bonus, metrics = reward_novelty(setup, service.tables, bonus, rollout, jax.random.key(number))
        np.testing.assert_allclose(rewards, expected, rtol=2e-3, atol=1e-4)
        np.testing.assert_allclose(bonus.running_return, plain.running, rtol=1e-3)
        for name, value in (("mean", expected.mean()), ("std", expected.std()), ("scale", plain.scale)):
            np.testing.assert_allclose(metrics[f"bonus_{name}"], value, rtol=2e-3)
        clipped += (np.abs(plain.normalise(np.asarray(rollout.after.observation))) > 5).sum()
        if noveld:
            np.testing.assert_allclose(metrics["first_visits"], plain.is_first.mean(), rtol=1e-6)
            shares.append(plain.is_first.mean())
    if noveld:
        assert 0.1 < np.mean(shares) < 0.9 and (np.asarray(rewards) > 0).any()
        assert np.asarray(bonus.num_visited).tolist() == [len(plain.visited.get(n, ())) and walk.ages[n] + 1 for n in range(4)]
    else:
        assert clipped > 0 and set(metrics) == RND_METRICS


def test_a_state_is_as_new_as_its_episode(tmp_path):
    """One env walks a, b, b, a and begins anew at b: staying and going back is no first visit, and at the end all is forgotten."""
    _, _, state, collector = begin(ppo_rnd, ToyWorld(), tmp_path, noveld=True, num_envs=1)
    states = np.asarray([0, 1, 1, 0, 2, 1, 0, 1, 3])  # the episode ends with the step that led to the 2
    after = states[1:].copy()
    after[3] = 2
    before = states[:-1].copy()
    before[4] = 1
    rows = np.eye(5, dtype=np.float32)
    rollout = collector.rollout.replace(
        before=ppo_rnd.Moment(jnp.asarray(rows[before][:, None]), collector.rollout.before.scenes),
        after=ppo_rnd.Moment(jnp.asarray(rows[after][:, None]), collector.rollout.after.scenes),
        terminated=jnp.asarray(np.arange(8) == 3)[:, None],
    )
    is_first, bonus = ppo_rnd.find_first_visits(state.bonus, rollout)
    #        0-1  1-1    1-0    0-2  | 1-1    1-0   0-1    1-3
    wanted = [True, False, False, True, False, True, False, True]
    assert is_first[:, 0].tolist() == wanted and bonus.num_visited.tolist() == [5]


def test_hashes_tell_observations_apart():
    rng = np.random.default_rng(0)
    for observations in (
        np.concatenate([np.eye(64), 1 - np.eye(64), np.zeros((1, 64))]).astype(np.float32),
        (np.arange(2000, dtype=np.uint32)[:, None] >> np.arange(0, 12, 4, dtype=np.uint32)[None]) & 15,
        np.stack([np.roll(rng.integers(0, 2, (9, 9, 3), np.uint8), i, axis) for axis in (0, 1) for i in range(1, 9)]),
    ):
        assert len(set(np.asarray(ppo_rnd.hash_observations(jnp.asarray(observations))).tolist())) == len(observations)


def test_bonus_falls_where_the_agent_was_and_is_high_where_it_was_not(tmp_path):
    setup, service, state, collector = begin(ppo_rnd, ToyWorld(), tmp_path, rnd_learning_rate=3e-3)
    seen = np.zeros((8, 4, 5), np.float32)
    seen[..., 0], seen[::2, :2, 1] = 1.0, 1.0
    rollout = collector.rollout.replace(after=collector.rollout.after.replace(observation=jnp.asarray(seen)))
    unseen = jax.tree.map(lambda x: x[:1, :1], rollout.after)
    unseen = unseen.replace(observation=jnp.asarray([[[0.0, 0.0, 1.0, 0.0, 1.0]]]))
    bonus, losses, errors = state.bonus, [], []
    for number in range(30):
        _, bonus, metrics = reward_novelty(setup, service.tables, bonus, rollout, jax.random.key(number))
        losses.append(float(metrics["rnd_loss"]))
        here, there = (ppo_rnd.prediction_errors(setup, service.tables, bonus, x)[0] for x in (rollout.after, unseen))
        errors.append((float(here.max()), float(there.max())))
    assert losses[-1] < 0.1 * losses[0] and errors[-1][0] < 0.1 * errors[0][0]
    assert errors[-1][1] > 10 * errors[-1][0]


# What the predictor learns


def test_one_gradient_step_is_adams_on_the_squared_error(tmp_path):
    setup, service, state, collector = begin(ppo_rnd, ToyWorld(), tmp_path, rnd_epochs=1, rnd_minibatch_size=32)
    rollout, bonus = Walk(collector.rollout).next(), state.bonus
    _, after, metrics = reward_novelty(setup, service.tables, bonus, rollout, jax.random.key(0))
    observations = flat(rollout.after.observation).astype(np.float64)
    x = np.clip((observations - observations.mean(0)) / np.sqrt(observations.var(0) + 1e-8), -5, 5).astype(np.float32)
    features, nothing = plain_embedding(bonus.target, x), jnp.zeros((32, 0))

    def loss(params):
        return ((ppo_rnd.Embedding(128, 16, 2).apply(params, x, nothing) - features) ** 2).mean()

    optimizer = optax.adam(1e-4)
    updates, _ = optimizer.update(jax.grad(loss)(bonus.predictor), optimizer.init(bonus.predictor), bonus.predictor)
    expected = optax.apply_updates(bonus.predictor, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), after.predictor, expected)
    np.testing.assert_allclose(metrics["rnd_loss"], loss(bonus.predictor), rtol=1e-4)


@pytest.mark.parametrize("learner", SCRIPTS)
def test_predictor_learns_and_target_stays_in_training(monkeypatch, tmp_path, learner):
    """After the first rewards the weight of the bonus is in the policy, or in the replay, and not in the predictor."""
    states = []
    for coef in (0.0, 1.0):
        fields = {"total_timesteps": 64, "learning_starts": 1000} if learner == "dqn" else {"total_timesteps": 32}
        _, state, _ = train(monkeypatch, ToyWorld(), tmp_path, f"{coef}", None, SCRIPTS[learner], intrinsic_coef=coef, **fields)
        states.append(state)
    assert_equal_trees(*(state.bonus for state in states))
    start = begin(SCRIPTS[learner], ToyWorld(), tmp_path)[2]
    assert_equal_trees(start.bonus.target, states[1].bonus.target)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), start.bonus.predictor, states[1].bonus.predictor)
    assert all(jax.tree.leaves(moved))
    learned = [state.params if learner == "ppo" else state.replay.buffer.experience.rewards for state in states]
    assert any((np.asarray(a) != b).any() for a, b in zip(*map(jax.tree.leaves, learned), strict=True))


def test_share_of_the_rollout_that_is_learned_from():
    sizes = {32: (4, 512), 16: (2, 512), 1024: (4, 512), 3: (1, 192)}  # 2048 states a pass, however many envs
    assert {n: ppo_rnd.Args(num_envs=n).rnd_minibatches for n in sizes} == sizes
    assert ppo_rnd.Args(rnd_proportion=0.25).rnd_minibatches == (1, 512)
    assert ppo_rnd.Args(num_envs=128, rnd_proportion=1.0).rnd_minibatches == (16, 512)
    assert ppo_rnd.Args(rnd_proportion=0.5, rnd_minibatch_size=300).rnd_minibatches == (3, 341)
    assert dqn_rnd.Args().rnd_minibatches == (1, 512)


# What the bonus reads


@pytest.mark.parametrize("learner", SCRIPTS)
def test_moments_are_of_the_states_before_and_after_each_action(tmp_path, learner):
    """Step every env in a plain loop by the actions that the rollout says; fresh states come from the pool in the order of ends."""
    script, world = SCRIPTS[learner], TellingWorld()
    setup, service, state, collector = begin(script, world, tmp_path, text_observation="facts", noveld=True)
    pool = [jax.tree.map(lambda x, i=i: x[i], state.envs.pool) for i in range(setup.envs.pool_size)]
    states = [jax.tree.map(lambda x, n=n: x[n], state.envs.states) for n in range(4)]
    step, see, tell = jax.jit(world.step), jax.jit(world.observe), jax.jit(world.scene)
    taken, terminations, truncations = 0, 0, 0
    for _ in range(6):
        state, collector, _ = script.collect(setup, service.tables, state, collector)
        rollout, before, after = jax.device_get(collector.rollout), [], []
        for t in range(8):
            for n in range(4):
                reached, transition = step(jax.random.key(0), states[n], rollout.actions[t, n])
                before.append((see(states[n]), tell(states[n])))
                after.append((see(reached), tell(reached)))
                assert bool(transition.terminated) == rollout.terminated[t, n]
                assert bool(transition.truncated) == rollout.truncated[t, n]
                terminations, truncations = terminations + transition.terminated, truncations + transition.truncated
                if transition.terminated or transition.truncated:
                    reached, taken = pool[taken % len(pool)], taken + 1
                states[n] = reached
        for moments, expected in ((rollout.before, before), (rollout.after, after)):
            moments = flat(moments)
            np.testing.assert_array_equal(moments.observation, np.stack([observation for observation, _ in expected]))
            np.testing.assert_array_equal(moments.scenes, np.stack([scenes for _, scenes in expected]))
        collector = collector.replace(step=jnp.zeros((), jnp.int32))
    assert terminations > 2 and truncations > 2


def test_rollout_is_rewarded_for_the_states_it_led_to(tmp_path):
    """What a real rollout earns is what plain numpy gives for the observations after the actions."""
    setup, service, state, collector = begin(ppo_rnd, TellingWorld(), tmp_path)
    bonus, plain = jax.tree.map(jnp.copy, state.bonus), PlainBonus(setup.args.gamma)
    state, collector, _ = ppo_rnd.collect(setup, service.tables, state, collector)
    nothing = np.zeros((8, 4, 0))
    expected = plain.rewards(bonus, collector.rollout, nothing, nothing)
    _, _, metrics = ppo_rnd.update(setup, service.tables, state, collector)
    np.testing.assert_allclose(metrics["reward_per_step"], expected.mean(), rtol=1e-3)
    np.testing.assert_allclose(metrics["bonus_std"], expected.std(), rtol=1e-3)


@pytest.mark.parametrize("learner", SCRIPTS)
def test_collection_that_stops_at_unknown_words_equals_one_that_never_stops(tmp_path, learner):
    """Terminal states, in which no policy acts, are known too when the rollout is full."""
    script, rollouts, ends = SCRIPTS[learner], [], []
    for known_before in (False, True):
        setup, service, state, collector = begin(script, TellingWorld(), tmp_path, text_observation="caption", noveld=True)
        if known_before:
            service.resolve(np.arange(1 << len(ToyWorld.facts), dtype=np.uint32)[:, None])
        tables, stops = service.tables, 0
        for _ in range(3):
            state, collector, unknown = script.collect(setup, tables, state, collector)
            while int(unknown.count):
                tables, stops = script.resolve(service, unknown), stops + 1
                state, collector, unknown = script.collect(setup, tables, state, collector)
            for moments in (collector.rollout.before, collector.rollout.after):
                flattened = jax.tree.map(jnp.asarray, flat(moments))
                text = np.asarray(script.read_moments(setup, tables, state.bonus.observations, flattened)[1])
                assert text.any(-1).all()
                rows = np.asarray(script.lookup(tables.text_rows, flattened.scenes))
                np.testing.assert_array_equal(text, np.asarray(tables.text_embeddings)[rows])
            ends.append(bool(collector.rollout.terminated.any()))
            collector = collector.replace(step=jnp.zeros((), jnp.int32))
        assert (stops == 0) == known_before
        rollouts.append(jax.device_get(collector.rollout))
    assert_equal_trees(*rollouts)
    assert any(ends)


@pytest.mark.parametrize(
    ("learner", "world", "kernel"),
    [("ppo", PictureWorld(), (8, 8, 3, 32)), ("dqn", FrameStack(GreyWorld(), 3), (8, 8, 1, 32))],
    ids=["ppo-pixels", "dqn-frames"],
)
def test_pictures_are_read_by_convolutions_of_stacked_ones_the_newest(monkeypatch, tmp_path, learner, world, kernel):
    fields = {"total_timesteps": 4 * 8 * 2, "noveld": True, "rnd_features": 8}
    _, state, lines = train(monkeypatch, world, tmp_path, "run", None, SCRIPTS[learner], **fields)
    for params in (state.bonus.target, state.bonus.predictor):
        assert params["params"]["Convolution_0"]["kernel"].shape == kernel
    assert state.bonus.observations.mean.shape == (36, 36, kernel[2])
    columns = np.asarray(state.bonus.observations.mean).sum((0, 2)) > 0
    assert set(np.flatnonzero(columns)) <= {0, 9, 18, 27} and columns.any()
    assert 0 < lines[-1]["first_visits"] < 1
    assert lines[-1]["bonus_std"] > 0 and all(np.isfinite(line[name]) for line in lines for name in RND_METRICS)


# Ways that must lead to the same result


@pytest.mark.parametrize(("learner", "text"), [("ppo", "facts"), ("dqn", "none"), ("dqn", "caption")])
def test_without_the_bonus_it_is_the_plain_baseline_bit_for_bit(monkeypatch, tmp_path, learner, text):
    plain = {"ppo": ppo, "dqn": dqn}[learner]
    fields = {"total_timesteps": 4 * 8 * 6, "text_observation": text}
    _, a, a_lines = train(monkeypatch, ToyWorld(), tmp_path, "plain", None, plain, **fields)
    fields |= {"extrinsic_coef": 1.0, "intrinsic_coef": 0.0, "noveld": text == "facts"}
    _, b, b_lines = train(monkeypatch, ToyWorld(), tmp_path, "rnd", None, SCRIPTS[learner], **fields)
    for field in dataclasses.fields(a):
        assert_equal_trees(*(jax.tree.leaves(getattr(state, field.name)) for state in (a, b)))
    for x, y in zip(a_lines, b_lines, strict=True):
        assert y.pop("scenes") >= x.pop("scenes")  # the words of terminal states are known here
        assert set(y) - set(x) == RND_METRICS | ({"first_visits"} if text == "facts" else set())
        assert {name: y[name] for name in x} == x and y["bonus_std"] > 0
    assert len(a_lines) == 6


@pytest.mark.parametrize(("learner", "text"), [("ppo", "none"), ("dqn", "caption")])
def test_resumed_run_ends_where_an_undisturbed_one_ends(monkeypatch, tmp_path, learner, text):
    script = SCRIPTS[learner]
    fields = {"total_timesteps": 4 * 8 * 6, "checkpoint_every": 3, "text_observation": text, "noveld": True, "rnd_proportion": 0.6}
    _, whole, whole_lines = train(monkeypatch, ToyWorld(), tmp_path, "whole", None, script, **fields)
    _, resumed, resumed_lines = train_with_a_break(monkeypatch, ToyWorld(), tmp_path, "killed", None, script, **fields)
    assert_equal_trees(whole, resumed)
    assert whole_lines == resumed_lines and len(whole_lines) == 6
    assert float(whole.bonus.observations.count) == float(whole.bonus.returns.count) == 4 * 8 * 6


def test_nothing_compiles_after_the_first_updates(monkeypatch, tmp_path):
    for script in SCRIPTS.values():
        fields = {"total_timesteps": 4 * 8 * 8, "noveld": True}
        counts = count_programs(monkeypatch, ToyWorld(), tmp_path, script.__name__, None, script, **fields)
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
def test_wrong_arguments_are_named(tmp_path, fields, message):
    for script in SCRIPTS.values():
        with pytest.raises(UserError, match=message):
            script.main(make_args(script, tmp_path, "wrong", **fields))
    assert not (tmp_path / "wrong").exists()

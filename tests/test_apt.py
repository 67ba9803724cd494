"""APT against plain Python, what the inverse model is shown against a plain loop, exactness."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from baselines import dqn, dqn_apt, ppo, ppo_apt
from bonuses import apt
from bonuses.bonus import Moves, Seen
from goals.tables import embed_facts
from lab.errors import UserError
from lab.play import select
from tests.toy.world import LENGTH, PictureWorld, ToyWorld
from tests.training import (
    assert_equal_trees,
    count_programs,
    make_args,
    open_script,
    train,
    train_with_a_break,
)

SCRIPTS = {"ppo": ppo_apt, "dqn": dqn_apt}
APT_METRICS = {"inverse_loss", "inverse_accuracy", "bonus_mean", "bonus_std", "knn_distance"}


@dataclasses.dataclass(frozen=True)
class TellingWorld(ToyWorld):
    """The observation tells the moment and the end too, so that no state is mistaken for another.

    Any open at the door ends the episode. The scene tells the end as well, in a bit without a fact:
    it is never one that the policy acts in.
    """

    max_episode_steps: int = 8

    def step(self, key, state, action):
        return super().step(key, state.replace(has_key=state.has_key | (action == 3)), action)

    def observe(self, state):
        moment = jnp.stack([state.open, state.timestep / self.max_episode_steps])
        return jnp.concatenate([super().observe(state), moment.astype(jnp.float32)])

    def scene(self, state):
        return super().scene(state) | state.open.astype(jnp.uint32)[None] << len(self.facts)


@dataclasses.dataclass(frozen=True)
class WalkWorld(ToyWorld):
    """Left and right alone, and short episodes.

    Every action can be told from the states around it, none from a reset.
    """

    max_episode_steps: int = 8
    actions: ClassVar[tuple[str, ...]] = ("left", "right")


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


# The bonus against plain Python


def plain_distances(features, particles, k):
    """Average each row's distances to its k nearest others among the particles, in plain Python."""
    means = []
    for i, row in enumerate(features):
        distances = [np.sqrt(((row - features[j]) ** 2).sum()) for j in particles if j != i]
        means.append(np.mean(sorted(distances)[:k]))
    return np.asarray(means)


def points(kind):
    rng = np.random.default_rng(0)
    drawn = np.tanh(rng.normal(size=(300, 8)))
    duplicates, four = drawn[rng.integers(0, 150, 300)], drawn[rng.integers(0, 4, 300)]
    return {"distinct": drawn, "duplicates": duplicates, "four": four}[kind].astype(np.float32)


@pytest.mark.parametrize("num_particles", [300, 40])
@pytest.mark.parametrize("kind", ["distinct", "duplicates", "four"])
def test_neighbour_distances_equal_plain_loops(kind, num_particles):
    """300 rows are searched in two pieces; of the four points there are fewer than neighbours."""
    features = points(kind)
    particles = np.random.default_rng(1).permutation(300)[:num_particles]
    distances = jax.jit(apt.neighbour_distances, static_argnums=2)(features, particles, 12)
    expected = plain_distances(features.astype(np.float64), particles, 12)
    np.testing.assert_allclose(distances, expected, rtol=1e-5, atol=1e-6)
    if kind == "four" and num_particles == 300:
        assert not np.asarray(
            distances
        ).any()  # a duplicate is at no distance, not at a rounded one


def make_apt(**fields):
    return apt.APT(apt.APTArgs(**fields), ToyWorld(), 1, num_envs=10, num_steps=20, hidden_size=16)


def new_state():
    return apt.APTState(None, None, jnp.zeros(()), jnp.zeros((), jnp.int32))


def test_rewards_and_running_mean_equal_numpy_over_batches():
    bonus, state = make_apt(apt_k=5), new_state()
    rng, seen = np.random.default_rng(0), []
    for number in range(5):
        features = jnp.asarray(rng.normal(size=(200, 6)) * (1 + number), jnp.float32)
        rewards, state, distance = bonus.entropy_rewards(state, features, jax.random.key(number))
        seen.append(plain_distances(np.asarray(features), range(200), 5))
        mean = np.concatenate(seen).mean()
        np.testing.assert_allclose(state.mean_distance, mean, rtol=1e-5)
        np.testing.assert_allclose(distance, seen[-1].mean(), rtol=1e-5)
        np.testing.assert_allclose(rewards, np.log(1 + seen[-1] / mean), rtol=1e-4)
    assert int(state.rollouts) == 5


def test_few_particles_are_a_subset_of_the_rollout_drawn_anew(monkeypatch):
    features = jax.random.normal(jax.random.key(9), (200, 6))
    drawn, find = [], apt.neighbour_distances

    def note(features, particles, k):
        drawn.append(np.asarray(particles))
        return find(features, particles, k)

    monkeypatch.setattr(apt, "neighbour_distances", note)
    few = make_apt(apt_k=5, apt_particles=30)
    for seed in range(3):
        rewards, _, _ = few.entropy_rewards(new_state(), features, jax.random.key(seed))
        expected = plain_distances(np.asarray(features), drawn[-1], 5)
        np.testing.assert_allclose(rewards, np.log(1 + expected / expected.mean()), rtol=1e-4)
    assert all(len(p) == len(set(p.tolist()) & set(range(200))) == 30 for p in drawn)
    assert len({tuple(sorted(p)) for p in drawn}) == 3
    make_apt(apt_particles=200).entropy_rewards(new_state(), features, jax.random.key(0))
    assert drawn[-1].tolist() == list(range(200))


def test_a_lone_outlier_earns_most_and_sameness_earns_nothing():
    bonus, key = make_apt(), jax.random.key(0)
    features = (0.01 * jax.random.normal(jax.random.key(9), (200, 6))).at[77].set(1.0)
    rewards, _, _ = bonus.entropy_rewards(new_state(), features, key)
    assert rewards.argmax() == 77 and rewards[77] > 5 * np.median(rewards)
    rewards, state, _ = bonus.entropy_rewards(new_state(), jnp.ones((200, 6)), key)
    assert not rewards.any() and state.mean_distance == 0


# What the inverse model is shown


@pytest.mark.parametrize("learner", SCRIPTS)
def test_pairs_are_of_the_states_before_and_after_each_action(tmp_path, learner):
    """Step every env in a plain loop by the rollout's actions.

    Fresh states come from the pool in the order of ends.
    """
    script, world = SCRIPTS[learner], TellingWorld()
    setup, service, state, buffers = begin(script, world, tmp_path, text_observation="facts")
    pool = [
        jax.tree.map(lambda x, i=i: x[i], state.envs.pool[0]) for i in range(setup.envs.pool_size)
    ]
    states = [jax.tree.map(lambda x, n=n: jnp.copy(x[n]), state.envs.states) for n in range(4)]
    step, see, tell = jax.jit(world.step), jax.jit(world.observe), jax.jit(world.scene)
    taken, terminations, truncations = 0, 0, 0
    for _ in range(6):
        state, buffers, _ = script.collect(setup, service.tables, state, buffers)
        rollout, moves = jax.device_get(buffers), []
        for t, n in np.ndindex(8, 4):
            after, transition = step(jax.random.key(0), states[n], rollout.actions[t, n])
            moves.append(Moves(*(Seen(see(x), tell(x)) for x in (states[n], after))))
            assert bool(transition.terminated) == rollout.terminated[t, n]
            assert bool(transition.truncated) == rollout.truncated[t, n]
            terminations += transition.terminated
            truncations += transition.truncated
            if transition.terminated or transition.truncated:
                after, taken = pool[taken % len(pool)], taken + 1
            states[n] = after
        noted, expected = flat(rollout.noted), jax.tree.map(lambda *x: np.stack(x), *moves)
        assert_equal_trees(noted, expected)
        # The words are of the same states as the symbols.
        for seen in (noted.before, noted.after):
            _, text = setup.bonus.read(service.tables, jax.tree.map(jnp.asarray, seen))
            np.testing.assert_allclose(text, embed_facts(service.tables, seen.scenes), atol=1e-6)
        state = state.replace(step=jnp.zeros((), jnp.int32))
    assert terminations > 2 and truncations > 2


@pytest.mark.parametrize("learner", SCRIPTS)
def test_every_action_is_told_where_states_tell_it(monkeypatch, tmp_path, learner):
    """An eighth of the steps ends an episode: who takes states after a reset cannot tell all."""
    fields = {"start_e": 1.0, "end_e": 1.0} if learner == "dqn" else {"ent_coef": 0.1}
    fields |= {"num_envs": 16, "total_timesteps": 16 * 8 * 60, "checkpoint_every": 1000}
    run = "run", None, SCRIPTS[learner]
    _, _, lines = train(monkeypatch, WalkWorld(), tmp_path, *run, apt_learning_rate=1e-2, **fields)
    assert lines[0]["inverse_loss"] > 0.3 and lines[-1]["inverse_loss"] < 0.05
    assert [line["inverse_accuracy"] for line in lines[-20:]] == [1.0] * 20
    assert all(np.isfinite(line[name]) for line in lines for name in APT_METRICS)


def test_wrong_pairs_would_be_seen(monkeypatch, tmp_path):
    """The test above with two mistakes made on purpose.

    Following states are those of the next env, or those after the reset.
    """
    note = apt.APT.note

    def replace_after(moves, observation):
        return moves.replace(after=moves.after.replace(observation=observation))

    def of_another(self, observation, scenes, states):
        moves = note(self, observation, scenes, states)
        return replace_after(moves, jnp.roll(moves.after.observation, 1, 0))

    def after_reset(self, observation, scenes, states):
        moves = note(self, observation, scenes, states)
        fresh = jax.vmap(self.world.reset)(jax.random.split(jax.random.key(5), len(scenes)))
        fresh = jax.vmap(self.world.observe)(fresh)
        return replace_after(moves, select(states.timestep >= 8, fresh, moves.after.observation))

    fields = {"ent_coef": 0.1, "num_envs": 16, "total_timesteps": 16 * 8 * 40}
    fields |= {"checkpoint_every": 1000, "apt_learning_rate": 1e-2}
    for number, mistake in enumerate((of_another, after_reset)):
        jax.clear_caches()
        monkeypatch.setattr(apt.APT, "note", mistake)
        run = f"wrong{number}", None, ppo_apt
        _, _, lines = train(monkeypatch, WalkWorld(), tmp_path, *run, **fields)
        assert np.mean([line["inverse_accuracy"] for line in lines[-20:]]) < 0.99
    jax.clear_caches()


def test_rewards_are_of_the_state_after_the_action(tmp_path):
    """The features are the trunk's of the observations after the steps, in the order [T, N]."""
    setup, service, state, rollout = begin(ppo_apt, TellingWorld(), tmp_path, apt_minibatches=8)
    bonus, before = setup.bonus, jax.tree.map(jnp.copy, state.bonus)
    state, rollout, _ = ppo_apt.collect(setup, service.tables, state, rollout)
    inputs = rollout.noted, rollout.actions, jax.random.key(0)
    rewards, after, metrics = jax.jit(bonus.reward)(service.tables, before, *inputs)
    seen = jnp.asarray(flat(rollout.noted.after).observation)
    nothing = jnp.zeros((len(seen), 0))
    features = bonus.model.apply(after.params, seen, nothing, method="represent")
    distances = plain_distances(np.asarray(features), range(32), 12).reshape(8, 4)
    np.testing.assert_allclose(rewards, np.log(1 + distances / distances.mean()), rtol=1e-4)
    np.testing.assert_allclose(metrics["knn_distance"], distances.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["bonus_std"], rewards.std(), rtol=1e-4)
    assert np.abs(features).max() <= 1 and rewards.std() > 0.05


# Gradients


def test_nothing_learns_through_the_bonus(tmp_path):
    setup, service, state, rollout = begin(ppo_apt, ToyWorld(), tmp_path)
    state, rollout, _ = ppo_apt.collect(setup, service.tables, state, rollout)
    seen, bonus = jax.tree.map(jnp.asarray, flat(rollout.noted.after)), setup.bonus

    def total(params):
        features = bonus.represent(service.tables, params, seen)
        return bonus.entropy_rewards(state.bonus, features, jax.random.key(0))[0].sum()

    gradients = jax.tree.leaves(jax.grad(total)(state.bonus.params))
    assert not any(np.asarray(gradient).any() for gradient in gradients)


@pytest.mark.parametrize("learner", SCRIPTS)
def test_representation_and_policy_learn_apart(tmp_path, learner):
    """The weight of the bonus is in what the policy learns from, and not in the representation."""
    script, states = SCRIPTS[learner], []
    for coef in (0.0, 1.0):
        fields = {"total_timesteps": 64, "intrinsic_coef": coef}
        setup, service, state, rollout = begin(script, ToyWorld(), tmp_path, **fields)
        before = jax.device_get(state.bonus.params)
        state, rollout, _ = script.collect(setup, service.tables, state, rollout)
        state, _ = script.update(setup, service.tables, state, rollout)
        states.append(state)
    assert_equal_trees(*(state.bonus for state in states))
    pairs = zip(*map(jax.tree.leaves, (before, state.bonus.params)), strict=True)
    assert all((a != b).any() for a, b in pairs)
    learned = [s.params if learner == "ppo" else s.replay.steps.rewards for s in states]
    pairs = zip(*map(jax.tree.leaves, learned), strict=True)
    assert any((a != b).any() for a, b in pairs)


# Ways that must lead to the same result


@pytest.mark.parametrize(("learner", "text"), [("ppo", "caption"), ("dqn", "none")])
def test_without_the_bonus_it_is_the_plain_baseline_bit_for_bit(
    monkeypatch, tmp_path, learner, text
):
    plain, script = {"ppo": ppo, "dqn": dqn}[learner], SCRIPTS[learner]
    fields = {"total_timesteps": 4 * 8 * 6, "text_observation": text}
    _, a, a_lines = train(monkeypatch, ToyWorld(), tmp_path, "plain", None, plain, **fields)
    fields |= {"extrinsic_coef": 1.0, "intrinsic_coef": 0.0}
    _, b, b_lines = train(monkeypatch, ToyWorld(), tmp_path, "apt", None, script, **fields)
    for field in dataclasses.fields(a):
        assert_equal_trees(*(jax.tree.leaves(getattr(state, field.name)) for state in (a, b)))
    for x, y in zip(a_lines, b_lines, strict=True):
        assert y.pop("scenes") >= x.pop("scenes")  # the words of terminal states are known here
        assert y == {**x, **{name: y[name] for name in APT_METRICS}}
    assert len(a_lines) == 6


@pytest.mark.parametrize(("learner", "text"), [("ppo", "none"), ("dqn", "caption")])
def test_resumed_run_ends_where_an_undisturbed_one_ends(monkeypatch, tmp_path, learner, text):
    fields = {"total_timesteps": 4 * 8 * 6, "checkpoint_every": 3, "text_observation": text}
    fields |= {"apt_particles": 20}
    first, second = (("whole", None, SCRIPTS[learner]), ("killed", None, SCRIPTS[learner]))
    _, whole, lines = train(monkeypatch, ToyWorld(), tmp_path, *first, **fields)
    _, resumed, resumed_lines = train_with_a_break(
        monkeypatch, ToyWorld(), tmp_path, *second, **fields
    )
    assert_equal_trees(whole, resumed)
    assert lines == resumed_lines and len(lines) == 6
    assert int(whole.bonus.rollouts) == 6 and float(whole.bonus.mean_distance) > 0


def test_collection_that_stops_at_unknown_words_equals_one_that_never_stops(tmp_path):
    """Terminal states, in which no policy acts, are known too when the rollout is full."""
    rollouts, ends, fields = [], [], {"text_observation": "caption", "seed": 2}
    for known_before in (False, True):
        setup, service, state, rollout = begin(ppo_apt, TellingWorld(), tmp_path, **fields)
        if known_before:
            service.know(np.arange(2 << len(ToyWorld.facts), dtype=np.uint32)[:, None])
        stops = 0
        for _ in range(3):
            state, rollout, unknown = ppo_apt.collect(setup, service.tables, state, rollout)
            while np.asarray(unknown.mask).any():
                service.know(np.asarray(unknown.scenes)[np.asarray(unknown.mask)])
                stops += 1
                state, rollout, unknown = ppo_apt.collect(setup, service.tables, state, rollout)
            for seen in (rollout.noted.before, rollout.noted.after):
                seen = jax.tree.map(jnp.asarray, flat(seen))
                assert np.asarray(setup.bonus.read(service.tables, seen)[1]).any(-1).all()
            ends.append(bool(rollout.terminated.any()))
            state = state.replace(step=jnp.zeros((), jnp.int32))
        assert (stops == 0) == known_before
        rollouts.append(jax.device_get(rollout))
    assert_equal_trees(*rollouts)
    assert any(ends)


@pytest.mark.parametrize(
    ("learner", "world", "fields"),
    [("ppo", PictureWorld(), {}), ("dqn", ToyWorld(), {"text_observation": "facts"})],
    ids=["ppo-pixels", "dqn-facts"],
)
def test_words_and_pixels_are_represented(monkeypatch, tmp_path, learner, world, fields):
    fields, run = {"total_timesteps": 4 * 8 * 3, **fields}, ("run", None, SCRIPTS[learner])
    _, state, lines = train(monkeypatch, world, tmp_path, *run, **fields)
    trunk = state.bonus.params["params"]["trunk"]
    width = trunk["Dense_0"]["kernel"].shape[0]
    assert ("Convolution_0" in trunk) == isinstance(world, PictureWorld)
    assert width == (LENGTH + 1 + 384 if "text_observation" in fields else 64)
    assert lines[-1]["bonus_std"] > 0
    assert all(np.isfinite(line[name]) for line in lines for name in APT_METRICS)


def test_nothing_compiles_after_the_first_updates(monkeypatch, tmp_path):
    fields = {"total_timesteps": 4 * 8 * 8, "apt_particles": 20}
    for name, script in SCRIPTS.items():
        counts = count_programs(monkeypatch, ToyWorld(), tmp_path, name, None, script, **fields)
        assert counts[0] > 0 and counts[2:] == counts[1:2] * 6


# Input


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"apt_minibatches": 7}, "--apt-minibatches 7"),
        ({"apt_k": 0}, "--apt-k 0"),
        ({"apt_k": 32}, "--apt-k 32 is not from 1 to 31"),
        ({"apt_particles": 12}, "--apt-k 12 is not from 1 to 11"),
    ],
)
@pytest.mark.parametrize("learner", SCRIPTS)
def test_bad_input_is_one_clear_error_and_leaves_nothing(
    monkeypatch, tmp_path, learner, fields, message
):
    fields, run = {"total_timesteps": 64, **fields}, ("run", None, SCRIPTS[learner])
    with pytest.raises(UserError, match=message) as error:
        train(monkeypatch, ToyWorld(), tmp_path, *run, **fields)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()

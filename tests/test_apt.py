"""APT: the bonus against plain numpy, what the inverse model is shown against a plain loop of the world, exactness of the rest."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from baselines import dqn, dqn_apt, ppo, ppo_apt
from lab.errors import UserError
from tests.test_ellm_ppo import assert_equal_trees
from tests.toy_world import LENGTH, PictureWorld, ToyWorld
from tests.training import count_programs, make_args, train, train_with_a_break

SCRIPTS = {"ppo": ppo_apt, "dqn": dqn_apt}
APT_METRICS = {"inverse_loss", "inverse_accuracy", "bonus_mean", "bonus_std", "knn_distance"}


@dataclasses.dataclass(frozen=True)
class TellingWorld(ToyWorld):
    """The observation tells the moment and the end too, so that no state is mistaken for another; any open at the door ends it.

    The scene tells the end as well, in a bit without a fact: it is never one that the policy acts in.
    """

    max_episode_steps: int = 8

    def step(self, key, state, action):
        after, transition = super().step(key, state.replace(has_key=state.has_key | (action == 3)), action)
        return after, transition

    def observe(self, state):
        moment = jnp.stack([state.open, state.timestep / self.max_episode_steps]).astype(jnp.float32)
        return jnp.concatenate([super().observe(state), moment])

    def scene(self, state):
        return super().scene(state) | state.open.astype(jnp.uint32)[None] << len(self.facts)


@dataclasses.dataclass(frozen=True)
class WalkWorld(ToyWorld):
    """Left and right alone, and short episodes: every action can be told from the states around it, none from a reset."""

    max_episode_steps: int = 8
    actions = ("left", "right")


def begin(script, world, folder, **fields):
    """Return setup, service, state and collector before the first step."""
    args = make_args(script, folder, "begin", **fields)
    service = script.make_service(args, world)
    service.prepare()
    setup = script.make_setup(args, world, service)
    state = script.init_state(setup, service.tables)
    return setup, service, state, script.empty_collector(setup, state)


def flat(moves):
    return jax.tree.map(lambda x: np.asarray(x).reshape(x.shape[0] * x.shape[1], *x.shape[2:]), moves)


# The bonus against plain Python


def plain_distances(features, particles, k):
    """Average for each row of features the distances to its k nearest others among the particles, in plain Python."""
    means = []
    for i in range(len(features)):
        distances = sorted(np.sqrt(((features[i] - features[j]) ** 2).sum()) for j in particles if j != i)
        means.append(np.mean(distances[:k]))
    return np.asarray(means)


def points(kind):
    rng = np.random.default_rng(0)
    drawn = np.tanh(rng.normal(size=(300, 8)))
    drawn = {"distinct": drawn, "duplicates": drawn[rng.integers(0, 150, 300)], "four": drawn[rng.integers(0, 4, 300)]}[kind]
    return drawn.astype(np.float32)


@pytest.mark.parametrize("num_particles", [300, 40])
@pytest.mark.parametrize("kind", ["distinct", "duplicates", "four"])
def test_neighbour_distances_equal_plain_loops(kind, num_particles):
    """300 rows are searched in two pieces of unequal size; of the four points there are fewer than neighbours."""
    features = points(kind)
    particles = np.random.default_rng(1).permutation(300)[:num_particles]
    distances = jax.jit(ppo_apt.neighbour_distances, static_argnums=2)(features, particles, 12)
    expected = plain_distances(features.astype(np.float64), particles, 12)
    np.testing.assert_allclose(distances, expected, rtol=1e-5, atol=1e-6)
    if kind == "four" and num_particles == 300:
        assert not np.asarray(distances).any()  # a duplicate is at no distance, not at a rounded one


def apt_args(**fields):
    return ppo_apt.Args(num_envs=10, num_steps=20, **fields)


def new_bonus():
    return ppo_apt.Bonus(None, None, mean_distance=jnp.zeros(()), rollouts=jnp.zeros((), jnp.int32))


def test_rewards_and_running_mean_equal_numpy_over_batches():
    args, bonus = apt_args(apt_k=5), new_bonus()
    rng, seen = np.random.default_rng(0), []
    for number in range(5):
        features = (rng.normal(size=(200, 6)) * (1 + number)).astype(np.float32)
        rewards, bonus, distance = ppo_apt.entropy_rewards(args, bonus, jnp.asarray(features), jax.random.key(number))
        seen.append(plain_distances(features, range(200), 5))
        np.testing.assert_allclose(bonus.mean_distance, np.concatenate(seen).mean(), rtol=1e-5)
        np.testing.assert_allclose(distance, seen[-1].mean(), rtol=1e-5)
        np.testing.assert_allclose(rewards, np.log(1 + seen[-1] / np.concatenate(seen).mean()), rtol=1e-4)
    assert int(bonus.rollouts) == 5


def test_few_particles_are_a_subset_of_the_rollout_drawn_anew(monkeypatch):
    features = jax.random.normal(jax.random.key(9), (200, 6))
    drawn, find = [], ppo_apt.neighbour_distances
    monkeypatch.setattr(ppo_apt, "neighbour_distances", lambda f, p, k: (drawn.append(np.asarray(p)), find(f, p, k))[1])
    for seed in range(3):
        args, key = apt_args(apt_k=5, apt_particles=30), jax.random.key(seed)
        rewards, bonus, _ = ppo_apt.entropy_rewards(args, new_bonus(), features, key)
        expected = plain_distances(np.asarray(features), drawn[-1], 5)
        np.testing.assert_allclose(rewards, np.log(1 + expected / expected.mean()), rtol=1e-4)
    assert all(len(p) == len(set(p.tolist()) & set(range(200))) == 30 for p in drawn)
    assert len({tuple(sorted(p)) for p in drawn}) == 3
    ppo_apt.entropy_rewards(apt_args(apt_particles=200), new_bonus(), features, jax.random.key(0))
    assert drawn[-1].tolist() == list(range(200))


def test_a_lone_outlier_earns_most_and_sameness_earns_nothing():
    features = (0.01 * jax.random.normal(jax.random.key(9), (200, 6))).at[77].set(1.0)
    rewards, _, _ = ppo_apt.entropy_rewards(apt_args(), new_bonus(), features, jax.random.key(0))
    assert rewards.argmax() == 77 and rewards[77] > 5 * np.median(rewards)
    rewards, bonus, _ = ppo_apt.entropy_rewards(apt_args(), new_bonus(), jnp.ones((200, 6)), jax.random.key(0))
    assert not rewards.any() and bonus.mean_distance == 0


# What the inverse model is shown


@pytest.mark.parametrize("learner", SCRIPTS)
def test_pairs_are_of_the_states_before_and_after_each_action(tmp_path, learner):
    """Step every env in a plain loop by the actions that the rollout says; fresh states come from the pool in the order of ends."""
    script, world = SCRIPTS[learner], TellingWorld()
    setup, service, state, collector = begin(script, world, tmp_path, text_observation="facts")
    pool = [jax.tree.map(lambda x, i=i: x[i], state.envs.pool) for i in range(setup.envs.pool_size)]
    states = [jax.tree.map(lambda x, n=n: jnp.copy(x[n]), state.envs.states) for n in range(4)]
    step, see, tell = jax.jit(world.step), jax.jit(world.observe), jax.jit(world.scene)
    taken, terminations, truncations = 0, 0, 0
    for _ in range(6):
        state, collector, _ = script.collect(setup, service.tables, state, collector)
        rollout, expected = jax.device_get(collector.rollout), []
        for t in range(8):
            for n in range(4):
                after, transition = step(jax.random.key(0), states[n], rollout.actions[t, n])
                moved = ppo_apt.Moves(see(states[n]), see(after), tell(states[n]), tell(after))
                expected.append((moved, rollout.actions[t, n]))
                assert bool(transition.terminated) == rollout.terminated[t, n]
                assert bool(transition.truncated) == rollout.truncated[t, n]
                terminations, truncations = terminations + transition.terminated, truncations + transition.truncated
                if transition.terminated or transition.truncated:
                    after, taken = pool[taken % len(pool)], taken + 1
                states[n] = after
        moves = flat(rollout.moves)
        for name in ("observation", "following_observation", "scenes", "following_scenes"):
            np.testing.assert_array_equal(getattr(moves, name), np.stack([getattr(m, name) for m, _ in expected]), name)
        assert rollout.actions.reshape(-1).tolist() == [action for _, action in expected]
        # The words are of the same states as the symbols.
        before, following = script.read_moves(setup, service.tables, jax.tree.map(jnp.asarray, moves))
        for inputs, scenes in ((before, moves.scenes), (following, moves.following_scenes)):
            np.testing.assert_allclose(inputs.text, script.embed_facts(service.tables, scenes), atol=1e-6)
            assert not inputs.captions_so_far.size
        collector = collector.replace(step=jnp.zeros((), jnp.int32))
    assert terminations > 2 and truncations > 2


@pytest.mark.parametrize("learner", SCRIPTS)
def test_every_action_is_told_where_states_tell_it(monkeypatch, tmp_path, learner):
    """An eighth of the steps ends an episode: whoever takes the state after a reset for the following one cannot tell all."""
    fields = {"start_e": 1.0, "end_e": 1.0} if learner == "dqn" else {"ent_coef": 0.1}
    fields |= {"num_envs": 16, "total_timesteps": 16 * 8 * 60, "checkpoint_every": 1000, "apt_learning_rate": 1e-2}
    _, _, lines = train(monkeypatch, WalkWorld(), tmp_path, "run", None, SCRIPTS[learner], **fields)
    assert lines[0]["inverse_loss"] > 0.3 and lines[-1]["inverse_loss"] < 0.05
    assert [line["inverse_accuracy"] for line in lines[-20:]] == [1.0] * 20
    assert all(np.isfinite(line[name]) for line in lines for name in APT_METRICS)


def test_wrong_pairs_would_be_seen(monkeypatch, tmp_path):
    """The test above with two mistakes made on purpose: following states of the next env's, and of after the reset."""
    note = ppo_apt.note_moves

    def of_another(setup, observation, scenes, states):
        moves = note(setup, observation, scenes, states)
        return moves.replace(following_observation=jnp.roll(moves.following_observation, 1, 0))

    def after_reset(setup, observation, scenes, states):
        moves = note(setup, observation, scenes, states)
        fresh = jax.vmap(setup.world.reset)(jax.random.split(jax.random.key(5), len(scenes)))
        fresh, following = jax.vmap(setup.world.observe)(fresh), moves.following_observation
        return moves.replace(following_observation=ppo_apt.select(states.timestep >= 8, fresh, following))

    fields = {"ent_coef": 0.1, "num_envs": 16, "total_timesteps": 16 * 8 * 40, "checkpoint_every": 1000, "apt_learning_rate": 1e-2}
    for number, mistake in enumerate((of_another, after_reset)):
        jax.clear_caches()
        monkeypatch.setattr(ppo_apt, "note_moves", mistake)
        _, _, lines = train(monkeypatch, WalkWorld(), tmp_path, f"wrong{number}", None, ppo_apt, **fields)
        assert np.mean([line["inverse_accuracy"] for line in lines[-20:]]) < 0.99
    jax.clear_caches()


def test_rewards_are_of_the_state_after_the_action(tmp_path):
    """The features are the trunk's of the observations that steps led to, in the order of the rollout's [T, N]."""
    setup, service, state, collector = begin(ppo_apt, TellingWorld(), tmp_path, apt_minibatches=8)
    bonus = jax.tree.map(jnp.copy, state.bonus)
    state, collector, _ = ppo_apt.collect(setup, service.tables, state, collector)
    rewards, after, metrics = jax.jit(ppo_apt.reward_novelty, static_argnums=0)(
        setup, service.tables, bonus, collector.rollout, jax.random.key(0)
    )
    seen = flat(collector.rollout.moves).following_observation
    nothing = jnp.zeros((len(seen), 0))
    inputs = ppo_apt.PolicyInput(jnp.asarray(seen), nothing.astype(bool), nothing)
    features = ppo_apt.make_inverse_model(setup).apply(after.params, inputs, method="represent")
    distances = plain_distances(np.asarray(features), range(32), 12).reshape(8, 4)
    np.testing.assert_allclose(rewards, np.log(1 + distances / distances.mean()), rtol=1e-4)
    np.testing.assert_allclose(metrics["knn_distance"], distances.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["bonus_std"], rewards.std(), rtol=1e-4)
    assert np.abs(features).max() <= 1 and rewards.std() > 0.05


# Gradients


def test_nothing_learns_through_the_bonus(tmp_path):
    setup, service, state, collector = begin(ppo_apt, ToyWorld(), tmp_path)
    state, collector, _ = ppo_apt.collect(setup, service.tables, state, collector)
    moves = jax.tree.map(jnp.asarray, flat(collector.rollout.moves))

    def total(params):
        features = ppo_apt.represent_following(setup, service.tables, params, moves)
        return ppo_apt.entropy_rewards(setup.args, state.bonus, features, jax.random.key(0))[0].sum()

    assert not any(np.asarray(g).any() for g in jax.tree.leaves(jax.grad(total)(state.bonus.params)))


@pytest.mark.parametrize("learner", SCRIPTS)
def test_representation_and_policy_learn_apart(tmp_path, learner):
    """The weight of the bonus is in what the policy learns from, and not in the representation."""
    script, states = SCRIPTS[learner], []
    for coef in (0.0, 1.0):
        fields = {"total_timesteps": 64, "intrinsic_coef": coef}
        setup, service, state, collector = begin(script, ToyWorld(), tmp_path, **fields)
        before = jax.device_get(state.bonus.params)
        state, collector, _ = script.collect(setup, service.tables, state, collector)
        state, collector, _ = script.update(setup, service.tables, state, collector)
        states.append(state)
    assert_equal_trees(*(state.bonus for state in states))
    assert all((a != b).any() for a, b in zip(*map(jax.tree.leaves, (before, state.bonus.params)), strict=True))
    learned = [state.params if learner == "ppo" else state.replay.buffer.experience.rewards for state in states]
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, learned), strict=True))


# Ways that must lead to the same result


@pytest.mark.parametrize(("learner", "text"), [("ppo", "caption"), ("dqn", "none")])
def test_without_the_bonus_it_is_the_plain_baseline_bit_for_bit(monkeypatch, tmp_path, learner, text):
    plain = {"ppo": ppo, "dqn": dqn}[learner]
    fields = {"total_timesteps": 4 * 8 * 6, "text_observation": text}
    _, a, a_lines = train(monkeypatch, ToyWorld(), tmp_path, "plain", None, plain, **fields)
    fields |= {"extrinsic_coef": 1.0, "intrinsic_coef": 0.0}
    _, b, b_lines = train(monkeypatch, ToyWorld(), tmp_path, "apt", None, SCRIPTS[learner], **fields)
    leaves = [jax.tree.leaves({field.name: getattr(state, field.name) for field in dataclasses.fields(a)}) for state in (a, b)]
    assert_equal_trees(*leaves)
    for x, y in zip(a_lines, b_lines, strict=True):
        assert y.pop("scenes") >= x.pop("scenes")  # the words of terminal states are known here
        assert y == {**x, **{name: y[name] for name in APT_METRICS}}
    assert len(a_lines) == 6


@pytest.mark.parametrize(("learner", "text"), [("ppo", "none"), ("dqn", "caption")])
def test_resumed_run_ends_where_an_undisturbed_one_ends(monkeypatch, tmp_path, learner, text):
    script = SCRIPTS[learner]
    fields = {"total_timesteps": 4 * 8 * 6, "checkpoint_every": 3, "text_observation": text, "apt_particles": 20}
    _, whole, whole_lines = train(monkeypatch, ToyWorld(), tmp_path, "whole", None, script, **fields)
    _, resumed, resumed_lines = train_with_a_break(monkeypatch, ToyWorld(), tmp_path, "killed", None, script, **fields)
    assert_equal_trees(whole, resumed)
    assert whole_lines == resumed_lines and len(whole_lines) == 6
    assert int(whole.bonus.rollouts) == 6 and float(whole.bonus.mean_distance) > 0


def test_collection_that_stops_at_unknown_words_equals_one_that_never_stops(tmp_path):
    """Terminal states, in which no policy acts, are known too when the rollout is full."""
    rollouts, ends = [], []
    for known_before in (False, True):
        setup, service, state, collector = begin(ppo_apt, TellingWorld(), tmp_path, text_observation="caption", seed=2)
        if known_before:
            service.resolve(np.arange(2 << len(ToyWorld.facts), dtype=np.uint32)[:, None])
        tables, stops = service.tables, 0
        for _ in range(3):
            state, collector, unknown = ppo_apt.collect(setup, tables, state, collector)
            while int(unknown.count):
                tables, stops = ppo_apt.resolve(service, unknown), stops + 1
                state, collector, unknown = ppo_apt.collect(setup, tables, state, collector)
            moves = jax.tree.map(jnp.asarray, flat(collector.rollout.moves))
            for inputs in ppo_apt.read_moves(setup, tables, moves):
                assert np.asarray(inputs.text).any(-1).all()
            ends.append(bool(collector.rollout.terminated.any()))
            collector = collector.replace(step=jnp.zeros((), jnp.int32))
        assert (stops == 0) == known_before
        rollouts.append(jax.device_get(collector.rollout))
    assert_equal_trees(*rollouts)
    assert any(ends)


@pytest.mark.parametrize(
    ("learner", "world", "fields"),
    [("ppo", PictureWorld(), {}), ("dqn", ToyWorld(), {"text_observation": "facts"})],
    ids=["ppo-pixels", "dqn-facts"],
)
def test_words_and_pixels_are_represented(monkeypatch, tmp_path, learner, world, fields):
    _, state, lines = train(monkeypatch, world, tmp_path, "run", None, SCRIPTS[learner], total_timesteps=4 * 8 * 3, **fields)
    trunk = state.bonus.params["params"]["trunk"]
    width = trunk["Dense_0"]["kernel"].shape[0]
    assert ("Convolution_0" in trunk) == isinstance(world, PictureWorld)
    assert width == (LENGTH + 1 + 384 if fields else 64)
    assert lines[-1]["bonus_std"] > 0 and all(np.isfinite(line[name]) for line in lines for name in APT_METRICS)


def test_nothing_compiles_after_the_first_updates(monkeypatch, tmp_path):
    for script in SCRIPTS.values():
        fields = {"total_timesteps": 4 * 8 * 8, "apt_particles": 20}
        counts = count_programs(monkeypatch, ToyWorld(), tmp_path, script.__name__, None, script, **fields)
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
def test_bad_input_is_one_clear_error_and_leaves_nothing(monkeypatch, tmp_path, learner, fields, message):
    with pytest.raises(UserError, match=message) as error:
        train(monkeypatch, ToyWorld(), tmp_path, "run", None, SCRIPTS[learner], total_timesteps=64, **fields)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()

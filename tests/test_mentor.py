"""Guided exploration: whose actions are taken, how likely they were, and what the guide reads."""

import dataclasses
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import baselines.dqn
import baselines.ppo
import ellm_dqn
import ellm_ppo
from lab.errors import UserError
from lab.mentor import Advice, Mentor, MentorTables, checksum, load_mentor, mix
from lab.run import read_config
from tests.toy.world import ToyWorld
from tests.training import (
    assert_equal_trees,
    count_programs,
    make_args,
    open_script,
    train,
    train_with_a_break,
)
from worlds import make_world
from worlds.world import WorldArgs

TOY = "tests.toy.world:ToyWorld"
SCRIPTS = {"ppo": ellm_ppo, "dqn": ellm_dqn}
ORACLE = {"goal_source": "oracle", "goal_conditioned": True}
OF_TASK = {"goal_source": "task", "goal_conditioned": True, "task": "leave"}
LEFT, TAKE = (ToyWorld.actions.index(name) for name in ("left", "take"))


class Steady(SimpleNamespace):
    """A namespace that jit takes for a constant."""

    __hash__ = object.__hash__


class Always(Steady):
    """A network that values one action alone."""

    def __init__(self, network, action):
        super().__init__(network=network, action=action)

    def apply(self, params, inputs, tables):
        return jnp.broadcast_to(jax.nn.one_hot(self.action, 4)[None], (len(inputs.text), 4))


@pytest.fixture(scope="module")
def leave():
    return make_world(WorldArgs(TOY, task="leave"))


@pytest.fixture(scope="module")
def guides(tmp_path_factory):
    """Train a run of each learner with the oracle's goals; return the folder of both."""
    folder = tmp_path_factory.mktemp("guides")
    for name, script in SCRIPTS.items():
        with pytest.MonkeyPatch.context() as patch:
            fields = ORACLE | {"total_timesteps": 128, "checkpoint_every": 1}
            train(patch, ToyWorld(), folder, name, script=script, **fields)
    return folder


# BY HAND
def test_the_mixture_by_hand():
    logits = jnp.log(jnp.array([[0.7, 0.2, 0.1]]))
    advice = Advice(jnp.array([[0.0, 0.0, 1.0]]), jnp.zeros((1, 0), bool))
    half = jnp.exp(mix(logits, advice, jnp.float32(0.5)))[0]
    np.testing.assert_allclose(half, [0.35, 0.1, 0.55], rtol=1e-6)
    np.testing.assert_allclose(mix(logits, advice, jnp.float32(0.0)), logits, rtol=1e-6)
    ratio = jnp.exp(logits - mix(logits, advice, jnp.float32(0.5)))[0]
    np.testing.assert_allclose(ratio, [2.0, 2.0, 0.1 / 0.55], rtol=1e-6)
    assert jnp.isclose((half * ratio).sum(), 1.0), "importance weights average to one"


def surrogate(tmp_path, actions, advantages):
    """Return what a gradient step does to the logits of an even policy, guided to action 1."""
    policy = jnp.full(4, 0.25)
    behaviour = 0.5 * policy + 0.5 * jax.nn.one_hot(1, 4)
    actions = jnp.array(actions, jnp.int32)

    class Constant:
        def apply(self, params, inputs, tables):
            n = len(inputs)
            return jnp.broadcast_to(params[None], (n, 4)), jnp.zeros(n)

    args = make_args(ellm_ppo, tmp_path, "r", ent_coef=0.0, vf_coef=0.0)
    setup = SimpleNamespace(args=args, network=Constant())
    batch = SimpleNamespace(
        inputs=actions,
        actions=actions,
        log_probs=jnp.log(behaviour)[actions],
        values=jnp.zeros(len(actions)),
    )

    def loss(params):
        return ellm_ppo.ppo_loss(setup, None, params, batch, jnp.array(advantages))[0]

    return -jax.grad(loss)(jnp.zeros(4))


def test_what_is_learned_from_a_guide_by_hand(tmp_path):
    """The ratio to the behaviour is 0.4 for the guide's action and 2 for the policy's own."""
    # The guide's action has paid: it is learned, with the weight of its ratio.
    downhill = surrogate(tmp_path, [1, 1, 0, 2], [1.0, 1.0, -1.0, -1.0])
    assert downhill[1] > 0 and downhill[0] < 0 and downhill[2] < 0
    # Each of two logit gradients: 0.4 x (1 - 0.25); 2 x 0.25 of two own actions that were bad.
    np.testing.assert_allclose(downhill[1], (2 * 0.4 * 0.75 + 2 * 2 * 0.25) / 4, rtol=1e-4)
    # The guide's action was bad: the policy is further from it than the clip range already.
    downhill = surrogate(tmp_path, [1, 1, 0, 2], [-1.0, -1.0, 1.0, 1.0])
    np.testing.assert_array_equal(downhill, 0.0)


def test_the_share_falls_to_zero(tmp_path):
    args = make_args(ellm_ppo, tmp_path, "r", total_timesteps=32 * 10, guide_fraction=0.5)
    share = [
        float(ellm_ppo.mentor_share(args, SimpleNamespace(update=jnp.int32(update))))
        for update in (0, 1, 5, 9)
    ]
    np.testing.assert_allclose(share, [0.5, 0.4, 0.0, 0.0], atol=1e-6)


# A GUIDE THAT ALWAYS TAKES
def begin(script, folder, update=0, **fields):
    """Return the setup, tables and first state of a run with a guide that always takes."""

    def propose(setup, tables, params, key, moment):
        goals = jnp.zeros_like(moment.achieved).at[:, 1].set(True)  # "take key"
        return jax.nn.one_hot(jnp.full(len(goals), TAKE), 4), goals

    names = {"tracks_goals": True, "names_of": lambda actions, captions: captions}
    guide = Steady(args=Steady(similarity_threshold=0.99, **names))
    mentor = Mentor(Steady(propose=propose, reward_step=script.reward_step), guide, True)
    args = make_args(script, folder, "r", num_envs=64, goal_source="oracle", **fields)
    setup, service = open_script(script, args, ToyWorld())
    tables = service.tables.replace(mentor=MentorTables(service.tables, {}))
    setup = dataclasses.replace(setup, mentor=mentor)
    state = script.init_state(setup, tables).replace(update=jnp.int32(update))
    service.close()
    return setup, tables, state


def step_of(script):
    return jax.jit(script.collect_step, static_argnums=0)


def test_ppo_acts_by_the_mixture_and_knows_how_likely_that_was(tmp_path):
    fields = {"guide_probability": 0.5, "guide_fraction": 1.0, "total_timesteps": 64 * 8 * 4}
    for update, share in ((0, 0.5), (2, 0.25), (4, 0.0)):
        setup, tables, state = begin(ellm_ppo, tmp_path, update, **fields)
        _, step = step_of(ellm_ppo)(setup, tables, state)
        logits, _ = setup.network.apply(state.params, step.inputs, tables)
        mixed = (1 - share) * jax.nn.softmax(logits) + share * jax.nn.one_hot(TAKE, 4)[None]
        taken = jnp.take_along_axis(mixed, step.actions[:, None], axis=1)[:, 0]
        np.testing.assert_allclose(jnp.exp(step.log_probs), taken, rtol=1e-5)
        expected = float(mixed[:, TAKE].mean())
        assert abs(float((step.actions == TAKE).mean()) - expected) < 0.2


@pytest.mark.parametrize(
    "script, fields",
    [(ellm_ppo, {}), (ellm_dqn, {"start_e": 1.0}), (ellm_dqn, {"start_e": 0.0, "end_e": 0.0})],
)
def test_a_certain_guide_takes_every_exploring_action(tmp_path, script, fields):
    setup, tables, state = begin(script, tmp_path, guide_probability=1.0, **fields)
    state, step = step_of(script)(setup, tables, state)
    explores = fields.get("start_e", 1.0) > 0
    assert bool((step.actions == TAKE).all()) == explores


def test_dqn_explores_half_by_the_guide_half_at_random(tmp_path):
    """The policy alone would go left, for ever."""
    always = {"start_e": 0.8, "end_e": 0.8, "policy_temperature": 0.0, "munchausen": 0.0}
    setup, tables, state = begin(ellm_dqn, tmp_path, **always)
    setup = dataclasses.replace(setup, network=Always(setup.network, LEFT))
    counts, step = np.zeros(4), step_of(ellm_dqn)
    for _ in range(40):
        state, taken = step(setup, tables, state)
        counts += np.bincount(taken.actions, minlength=4)
    # 0.8 x one half by the guide, as much at random, 0.2 by the policy; 2,560 actions.
    expected = np.array([0.2 + 0.1, 0.1, 0.4 + 0.1, 0.1])
    np.testing.assert_allclose(counts / counts.sum(), expected, atol=0.03)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_guide_reaches_its_own_goals(tmp_path, name):
    script = SCRIPTS[name]
    setup, tables, state = begin(script, tmp_path, guide_probability=1.0)
    step = step_of(script)
    for _ in range(13):
        before = state
        state, taken = step(setup, tables, state)
        done = taken.terminated | taken.truncated
        took = before.mentor_reached[:, 1] | (taken.captions == 1)
        np.testing.assert_array_equal(state.mentor_reached[:, 1], took & ~done)
    assert state.mentor_reached[:, 1].any() and not state.mentor_reached[:, 2:].any()


# GUIDES FROM RUNS
@pytest.mark.parametrize("script", [ellm_ppo, ellm_dqn, baselines.ppo, baselines.dqn])
def test_what_a_script_proposes_is_how_it_acts(tmp_path, script):
    fields = ORACLE if script in SCRIPTS.values() else {}
    args = make_args(script, tmp_path, "r", num_envs=512, **fields)
    if "dqn" in script.__name__:
        args = dataclasses.replace(args, evaluation_e=0.0)
    setup, service = open_script(script, args, ToyWorld())
    state = script.init_state(setup, service.tables)
    key = jax.random.key(3)
    probabilities, suggested = script.propose(
        setup, service.tables, state.params, key, state.moment
    )
    np.testing.assert_allclose(probabilities.sum(-1), 1.0, rtol=1e-5)
    assert suggested.shape == state.moment.achieved.shape
    acts = [
        script.act(setup, service.tables, state.params, jax.random.key(i), state.moment)[2]
        for i in range(8)
    ]
    counts = np.bincount(np.concatenate([shown["action"] for shown in acts]), minlength=4)
    np.testing.assert_allclose(counts / counts.sum(), probabilities.mean(0), atol=0.04)
    service.close()


@pytest.mark.parametrize("name, guide", [("ppo", "dqn"), ("dqn", "ppo")])
def test_a_run_explores_by_another_run(monkeypatch, tmp_path, guides, leave, name, guide):
    """Whatever its learner; and it resumes bit for bit."""
    fields = {"script": SCRIPTS[name], "guide": str(guides / guide), **OF_TASK}
    fields |= {"total_timesteps": 256, "checkpoint_every": 1}
    run = monkeypatch, leave, tmp_path
    _, whole, lines = train(*run, "whole", **fields)
    _, broken, broken_lines = train_with_a_break(*run, "broken", **fields)
    assert_equal_trees(whole.params, broken.params)
    assert lines == broken_lines
    assert isinstance(read_config(tmp_path / "whole")["guide_parameters"], int)
    shares = [line["guide_share"] for line in lines]
    assert 0 <= shares[-1] <= shares[1] < shares[0] <= 0.5


def test_what_a_guide_does_needs_one(monkeypatch, leave, tmp_path):
    for field in ({"guide_probability": 0.4}, {"guide_fraction": 0.4}):
        with pytest.raises(UserError, match=f"--{next(iter(field)).replace('_', '-')} needs --gui"):
            train(monkeypatch, leave, tmp_path, "run", **field, **OF_TASK)


def test_a_guide_knows_its_parameters_and_reads_its_goals(guides, leave):
    mentor, tables = load_mentor(str(guides / "ppo"), leave)
    assert not mentor.knows_task and mentor.setup.args.goal_source == "oracle"
    assert checksum(tables) == checksum(load_mentor(str(guides / "ppo"), leave)[1])
    assert checksum(tables) != checksum(load_mentor(str(guides / "dqn"), leave)[1])
    state = leave.wrap(ToyWorld().reset(jax.random.key(0)).replace(position=jnp.int32(0)))
    moment = ellm_ppo.first_moment(leave, jax.tree.map(lambda x: x[None], state), 0)
    reached = jnp.zeros((1, tables.tables.sensible.shape[0]), bool)
    advice = mentor.advise(tables, jax.random.key(0), moment, reached, jnp.float32(0.5))
    assert np.flatnonzero(advice.suggested[0]).tolist() == [1], "the oracle says: take key"
    silent = mentor.advise(tables, jax.random.key(0), moment, reached, jnp.float32(0.0))
    assert not silent.suggested.any() and not silent.probabilities.any(), "it is not asked"
    assert load_mentor(None, leave) == (None, None)


def test_nothing_is_compiled_after_the_first_update(monkeypatch, tmp_path, guides, leave):
    fields = {"guide": str(guides / "ppo"), "total_timesteps": 256, **OF_TASK}
    counts = count_programs(monkeypatch, leave, tmp_path, "run", **fields)
    assert len(set(counts)) == 1 and len(counts) == 8


def test_a_guide_that_has_changed_is_another_run(monkeypatch, tmp_path, guides, leave):
    shutil.copytree(guides / "ppo", tmp_path / "guide")
    fields = {"guide": str(tmp_path / "guide"), "total_timesteps": 64, **OF_TASK}
    train(monkeypatch, leave, tmp_path, "run", **fields)
    shutil.rmtree(tmp_path / "guide")
    with pytest.MonkeyPatch.context() as patch:
        again = ORACLE | {"seed": 2, "total_timesteps": 128}
        train(patch, ToyWorld(), tmp_path, "guide", **again)
    with pytest.raises(UserError, match="guide_parameters is .* choose another --run-dir$"):
        train(monkeypatch, leave, tmp_path, "run", **fields)


def test_what_cannot_guide_is_refused(monkeypatch, tmp_path, guides, leave):
    kick = make_world(WorldArgs(TOY, task="kick"))
    fields = OF_TASK | {"task": "kick", "total_timesteps": 32}
    train(monkeypatch, kick, tmp_path, "kick", **fields)
    monkeypatch.undo()
    with pytest.raises(UserError, match="was trained on another task .'kick the wall'.: give"):
        load_mentor(str(tmp_path / "kick"), leave)
    fields = ORACLE | {"text_observation": "caption", "total_timesteps": 32}
    train(monkeypatch, ToyWorld(), tmp_path, "reader", **fields)
    monkeypatch.undo()
    with pytest.raises(UserError, match="scene by scene.*--text-observation facts") as caught:
        load_mentor(str(tmp_path / "reader"), leave)
    assert "\n" not in str(caught.value)


def test_a_guide_that_is_not_there_is_refused(leave):
    with pytest.raises(UserError, match="^--guide nowhere is not there: give the directory"):
        load_mentor("nowhere", leave)

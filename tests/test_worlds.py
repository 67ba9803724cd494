"""Every world keeps the contract of worlds/world.py, and refuses what it does not have by name."""

from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lab.errors import UserError
from worlds import MEMBERS, WORLDS, make_world
from worlds.frames import FrameStack
from worlds.world import Transition, WorldArgs, mask_of, pack_facts
from worlds.wrapper import WorldWrapper

TOY = "tests.toy.world"
ARGS = {
    "crafter": WorldArgs(),
    "crafter-pixels": WorldArgs("crafter", "base", "effect", "craftax", "pixels", 9),
    "crafter-frames": WorldArgs(observation="frames"),
    "crafter-task": WorldArgs(task="plant row", task_reward="each"),
    "housekeep": WorldArgs("housekeep"),
    "housekeep-pixels": WorldArgs("housekeep", observation="pixels", task="test:3"),
    "toy": WorldArgs(f"{TOY}:ToyWorld"),
    "toy-pixels": WorldArgs(f"{TOY}:PictureWorld"),
    "toy-frames": WorldArgs("tests.test_frames:Clocks"),
    "probe": WorldArgs(f"{TOY}:ProbeWorld"),
}
NUM_STEPS = 5


@pytest.fixture(scope="module", params=ARGS, ids=str)
def args(request):
    return ARGS[request.param]


@pytest.fixture(scope="module")
def world(args):
    return make_world(args)


def _has(mask, number):
    return bool(mask[number // 32] >> (number % 32) & 1)


def test_words(world, args):
    for names in (world.actions, world.captions, world.facts, world.achievements):
        assert isinstance(names, tuple) and names and all(names)
        assert len(set(names)) == len(names)
    assert world.captions[0] == "nothing"
    assert world.num_scene_words == -(-len(world.facts) // 32)
    assert world.score_name.isidentifier() and world.name.isidentifier()
    assert isinstance(world.max_return, float) and world.max_return > 0
    assert isinstance(world.max_episode_steps, int) and world.max_episode_steps > 0
    assert isinstance(world.packages, tuple)
    assert make_world(args) == world and hash(make_world(args)) == hash(world)


def test_describe_says_each_fact(world):
    """Scenes of one fact each are said in different words."""
    said = {world.describe(mask_of(world.facts, [fact])) for fact in world.facts}
    assert len(said) == len(world.facts)


def test_masks_fit(world):
    facts, captions = np.arange(len(world.facts)), len(world.captions)
    beyond = ~pack_facts(np.ones(len(facts), bool))
    full, compact = world.prompt_mask("full"), world.prompt_mask("compact")
    for mask in (full, compact):
        assert mask.dtype == np.uint32 and mask.shape == (world.num_scene_words,)
        assert mask.any() and not (mask & beyond).any()
    assert not (compact & ~full).any()
    for masks in (world.in_view_masks(), world.grounding_masks()):
        assert masks.dtype == np.uint32 and masks.shape == (captions, world.num_scene_words)
        assert not (masks & beyond).any() and not masks[0].any()
    with pytest.raises(UserError, match="--prompt-scope 'short'; known: full, compact"):
        world.prompt_mask("short")


def test_what_asking_needs(world):
    order = [world.facts.index(fact) for fact in world.needable]
    told = world.prompt_mask("full")
    assert order == sorted(set(order)) and all(_has(told, number) for number in order)
    assert isinstance(world.held, frozenset) and world.held <= set(world.needable)
    grouped = [fact for group in world.kinds for fact in group]
    assert len(set(grouped)) == len(grouped) and set(grouped) <= set(world.needable)
    assert all(len(group) > 1 for group in world.kinds)
    for caption in world.captions:
        never = world.never_needs(caption)
        assert isinstance(never, frozenset) and never <= set(world.needable)
        assert " ".join(filter(None, world.parts(caption))) == caption
    assert world.meaningful <= set(world.captions[1:])
    assert "" in world.recipes
    for prefix, recipe in world.recipes.items():
        assert prefix == prefix.lower()
        needed = {"sensible_threshold", "need_threshold", "closed_threshold"}
        assert needed <= set(recipe) <= needed | {"pair_threshold", "wrong_threshold"}
    assert world.prompts.is_dir() and world.recorded.name == "recorded"


def _shapes(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def test_everything_of_the_device_is_jittable_and_has_its_shape(world):
    key, action = jax.random.key(0), jnp.int32(0)
    state = jax.eval_shape(world.reset, key)
    after, transition = jax.eval_shape(world.step, key, state, action)
    assert _shapes(after) == _shapes(state)
    assert not any(jnp.issubdtype(x.dtype, jax.dtypes.prng_key) for x in jax.tree.leaves(state))
    assert state.timestep.shape == () and state.timestep.dtype == jnp.int32
    assert _shapes(transition) == Transition(
        caption=((), jnp.int32),
        reward=((), jnp.float32),
        terminated=((), bool),
        truncated=((), bool),
        score=((), jnp.float32),
        achievements=((len(world.achievements),), bool),
    )
    observed = jax.eval_shape(world.observe, state)
    is_vector = len(world.observation_shape) == 1
    assert observed.shape == world.observation_shape
    assert observed.dtype == (jnp.float32 if is_vector else jnp.uint8)
    assert is_vector or len(world.observation_shape) == 3, "frames are stacked"
    scene, oracle = jax.eval_shape(world.scene, state), jax.eval_shape(world.oracle, state)
    assert (scene.shape, scene.dtype) == ((world.num_scene_words,), jnp.uint32)
    assert (oracle.shape, oracle.dtype) == ((len(world.captions),), bool)
    picture = jax.eval_shape(world.render, state)
    assert picture.dtype == jnp.uint8 and len(picture.shape) == 3 and picture.shape[-1] == 3


@pytest.fixture(scope="module")
def played(world):
    """The outcome of a few random steps, leaves [T, ...], and of one at the time limit.

    Crafter takes long to compile, and is played in test_crafter.py.
    """
    if world.name == "crafter":
        pytest.skip("played in test_crafter.py")

    def step(state, key):
        action_key, step_key = jax.random.split(key)
        action = jax.random.randint(action_key, (), 0, len(world.actions))
        state, transition = world.step(step_key, state, action)
        observed = world.observe(state)
        packed = world.pack_observation(observed)
        return state, (transition, world.scene(state), world.oracle(state), observed, packed)

    def run(key):
        state = world.reset(key)
        last = state.replace(timestep=state.timestep * 0 + world.max_episode_steps - 1)
        out = jax.lax.scan(step, state, jax.random.split(key, NUM_STEPS))[1]
        return out, world.step(key, last, jnp.int32(0))[1]

    return jax.device_get(jax.jit(run)(jax.random.key(5)))


def test_steps_say_what_exists(world, played):
    (transition, scenes, oracle, *_), _ = played
    assert (transition.caption >= 0).all() and (transition.caption < len(world.captions)).all()
    assert not (transition.terminated & transition.truncated).any()
    assert np.isfinite(transition.reward).all() and np.isfinite(transition.score).all()
    assert not (scenes & ~pack_facts(np.ones(len(world.facts), bool))).any()
    assert not oracle[:, 0].any(), "nothing is no goal"
    sensible = {world.captions[number] for number in np.flatnonzero(oracle.any(0))}
    assert sensible <= world.meaningful


def test_the_timestep_of_a_state_decides_when_it_is_over(played):
    assert played[1].truncated | played[1].terminated


def test_packed_observations_come_back(world, played):
    *_, observed, packed = played[0]
    history = world.history
    windows = np.stack([packed[i : NUM_STEPS - history + 1 + i] for i in range(history)], 1)
    again = np.asarray(world.unpack_observation(jnp.asarray(windows)))
    assert again.dtype == observed.dtype
    np.testing.assert_array_equal(again, observed[history - 1 :])


def test_packed_facts_are_the_bits_of_a_scene():
    facts = [f"fact {i}" for i in range(40)]
    assert mask_of(facts, ["fact 0", "fact 33"]).tolist() == [1, 2]
    assert pack_facts(np.ones((2, 0, 40), bool)).shape == (2, 0, 2)
    assert pack_facts(np.eye(40, dtype=bool))[31].tolist() == [1 << 31, 0]
    with pytest.raises(ValueError):
        mask_of(facts, ["fact 40"])


def test_the_wrapper_has_the_whole_contract():
    assert set(MEMBERS) <= set(vars(WorldWrapper))


class Half:
    """Has words, but cannot be played."""

    name, actions = "half", ("wait",)

    @classmethod
    def from_args(cls, args):
        return cls()


@pytest.mark.parametrize(
    "wrong, names",
    [
        ({"env": "minecraft"}, ("--env 'minecraft'", *WORLDS)),
        ({"env": "no_such_package.world:World"}, ("--env", "no_such_package")),
        ({"env": f"{TOY}:Moon"}, ("--env", "Moon")),
        ({"env": f"{TOY}:ToyState"}, ("--env", "from_args")),
        ({"env": "tests.test_worlds:Half"}, ("--env", "captions", "scene", "parts")),
        ({"env": ":"}, ("--env :",)),
        ({"actions": "all"}, ("--actions 'all'", "pairs", "base")),
        ({"captions": "strict"}, ("--captions 'strict'", "attempt", "effect")),
        ({"game_rules": "chess"}, ("--game-rules 'chess'", "paper", "craftax")),
        ({"observation": ""}, ("--observation ''", "symbolic", "pixels", "frames")),
        ({"env": f"{TOY}:ToyWorld", "game_rules": "paper"}, ("toy", "--game-rules", "none")),
    ],
)
def test_what_a_world_does_not_have_is_refused_by_name(wrong, names):
    with pytest.raises(UserError) as caught:
        make_world(replace(WorldArgs(), **wrong))
    message = str(caught.value)
    assert "\n" not in message and all(name in message for name in names), message


def test_a_module_that_fails_is_said_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "torn_world.py").write_text("raise RuntimeError('first\\nsecond')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="torn_world:World: RuntimeError: first second$"):
        make_world(WorldArgs("torn_world:World"))


def test_each_option_that_is_given_is_taken():
    default, other = make_world(WorldArgs()), make_world(ARGS["crafter-pixels"])
    assert len(default.actions) == 139 and len(other.actions) == 17
    assert default.max_episode_steps == 400 and other.max_episode_steps == 10_000
    assert len(default.observation_shape) == 1 and other.observation_shape[-1] == 3
    assert (default.caption_regime, other.caption_regime) == ("attempt", "effect")
    assert (default.needs_below, other.needs_below) == (5, 9)
    assert isinstance(make_world(ARGS["crafter-frames"]), FrameStack)
    house = make_world(ARGS["housekeep-pixels"])
    assert (house.task, house.observation_shape[-1]) == ("test:3", 3)
    given = [
        asdict(ARGS[name]).items()
        for name in ("crafter-pixels", "crafter-task", "housekeep-pixels")
    ]
    given = {name for items in given for name, value in items if value is not None}
    added = set(asdict(WorldArgs())) - given - {"placements"}  # a file, see test_housekeep.py
    assert not added, "an option was added: give it here"

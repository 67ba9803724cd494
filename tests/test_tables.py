"""The tables on the device against plain Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from hypothesis import given, settings
from hypothesis import strategies as st

from goals.arguments import GoalArgs, TextArgs
from goals.tables import (
    SceneIndex,
    SceneTable,
    embed_facts,
    embed_text,
    grow_goals,
    hash_scenes,
    is_known,
    lookup,
    pack_bits,
    read_text,
    share_unanswered,
    suggest,
    suggest_by_rules,
    suggest_by_scene,
    unpack_bits,
    word_sets,
)
from tests.helpers.tables import make_tables
from tests.toy.world import ToyWorld


@pytest.mark.parametrize("num_words", [1, 2])
def test_lookup_finds_every_key_and_nothing_else(num_words):
    rng = np.random.default_rng(0)
    keys = np.unique(rng.integers(0, 2**32, (5000, num_words), np.uint32), axis=0)
    rng.shuffle(keys)
    index = SceneIndex(num_words, row_capacity=16)
    rows = [index.add(key) for key in keys[:4000]]
    assert rows == list(range(4000)) and len(index) == 4000
    assert [index.add(key) for key in keys[:10]] == rows[:10]
    found = np.asarray(jax.jit(lookup)(index.to_device(), jnp.asarray(keys)))
    np.testing.assert_array_equal(found[:4000], rows)
    assert (found[4000:] == -1).all()


def test_lookup_compares_whole_keys_when_hashes_collide():
    keys = np.arange(200_000, dtype=np.uint32)[:, None]
    slots = hash_scenes(keys) % 64
    colliding = keys[slots == slots[0]][:40]
    index = SceneIndex(1, row_capacity=32)
    for key in colliding:
        index.add(key)
    np.testing.assert_array_equal(lookup(index.to_device(), jnp.asarray(colliding)), range(40))


def test_empty_table_knows_no_scene_not_even_zero():
    table = SceneIndex(2).to_device()
    assert lookup(table, jnp.zeros((3, 2), jnp.uint32)).tolist() == [-1, -1, -1]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.booleans(), min_size=96, max_size=96))
def test_bits_survive_packing(bits):
    words = pack_bits(jnp.asarray(bits))
    assert [int(words[i // 32]) >> (i % 32) & 1 for i in range(96)] == [int(b) for b in bits]
    assert unpack_bits(words).tolist() == bits


def test_rules_equal_plain_python_on_random_masks():
    rng = np.random.default_rng(1)
    scenes = rng.integers(0, 2**32, (50, 2), np.uint32)
    needs = rng.integers(0, 2**32, (40, 2), np.uint32) & rng.integers(0, 2**32, (40, 2), np.uint32)
    needs &= rng.integers(0, 2**32, (40, 2), np.uint32) & rng.integers(0, 2**32, (40, 2), np.uint32)
    any_of = np.where(rng.random((40, 1)) < 0.5, 0, 1 << rng.integers(0, 32, (40, 2))).astype(
        np.uint32
    )
    sets = np.where(
        rng.random((40, 3, 1)) < 0.5,
        0,
        rng.integers(0, 2**32, (40, 3, 2)) & rng.integers(0, 2**32, (40, 3, 2)),
    )
    sets = (
        sets.astype(np.uint32)
        & rng.integers(0, 2**32, (40, 3, 2), np.uint32)
        & rng.integers(0, 2**32, (40, 3, 2), np.uint32)
    )
    sensible = rng.random(40) < 0.7
    arrays = {"needs": needs, "alternatives": sets, "any_of": any_of, "sensible": sensible}
    tables = make_tables(**{name: jnp.asarray(array) for name, array in arrays.items()})
    suggested = np.asarray(suggest_by_rules(tables, jnp.asarray(scenes)))

    def as_set(words):
        return {32 * w + b for w in range(2) for b in range(32) if int(words[w]) >> b & 1}

    expected = [
        [
            bool(
                sensible[g]
                and as_set(needs[g]) <= as_set(s)
                and all(as_set(some) & as_set(s) for some in (any_of[g], *sets[g]) if as_set(some))
            )
            for g in range(40)
        ]
        for s in scenes
    ]
    assert suggested.tolist() == expected
    assert 0 < suggested.mean() < 1


def test_suggestions_by_scene_read_only_what_the_prompt_tells():
    index = SceneIndex(1)
    row = index.add(np.asarray([0b01], np.uint32))
    suggested = np.zeros((len(index.keys), 1), np.uint32)
    suggested[row] = 0b100
    tables = make_tables(goal_rows=index.to_device(), suggested=jnp.asarray(suggested))
    scenes = jnp.asarray([[0b11], [0b01], [0b10]], jnp.uint32)
    bits, rows = suggest_by_scene(tables, np.asarray([0b01], np.uint32), scenes)
    assert rows.tolist() == [row, row, -1] and bits[:, 0].tolist() == [0b100, 0b100, 0]


def test_sets_are_embedded_as_means():
    vectors = np.eye(3, dtype=np.float32)
    tables = make_tables(embeddings=jnp.asarray(vectors), fact_embeddings=jnp.asarray(vectors))
    goals = embed_goals(tables, jnp.asarray([[True, True, False], [False, False, False]]))
    np.testing.assert_allclose(goals, [[0.5, 0.5, 0], [0, 0, 0]])
    facts = embed_facts(tables, jnp.asarray([[0b101], [0]], jnp.uint32))
    np.testing.assert_allclose(facts, [[0.5**0.5, 0, 0.5**0.5], [0, 0, 0]], rtol=1e-6)


def test_table_on_the_device_does_not_change_with_the_index():
    index = SceneIndex(1)
    table = index.to_device()
    index.add(np.asarray([7], np.uint32))
    assert isinstance(table, SceneTable) and int(jnp.max(table.slots)) == -1


# By the arguments


def scene_tables(**parts):
    """Return tables of the toy that know the scenes 1 and 2: [take key] in 1, no answer about 2."""
    index = SceneIndex(1, row_capacity=4)
    rows = [index.add(np.asarray([scene], np.uint32)) for scene in (1, 2)]
    suggested, answered = np.zeros((4, 1), np.uint32), np.zeros(4, bool)
    suggested[rows[0]], answered[rows[0]] = 0b10, True
    known = {"goal_rows": index.to_device(), "text_rows": index.to_device()}
    known |= {"suggested": jnp.asarray(suggested), "answered": jnp.asarray(answered)}
    empty = jnp.zeros((32, 1), jnp.uint32)
    known |= {"sensible": jnp.zeros(32, bool), "any_of": empty, "needs": empty}
    return make_tables(**known | parts)


def test_suggestions_come_from_the_source_that_is_named():
    world, scenes = ToyWorld(), jnp.asarray([[0b1000001], [0b0001010], [0b0001100]], jnp.uint32)
    states = jax.vmap(world.reset)(jax.random.split(jax.random.key(0), 3))
    states = states.replace(position=jnp.asarray([0, 1, 3]), has_key=jnp.asarray([0, 0, 1], bool))
    sensible = jnp.zeros(32, bool).at[1:4].set(True)
    any_of = jnp.zeros((32, 1), jnp.uint32).at[1].set(2)
    sets = jnp.zeros((32, 0, 1), jnp.uint32)
    tables = scene_tables(sensible=sensible, any_of=any_of, alternatives=sets)

    def goals_of(key=None, **fields):
        args = GoalArgs(prompt_scope="compact", **fields)
        bits = np.asarray(suggest(args, world, tables, key, states, scenes))
        assert bits.shape == (3, 32) and bits.dtype == bool
        return [set(np.flatnonzero(line).tolist()) for line in bits]

    assert goals_of(goal_source="oracle") == [{1}, set(), {2}]
    assert goals_of(goal_form="open") == [{1}, set(), set()]
    assert goals_of(goal_form="closed", grounding=True) == [set()] * 3
    for fields in ({"goal_source": "novelty"}, {"goal_source": "grounded"}, {}):
        assert goals_of(**fields) == [{2, 3}, {1, 2, 3}, {2, 3}]
    drawn = goals_of(jax.random.key(1), goal_source="uniform", uniform_goals=2)
    assert all(goals <= {1, 2, 3} and 0 < len(goals) <= 2 for goals in drawn)


def test_a_scene_is_known_if_nothing_is_waited_for():
    tables, scenes = scene_tables(), jnp.asarray([[1], [0b1000010], [4]], jnp.uint32)

    def known(args):
        return is_known(args, ToyWorld(), tables, scenes).tolist()

    assert known(TextArgs()) == known(TextArgs(text_observation="facts")) == [True] * 3
    assert known(TextArgs(text_observation="caption")) == [True, False, False]
    assert known(GoalArgs(prompt_scope="compact", goal_form="open")) == [True, True, False]
    assert known(GoalArgs(prompt_scope="compact", goal_form="open", resolve="async")) == [True] * 3
    assert known(
        GoalArgs(prompt_scope="compact", goal_form="open", text_observation="caption")
    ) == [True, False, False]
    assert known(GoalArgs()) == [True] * 3


def test_the_share_of_scenes_without_an_answer():
    tables = scene_tables()
    scenes = jnp.asarray([[[1], [0b1000001]], [[2], [4]]], jnp.uint32)
    for args, share in (
        (GoalArgs(prompt_scope="compact", goal_form="open"), 0.5),
        (GoalArgs(), 0.0),
        (TextArgs(), 0.0),
    ):
        assert float(share_unanswered(args, ToyWorld(), tables, scenes)) == share


def test_text_is_embedded_as_the_arguments_say():
    tables = scene_tables(
        text_embeddings=jnp.asarray([[1.0, 2.0], [3.0, 4.0], [0.0, 0.0], [0.0, 0.0]]),
        fact_embeddings=jnp.eye(2),
    )
    scenes = jnp.asarray([[2], [3]], jnp.uint32)
    none = TextArgs(text_observation="none")
    assert embed_text(none, tables, scenes).shape == (2, 0)
    caption = embed_text(TextArgs(text_observation="caption"), tables, scenes)
    assert caption.tolist() == [[3.0, 4.0], [0.0, 0.0]]
    facts = embed_text(TextArgs(text_observation="facts"), tables, scenes)
    np.testing.assert_array_equal(facts, embed_facts(tables, scenes))


def embed_goals(tables, goals):
    """Embed sets of goals [N, G] bool as the mean, [N, E]; the empty set is zero."""
    weights = goals.astype(jnp.float32)
    return weights @ tables.embeddings / jnp.maximum(weights.sum(-1, keepdims=True), 1.0)


@pytest.mark.parametrize("text", ["none", "caption", "facts"])
def test_what_a_policy_reads_as_bits_has_the_embeddings_of_its_texts(text):
    """A layer on the bits is one on the embeddings, up to rounding."""
    rng = np.random.default_rng(0)
    tables = scene_tables(
        text_embeddings=jnp.asarray(rng.normal(size=(4, 6)), jnp.float32),
        fact_embeddings=jnp.asarray(rng.normal(size=(7 * (text == "facts"), 6)), jnp.float32),
        embeddings=jnp.asarray(rng.normal(size=(32, 6)), jnp.float32),
    )
    args = TextArgs(text_observation=text)
    scenes = jnp.asarray([[2], [0b1000010], [0], [99]], jnp.uint32)
    goals = jnp.asarray(rng.random((4, 32)) < 0.2).at[1].set(False)
    weights = jnp.asarray(rng.normal(size=(6, 3)), jnp.float32)
    sets = word_sets(tables, read_text(args, scenes), pack_bits(goals))
    layers = [s.bits @ (s.embeddings @ weights) / s.scale[:, None] for s in sets]
    expected = [embed_text(args, tables, scenes) @ weights] if text != "none" else []
    expected.append(embed_goals(tables, goals) @ weights)
    assert len(layers) == len(expected)
    for layer, plain in zip(layers, expected, strict=True):
        np.testing.assert_allclose(layer, plain, atol=1e-5)
    assert len(word_sets(tables, read_text(args, scenes))) == len(layers) - 1


@struct.dataclass
class Moment:
    """A tree as a script keeps it."""

    achieved: jax.Array
    suggested: jax.Array
    goals: jax.Array
    other: jax.Array


def test_growing_pads_what_has_an_axis_of_goals():
    bits = jnp.ones((2, 32), bool)
    moment = Moment(bits, pack_bits(bits), jnp.ones((2, 5)), bits)
    grown = grow_goals({"now": moment, "achieved": bits[:, :0], "goals": bits[0]}, 128)
    assert grown["now"].achieved.shape == (2, 128) and grown["now"].achieved.sum() == 2 * 32
    assert unpack_bits(grown["now"].suggested).tolist() == grown["now"].achieved.tolist()
    assert grown["now"].goals is moment.goals and grown["now"].other is moment.other
    assert grown["achieved"].shape == (2, 0) and grown["goals"].shape == (128,)
    same = grow_goals(moment, 32)
    assert all(x is y for x, y in zip(jax.tree.leaves(same), jax.tree.leaves(moment), strict=True))

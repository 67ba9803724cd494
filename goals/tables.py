"""What the learner needs from language, as arrays on the device.

Pure JAX functions over one struct; the host side (`goals.service`) fills the arrays. Where they
take `args` and `world`, these are static. Axis letters: T steps, N envs, W scene words, G goals (a
capacity, a multiple of 32), C captions, E embedding, F facts, K sets of facts, S hash slots, R
rows.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from goals.arguments import GoalArgs, TextArgs
from worlds.world import World

Tree = TypeVar("Tree")

NUM_PROBES = 16


@struct.dataclass
class SceneTable:
    """An open-addressing hash from packed scenes to rows.

    slots: [S] int32, a row or -1; keys: [R, W] uint32.
    """

    slots: jax.Array
    keys: jax.Array


@struct.dataclass
class GoalTables:
    """Everything goals mean on the device; parts that a run does not use have size zero.

    goal_rows, text_rows: scene tables; the first is keyed by what the prompt tells, the second by
    the whole scene. suggested: [R, G / 32] uint32, the goals suggested for a row; answered: [R]
    bool, False where nobody has answered. sensible: [G] bool; needs: [G, W] uint32, facts that must
    all hold; alternatives: [G, K, W] uint32, sets of facts, of each of which one must hold; any_of:
    [G, W] uint32, facts of which one must hold by the world's word (no bits: no condition).
    embeddings: [G, E] float32 unit vectors; similarity: [G, C] float32, cosine of goal and caption,
    the caption "nothing" at 0; names: [G, C] bool, whether the caption, or an alias of it, is the
    goal's name. text_embeddings: [R, E] float32, of the whole caption of a scene;
    fact_embeddings: [F, E] float32; mentor: a guide's arrays (lab/mentor.py), None without one.
    """

    goal_rows: SceneTable
    suggested: jax.Array
    answered: jax.Array
    sensible: jax.Array
    needs: jax.Array
    alternatives: jax.Array
    any_of: jax.Array
    embeddings: jax.Array
    similarity: jax.Array
    names: jax.Array
    text_rows: SceneTable
    text_embeddings: jax.Array
    fact_embeddings: jax.Array
    mentor: Any = None


# LOOK UP
def hash_scenes(scenes):
    """Mix scenes [..., W] uint32 into [...] uint32; the same for numpy and JAX arrays."""
    hashed = (scenes[..., 0] & np.uint32(0)) + np.uint32(0x9E3779B9)
    for word in range(scenes.shape[-1]):
        hashed = (hashed ^ scenes[..., word]) * np.uint32(0x85EBCA6B)
        hashed = (hashed ^ (hashed >> np.uint32(13))) * np.uint32(0xC2B2AE35)
        hashed = hashed ^ (hashed >> np.uint32(16))
    return hashed


def lookup(table: SceneTable, scenes: jax.Array) -> jax.Array:
    """Find scenes [..., W] uint32; return rows [...] int32, -1 where the scene is unknown."""
    num_slots = table.slots.shape[0]
    first = (hash_scenes(scenes) & np.uint32(num_slots - 1)).astype(jnp.int32)
    steps = np.arange(NUM_PROBES, dtype=np.int32).reshape((1,) * first.ndim + (-1,))
    probes = (first[..., None] + steps) % num_slots
    rows = table.slots[probes]
    equal = (table.keys[rows] == scenes[..., None, :]).all(-1) & (rows >= 0)
    return jnp.max(jnp.where(equal, rows, -1), axis=-1)


class SceneIndex:
    """The host's side of a `SceneTable`: rows are handed out in order of arrival.

    keys: [n, W] uint32, row i holds key i. Capacity grows by doubling; there are at least twice as
    many slots as rows.
    """

    def __init__(self, num_words: int, row_capacity: int = 2048):
        self.keys = np.zeros((row_capacity, num_words), np.uint32)
        self.slots = np.full(2 * row_capacity, -1, np.int32)
        self.rows: dict[bytes, int] = {}

    def __contains__(self, key: np.ndarray) -> bool:
        return key.tobytes() in self.rows

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, key: np.ndarray) -> int:
        """Give the scene key [W] uint32 a row, its old one if it has one."""
        if key in self:
            return self.rows[key.tobytes()]
        row = len(self.rows)
        if row == len(self.keys):
            self.keys = np.concatenate([self.keys, np.zeros_like(self.keys)])
            self._rehash(2 * len(self.keys), row)
        self.keys[row] = key
        self.rows[key.tobytes()] = row
        if not self._place(row):
            self._rehash(2 * len(self.slots), row + 1)
        return row

    def _rehash(self, num_slots: int, num_rows: int) -> None:
        self.slots = np.full(num_slots, -1, np.int32)
        if not all(self._place(row) for row in range(num_rows)):
            self._rehash(2 * num_slots, num_rows)

    def _place(self, row: int) -> bool:
        first = int(hash_scenes(self.keys[row : row + 1])[0])
        probes = (first + np.arange(NUM_PROBES)) % len(self.slots)
        free = probes[self.slots[probes] < 0]
        if len(free):
            self.slots[free[0]] = row
        return bool(len(free))

    def to_device(self) -> SceneTable:
        """Copy the table to the device."""
        return SceneTable(jnp.array(self.slots), jnp.array(self.keys))


def pack_bits(bits: jax.Array) -> jax.Array:
    """Pack bits [..., 32 * n] bool into words [..., n] uint32, lowest bit first."""
    grouped = bits.reshape(*bits.shape[:-1], -1, 32).astype(jnp.uint32)
    weights = np.left_shift(np.uint32(1), np.arange(32, dtype=np.uint32))
    weights = weights.reshape((1,) * (grouped.ndim - 1) + (32,))
    return jnp.sum(grouped * weights, axis=-1, dtype=jnp.uint32)


def unpack_bits(words: jax.Array) -> jax.Array:
    """Unpack words [..., n] uint32 into bits [..., 32 * n] bool, lowest bit first."""
    shifts = np.arange(32, dtype=np.uint32).reshape((1,) * words.ndim + (32,))
    bits = (words[..., None] >> shifts) & np.uint32(1)
    return bits.astype(bool).reshape(*words.shape[:-1], -1)


# SUGGEST
def suggest(
    args: GoalArgs,
    world: World,
    tables: GoalTables,
    key: jax.Array | None,
    states: Any,
    scenes: jax.Array,
) -> jax.Array:
    """Return the goals suggested in the scenes [N, W] uint32 as [N, G] bool.

    states are read by the oracle and the task alone, key by uniform alone. For grounded and novelty
    the tables hold trivial rules: the thing is at hand, or nothing at all.
    """
    num_goals = tables.sensible.shape[0]
    if args.goal_source == "oracle":
        goals = jax.vmap(world.oracle)(states)
        return jnp.pad(goals, ((0, 0), (0, num_goals - goals.shape[1])))
    if args.goal_source == "task":
        goals = jax.vmap(lambda state: world.task_goals(state, args.task_goals == "parts"))(states)
        return jnp.pad(goals, ((0, 0), (0, num_goals - goals.shape[1])))
    if args.goal_source == "uniform":
        shape = scenes.shape[0], args.uniform_goals
        drawn = jax.random.randint(key, shape, 1, len(world.captions))
        return jax.nn.one_hot(drawn, num_goals, dtype=bool).any(1)
    if args.per_scene:
        packed = suggest_by_scene(tables, world.prompt_mask(args.prompt_scope), scenes)[0]
        goals = unpack_bits(packed)
        return goals & is_grounded(tables, scenes) if args.grounding else goals
    return suggest_by_rules(tables, scenes)


def is_grounded(tables: GoalTables, scenes: jax.Array) -> jax.Array:
    """Return which goals have one of the facts they must have one of, [N, G] bool.

    scenes: [N, W] uint32.
    """
    any_of = tables.any_of[None]
    return ((scenes[:, None] & any_of) != 0).any(-1) | (any_of == 0).all(-1)


def suggest_by_rules(tables: GoalTables, scenes: jax.Array) -> jax.Array:
    """Suggest each sensible goal whose needs hold in scenes [N, W] uint32; return [N, G] bool."""
    needs, sets = tables.needs[None], tables.alternatives[None]
    has_all = ((scenes[:, None] & needs) == needs).all(-1)
    has_each = (((scenes[:, None, None] & sets) != 0).any(-1) | (sets == 0).all(-1)).all(-1)
    return tables.sensible[None] & has_all & has_each & is_grounded(tables, scenes)


def suggest_by_scene(
    tables: GoalTables, prompt_mask: np.ndarray, scenes: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Look up what was suggested for what the prompt tells of scenes [..., W] uint32.

    Returns suggestions [..., G / 32] uint32, packed, and rows [...] int32 (-1: nobody was asked
    yet, nothing is suggested).
    """
    told = scenes & prompt_mask.reshape((1,) * (scenes.ndim - 1) + (-1,))
    rows = lookup(tables.goal_rows, told)
    return jnp.where((rows >= 0)[..., None], tables.suggested[rows], 0), rows


def is_known(args: TextArgs, world: World, tables: GoalTables, scenes: jax.Array) -> jax.Array:
    """Return in which scenes [..., W] uint32 the run need not wait for anything, [...] bool."""
    known = jnp.ones(scenes.shape[:-1], bool)
    if args.text_observation == "caption":
        known &= lookup(tables.text_rows, scenes) >= 0
    if args.waits_for_goals:
        prompt_mask = world.prompt_mask(args.prompt_scope)
        known &= suggest_by_scene(tables, prompt_mask, scenes)[1] >= 0
    return known


def share_unanswered(
    args: TextArgs, world: World, tables: GoalTables, scenes: jax.Array
) -> jax.Array:
    """Return the share of scenes [T, N, W] for which no language model has answered, float32 []."""
    if not args.per_scene:
        return jnp.zeros(())
    rows = suggest_by_scene(tables, world.prompt_mask(args.prompt_scope), scenes)[1]
    return 1.0 - (tables.answered[rows] & (rows >= 0)).mean()


# READ
@struct.dataclass
class WordSet:
    """Sets of texts that a policy reads as the mean of their embeddings, bits E / scale.

    bits: [B, n] float32, which texts are in each set; embeddings: [n, E] float32; scale: [B]
    float32. Kept apart, for E can be multiplied with a layer's weights once for all rows.
    """

    bits: jax.Array
    embeddings: jax.Array
    scale: jax.Array


def read_text(args: TextArgs, scenes: jax.Array) -> jax.Array:
    """Return what a policy keeps of the text of scenes [N, W] uint32: the scenes, or [N, 0]."""
    return scenes if args.text_observation != "none" else scenes[:, :0]


def word_sets(tables: GoalTables, text: jax.Array, goals: jax.Array | None = None) -> list[WordSet]:
    """Return the sets to embed of B texts and goals; what has size zero gives none.

    text: scenes [B, W] uint32, of which the tables embed the facts or the whole caption; goals:
    [B, G / 32] uint32. The means are those of `embed_text`; of goals it is the mean embedding.
    """
    sets, facts = [], tables.fact_embeddings
    if text.shape[-1] and len(facts):
        bits = unpack_bits(text)[:, : len(facts)].astype(jnp.float32)
        length = jnp.sqrt(jnp.maximum(((bits @ (facts @ facts.T)) * bits).sum(-1), 0.0))
        sets.append(WordSet(bits, facts, jnp.maximum(length, 1e-6)))
    elif text.shape[-1]:
        rows = lookup(tables.text_rows, text)
        vectors = jnp.where((rows >= 0)[:, None], tables.text_embeddings[rows], 0.0)
        sets.append(WordSet(vectors, jnp.eye(vectors.shape[-1]), jnp.ones(len(text))))
    if goals is not None and goals.shape[-1]:
        bits = unpack_bits(goals).astype(jnp.float32)
        sets.append(WordSet(bits, tables.embeddings, jnp.maximum(bits.sum(-1), 1.0)))
    return sets


def embed_text(args: TextArgs, tables: GoalTables, scenes: jax.Array) -> jax.Array:
    """Embed scenes [N, W] uint32 as --text-observation says, [N, E] float32, or [N, 0]."""
    if args.text_observation == "caption":
        rows = lookup(tables.text_rows, scenes)
        return jnp.where((rows >= 0)[:, None], tables.text_embeddings[rows], 0.0)
    if args.text_observation == "facts":
        return embed_facts(tables, scenes)
    return jnp.zeros((scenes.shape[0], 0))


def embed_facts(tables: GoalTables, scenes: jax.Array) -> jax.Array:
    """Embed scenes [N, W] uint32 as the normalised mean of their facts, [N, E] float32."""
    num_facts = tables.fact_embeddings.shape[0]
    facts = unpack_bits(scenes)[..., :num_facts].astype(jnp.float32)
    total = facts @ tables.fact_embeddings
    return total / jnp.maximum(jnp.linalg.norm(total, axis=-1, keepdims=True), 1e-6)


# GROW
def grow_goals(tree: Tree, num_goals: int) -> Tree:
    """Make room for goals: pad the last axis of all leaves that have one for G up to `num_goals`.

    Those are the leaves called "suggested", "goals" or by a name that begins with "achieved":
    [..., G] bool, or [..., G / 32] uint32. What has size zero or another type stays as it is.
    """

    def grow(path: tuple, leaf: jax.Array) -> jax.Array:
        name = getattr(path[-1], "name", getattr(path[-1], "key", None)) if path else None
        of_world = any(getattr(part, "name", None) in ("states", "pool") for part in path)
        has_goals = name in ("suggested", "goals") or str(name).startswith("achieved")
        has_goals &= not of_world
        if not has_goals or not leaf.shape[-1]:
            return leaf
        sizes = {np.dtype(bool): num_goals, np.dtype(np.uint32): num_goals // 32}
        more = sizes.get(leaf.dtype, 0) - leaf.shape[-1]
        return jnp.pad(leaf, [(0, 0)] * (leaf.ndim - 1) + [(0, more)]) if more > 0 else leaf

    return jax.tree_util.tree_map_with_path(grow, tree)

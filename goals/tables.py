"""What the learner needs from language, as arrays on the device: suggestions, embeddings, similarities.

Pure JAX functions over one struct; the host side (`goals.service`) fills the arrays. Axis letters: N envs, W scene words, G goals
(a capacity, a multiple of 32), C captions, E embedding, F facts, K sets of facts, S hash slots, R rows.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

NUM_PROBES = 16


@struct.dataclass
class SceneTable:
    """An open-addressing hash from packed scenes to rows: slots [S] int32 (a row or -1), keys [R, W] uint32."""

    slots: jax.Array
    keys: jax.Array


@struct.dataclass
class GoalTables:
    """Everything goals mean on the device; parts that a run does not use have size zero.

    goal_rows, text_rows: scene tables; the first is keyed by what the prompt tells, the second by the whole scene.
    suggested: [R, G / 32] uint32, the goals suggested for a row; answered: [R] bool, False where nobody has answered.
    sensible: [G] bool; needs: [G, W] uint32, facts that must all hold; alternatives: [G, K, W] uint32, sets of facts, of each of
    which one must hold; any_of: [G, W] uint32, facts of which one must hold by the world's word (no bits: no condition).
    embeddings: [G, E] float32 unit vectors; similarity: [G, C] float32, cosine of goal and caption, the caption "nothing" at 0.
    text_embeddings: [R, E] float32, of the whole caption of a scene; fact_embeddings: [F, E] float32.
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
    text_rows: SceneTable
    text_embeddings: jax.Array
    fact_embeddings: jax.Array


def hash_scenes(scenes):
    """Mix scenes [..., W] uint32 into [...] uint32; the same for numpy and JAX arrays."""
    hashed = (scenes[..., 0] & np.uint32(0)) + np.uint32(0x9E3779B9)
    for word in range(scenes.shape[-1]):
        hashed = (hashed ^ scenes[..., word]) * np.uint32(0x85EBCA6B)
        hashed = (hashed ^ (hashed >> np.uint32(13))) * np.uint32(0xC2B2AE35)
        hashed = hashed ^ (hashed >> np.uint32(16))
    return hashed


def lookup(table: SceneTable, scenes: jax.Array) -> jax.Array:
    """Find scenes [..., W] uint32 in the table; return rows [...] int32, -1 where the scene is unknown."""
    first = (hash_scenes(scenes) & np.uint32(table.slots.shape[0] - 1)).astype(jnp.int32)
    probes = (first[..., None] + np.arange(NUM_PROBES, dtype=np.int32).reshape((1,) * first.ndim + (-1,))) % table.slots.shape[0]
    rows = table.slots[probes]
    equal = (table.keys[rows] == scenes[..., None, :]).all(-1) & (rows >= 0)
    return jnp.max(jnp.where(equal, rows, -1), axis=-1)


class SceneIndex:
    """The host's side of a `SceneTable`: rows are handed out in order of arrival, capacity grows by doubling.

    keys: [n, W] uint32, row i holds key i. A capacity of `rows` rows has at least twice as many slots.
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
    weights = np.left_shift(np.uint32(1), np.arange(32, dtype=np.uint32)).reshape((1,) * (grouped.ndim - 1) + (32,))
    return jnp.sum(grouped * weights, axis=-1, dtype=jnp.uint32)


def unpack_bits(words: jax.Array) -> jax.Array:
    """Unpack words [..., n] uint32 into bits [..., 32 * n] bool, lowest bit first."""
    shifts = np.arange(32, dtype=np.uint32).reshape((1,) * words.ndim + (32,))
    bits = (words[..., None] >> shifts) & np.uint32(1)
    return bits.astype(bool).reshape(*words.shape[:-1], -1)


def is_grounded(tables: GoalTables, scenes: jax.Array) -> jax.Array:
    """Tell which goals have one of the facts they must have one of, in scenes [N, W] uint32; return [N, G] bool."""
    any_of = tables.any_of[None]
    return ((scenes[:, None] & any_of) != 0).any(-1) | (any_of == 0).all(-1)


def suggest_by_rules(tables: GoalTables, scenes: jax.Array) -> jax.Array:
    """Suggest each sensible goal whose needs hold in the scenes [N, W] uint32; return [N, G] bool."""
    needs, sets = tables.needs[None], tables.alternatives[None]
    has_all = ((scenes[:, None] & needs) == needs).all(-1)
    has_each = (((scenes[:, None, None] & sets) != 0).any(-1) | (sets == 0).all(-1)).all(-1)
    return tables.sensible[None] & has_all & has_each & is_grounded(tables, scenes)


def refute_needs(tables: GoalTables, captions: jax.Array, scenes: jax.Array) -> jax.Array:
    """Find the needs that goals, here the captions [...] int32 themselves, were reached without in scenes [..., W] uint32.

    Returns them, and alternatives of which not one was there, as [G, W] uint32. A caption proves no more than it says: one of an
    attempt says only that the thing was at hand.
    """
    num_goals, num_words = tables.needs.shape
    captions, scenes = captions.reshape(-1), scenes.reshape(-1, num_words)
    missing, sets = tables.needs[captions] & ~scenes, tables.alternatives[captions]
    has_none = ((sets & scenes[:, None]) == 0).all(-1, keepdims=True)
    missing |= jnp.bitwise_or.reduce(jnp.where(has_none, sets, 0), axis=1)
    return pack_bits(jnp.zeros((num_goals, 32 * num_words), bool).at[captions].max(unpack_bits(missing)))


def drop_needs(tables: GoalTables, refuted: jax.Array) -> GoalTables:
    """Return the tables without the needs and alternatives that are refuted, [G, W] uint32 or of size zero."""
    if not refuted.size:
        return tables
    return tables.replace(needs=tables.needs & ~refuted, alternatives=tables.alternatives & ~refuted[:, None])


def suggest_by_scene(tables: GoalTables, prompt_mask: np.ndarray, scenes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Look up what was suggested for what the prompt tells of scenes [..., W] uint32.

    Returns suggestions [..., G / 32] uint32, packed, and rows [...] int32 (-1: nobody was asked yet, nothing suggested).
    """
    rows = lookup(tables.goal_rows, scenes & prompt_mask.reshape((1,) * (scenes.ndim - 1) + (-1,)))
    return jnp.where((rows >= 0)[..., None], tables.suggested[rows], 0), rows


def embed_facts(tables: GoalTables, scenes: jax.Array) -> jax.Array:
    """Embed scenes [N, W] uint32 as the normalised mean of the embeddings of their facts, [N, E] float32."""
    num_facts = tables.fact_embeddings.shape[0]
    facts = unpack_bits(scenes)[..., :num_facts].astype(jnp.float32)
    total = facts @ tables.fact_embeddings
    return total / jnp.maximum(jnp.linalg.norm(total, axis=-1, keepdims=True), 1e-6)


def embed_goals(tables: GoalTables, goals: jax.Array) -> jax.Array:
    """Embed sets of goals [N, G] bool as the mean of their embeddings, [N, E] float32; the empty set is zero."""
    weights = goals.astype(jnp.float32)
    return weights @ tables.embeddings / jnp.maximum(weights.sum(-1, keepdims=True), 1.0)

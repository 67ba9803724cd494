"""The host's side of the tables: goals and their numbers, and what is known of each scene."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from goals.arguments import GoalArgs, TextArgs
from goals.embeddings import Embeddings
from goals.rules import Rules
from goals.tables import GoalTables, SceneIndex
from worlds.world import World, pack_facts

NOTHING = "nothing"  # captions[0] of every world: no goal
GOAL_CAPACITY = 1024  # goals there is room for at first, where a model words them freely


class SceneTables:
    """Goals by number, and by scene what was suggested and how its text is embedded.

    The first goals are what a step can be called: captions, or with --goal-source novelty-paper
    actions. goal_index holds the scenes that somebody was asked about,
    text_index those whose text is embedded; suggested: [R, G / 32] uint32, answered: [R] bool,
    text_vectors: [R, E] float32, by their rows.
    """

    def __init__(self, world: World, args: TextArgs):
        self.goals: list[str] = list(step_names(world, args))
        self._capacity = -(-len(self.goals) // 32) * 32
        if args.per_scene and args.goal_form == "open":
            self._capacity = GOAL_CAPACITY
        self._goal_ids = {goal: index for index, goal in enumerate(self.goals)}
        self.goal_index = SceneIndex(world.num_scene_words)
        self.text_index = SceneIndex(world.num_scene_words)
        rows = len(self.goal_index.keys) if args.per_scene else 0
        self.suggested = np.zeros((rows, self.num_goals // 32), np.uint32)
        self.answered = np.zeros(rows, bool)
        self.text_vectors = np.zeros((0, 0), np.float32)

    @property
    def num_goals(self) -> int:
        """G, the capacity of the goal axis: a multiple of 32 that grows by doubling."""
        capacity = self._capacity
        while capacity < len(self.goals):
            capacity *= 2
        return capacity

    @property
    def num_scenes(self) -> int:
        """How many scenes are known."""
        return max(len(self.goal_index), len(self.text_index))

    def goal_id(self, goal: str) -> int:
        """Return a goal's number, a new one if it is new."""
        if goal not in self._goal_ids:
            self._goal_ids[goal] = len(self.goals)
            self.goals.append(goal)
        return self._goal_ids[goal]

    def add_sentence(self, sentence: str) -> None:
        """Enter a goal under a number of its own, even if a caption says the same."""
        self._goal_ids.setdefault(sentence, len(self.goals))
        self.goals.append(sentence)

    def add_goals(self, scene: np.ndarray, goals: Sequence[str] | None) -> None:
        """Enter the goals of a scene [W] uint32; None: nobody has answered."""
        row = self.goal_index.add(scene)
        self.answered = _grown(self.answered, len(self.goal_index.keys))
        self.suggested = _grown(self.suggested, len(self.goal_index.keys))
        self.answered[row] = goals is not None
        for goal in map(self.goal_id, goals or ()):
            if self.suggested.shape[1] < self.num_goals // 32:
                self.suggested = _grown(self.suggested.T, self.num_goals // 32).T
            self.suggested[row, goal // 32] |= np.uint32(1 << goal % 32)

    def add_text(self, scene: np.ndarray, vector: np.ndarray) -> None:
        """Enter the embedding [E] of the text of a scene [W] uint32."""
        row = self.text_index.add(scene)
        self.text_vectors = _grown(self.text_vectors, len(self.text_index.keys))
        self.text_vectors[row] = vector

    def size_texts(self, embedding_size: int) -> None:
        """Make room for the first texts, embeddings of so many numbers."""
        self.text_vectors = np.zeros((len(self.text_index.keys), embedding_size), np.float32)


def build_tables(
    world: World,
    args: TextArgs,
    scenes: SceneTables,
    embeddings: Embeddings,
    rules: Rules | None = None,
) -> GoalTables:
    """Copy to the device what is known; rules are those of the rules form."""
    source = args.goal_source if isinstance(args, GoalArgs) else "none"
    names = step_names(world, args)
    num_goals, num_names, num_captions = scenes.num_goals, len(names), len(world.captions)
    sensible = np.zeros(num_goals, bool)
    sensible[:num_names] = [name != NOTHING for name in names]
    needs = np.zeros((num_goals, world.num_scene_words), np.uint32)
    any_of = np.zeros_like(needs)
    alternatives = np.zeros((num_goals, 0, world.num_scene_words), np.uint32)
    if rules is not None:
        sensible, needs, alternatives = _pack_rules(rules, num_goals)
    if rules is not None and source == "llm":
        any_of[:num_captions] = world.in_view_masks()
    elif source in ("grounded", "llm"):
        any_of[:num_captions] = world.grounding_masks()
    vectors = np.zeros((num_goals, 0), np.float32)
    if embeds_goals(args):
        known = embeddings.embed(scenes.goals)
        vectors = np.zeros((num_goals, known.shape[1]), np.float32)
        vectors[: len(known)] = known
    if source == "llm":
        similarity = vectors @ vectors[:num_names].T
    else:
        similarity = np.eye(num_goals, num_names, dtype=np.float32)
    if names[0] == NOTHING:
        similarity[0] = similarity[:, 0] = 0.0
    named = np.eye(num_goals, num_names, dtype=bool)
    for group in world.aliases if names == world.captions else ():
        # A goal is reached under any of its names, and with it all that have these names.
        numbers = [names.index(name) for name in group]
        similarity[:, numbers] = similarity[:, numbers].max(1, keepdims=True)
        named[np.ix_(numbers, numbers)] = True
    for group in world.once if source in ("llm", "oracle") else ():
        numbers = [names.index(name) for name in group]
        named[np.ix_(numbers, numbers)] = True
    facts = np.zeros((0, 0), np.float32)
    if args.text_observation == "facts":
        facts = embeddings.embed(list(world.facts))
    return GoalTables(
        goal_rows=scenes.goal_index.to_device(),
        suggested=jnp.array(scenes.suggested),
        answered=jnp.array(scenes.answered),
        sensible=jnp.array(sensible),
        needs=jnp.array(needs),
        alternatives=jnp.array(alternatives),
        any_of=jnp.array(any_of),
        embeddings=jnp.array(vectors),
        similarity=jnp.array(similarity),
        names=jnp.array(named),
        text_rows=scenes.text_index.to_device(),
        text_embeddings=jnp.array(scenes.text_vectors),
        fact_embeddings=jnp.array(facts),
    )


def replace_rules(tables: GoalTables, rules: Rules) -> GoalTables:
    """Return the tables with other rules, of as many sets of alternatives."""
    sensible, needs, alternatives = _pack_rules(rules, len(tables.sensible))
    return tables.replace(
        sensible=jnp.array(sensible), needs=jnp.array(needs), alternatives=jnp.array(alternatives)
    )


def _pack_rules(rules: Rules, num_goals: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return sensible bool [G], needs uint32 [G, W], alternatives uint32 [G, K, W]."""
    more = num_goals - len(rules.sensible)
    return (
        np.pad(rules.sensible, (0, more)),
        np.pad(pack_facts(rules.needs), ((0, more), (0, 0))),
        np.pad(pack_facts(rules.alternatives), ((0, more), (0, 0), (0, 0))),
    )


def step_names(world: World, args: TextArgs) -> tuple[str, ...]:
    """Return what a step can be called: the captions, or the actions where these are paid."""
    return world.actions if args.pays_actions else world.captions


def embeds_goals(args: TextArgs) -> bool:
    """Return whether goals are embedded: to be read, or compared with captions."""
    return isinstance(args, GoalArgs) and (args.reads_goals or args.goal_source == "llm")


def _grown(array: np.ndarray, length: int) -> np.ndarray:
    """Return the array with zeros appended up to the length, itself if it has that length."""
    if len(array) == length:
        return array
    return np.concatenate([array, np.zeros((length - len(array), *array.shape[1:]), array.dtype)])

"""The words of the text Crafter: actions, captions, facts, and what asking may know of them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from craftax.craftax_classic.constants import Achievement, Action, BlockType

from lab.errors import UserError
from worlds.world import mask_of

VERBS = ("mine", "eat", "attack", "chop", "drink", "place", "make")
KINDS_OF_TOOL, MATERIALS = ("pickaxe", "sword"), ("wood", "stone", "iron")
TOOLS = tuple(f"{material} {tool}" for tool in KINDS_OF_TOOL for material in MATERIALS)
THINGS = ("zombie", "skeleton", "cow", "tree", "stone", "coal", "iron", "diamond", "water", "grass")
THINGS += ("crafting table", "furnace", "plant")
NOUNS = THINGS + TOOLS
MOVES = ("do nothing", "move left", "move right", "move up", "move down")
PAIRS = tuple(f"{verb} {noun}" for verb in VERBS for noun in NOUNS)
CAPTIONS = ("nothing", *PAIRS, "sleep")
ACHIEVEMENTS = tuple(a.name.lower().replace("_", " ") for a in Achievement)

# What a scene names. Sand, arrows and the player have no name.
VISIBLE = (*THINGS, "ripe plant", "lava", "path")
ITEMS = ("wood", "stone", "coal", "iron", "diamond", "sapling", *TOOLS)
FELT = {
    "hungry": "player_food",
    "thirsty": "player_drink",
    "hurt": "player_health",
    "sleepy": "player_energy",
}
FACTS = tuple(f"see {x}" for x in VISIBLE) + tuple(f"facing {x}" for x in VISIBLE)
FACTS += tuple(f"have {x}" for x in ITEMS) + tuple(FELT)
NUM_SCENE_WORDS = -(-len(FACTS) // 32)

# Pairs that mean something in the game, with the game's action.
MEANINGFUL = {
    pair: Action.DO
    for pair in [
        "eat plant",
        "eat cow",
        "attack zombie",
        "attack skeleton",
        "attack cow",
        "chop tree",
        "chop grass",
        "mine stone",
        "mine coal",
        "mine iron",
        "mine diamond",
        "drink water",
    ]
}
MEANINGFUL |= {
    "place stone": Action.PLACE_STONE,
    "place crafting table": Action.PLACE_TABLE,
    "place furnace": Action.PLACE_FURNACE,
    "place plant": Action.PLACE_PLANT,
    "make crafting table": Action.PLACE_TABLE,
}
MEANINGFUL |= {f"make {tool}": Action[f"MAKE_{tool.upper().replace(' ', '_')}"] for tool in TOOLS}
# What can really happen, in the order of the bits of `step.find_effects`.
EFFECTS = (*MEANINGFUL, "sleep")
# The one name of a DO on each thing, for the game's own 17 actions.
NAME_OF_DO = {
    pair.split(" ", 1)[1]: pair
    for pair, action in MEANINGFUL.items()
    if action is Action.DO and pair != "attack cow"
}

# Names of one thing, as in the paper's code: as goals they are reached together.
ALIASES = (("eat cow", "attack cow"), ("place crafting table", "make crafting table"))

BLOCK_OF = {name: BlockType[name.upper().replace(" ", "_")].value for name in VISIBLE[3:]}
NO_NOUN, EVER = 30, 31  # bits of a noun set: never set, always set


def _index_table(names: Sequence[str], universe: Sequence[str], absent: int) -> np.ndarray:
    """Return the index of each name in `universe`, or `absent`."""
    return np.array([universe.index(n) if n in universe else absent for n in names], np.int32)


def _noun_bit(name: str) -> int:
    """Return the bit of a pair's noun in a noun set; what has no noun is always there."""
    return NOUNS.index(name.split(" ", 1)[1]) if name in PAIRS else EVER


# Sleep has no noun: even an attempt counts only where it has its effect, below 9 energy.
CAPTION_NOUN = np.array([_noun_bit(c) if c in PAIRS else NO_NOUN for c in CAPTIONS], np.int32)
CAPTION_EFFECT = _index_table(CAPTIONS, EFFECTS, 31)
# By the index of the faced noun; 32 when nothing is faced.
DO_CAPTION = np.zeros(33, np.int32)
DO_CAPTION[: len(THINGS)] = _index_table([NAME_OF_DO.get(x, "") for x in THINGS], CAPTIONS, 0)


class ActionTables(NamedTuple):
    """What each action is, [A]."""

    names: tuple[str, ...]
    played: np.ndarray  # int32, the game's action
    claimed: np.ndarray  # int32, the caption it claims
    target: np.ndarray  # int32, the bit of the noun that a DO must face


def make_action_tables(action_set: str) -> ActionTables:
    """Return the tables of "pairs", the 139 verb-noun actions, or "base", the game's own 17."""
    if action_set == "pairs":
        names = (*MOVES, "sleep", *PAIRS)
        played = [*range(5), Action.SLEEP.value]
        played += [MEANINGFUL.get(pair, Action.NOOP).value for pair in PAIRS]
        target = [_noun_bit(n) if MEANINGFUL.get(n) is Action.DO else EVER for n in names]
    else:
        named = {Action.PLACE_TABLE: "place crafting table", Action.DO: "do"}
        others = list(Action)[len(MOVES) :]
        names = MOVES + tuple(named.get(a, a.name.lower().replace("_", " ")) for a in others)
        played, target = list(range(len(names))), [EVER] * len(names)
    claimed = _index_table(names, CAPTIONS, 0)
    return ActionTables(names, np.array(played, np.int32), claimed, np.array(target, np.int32))


def _sought(caption: str) -> int:
    """Return the bit of what must be walked up to for a caption, as a noun set; 0 for nothing."""
    verb, noun = parts(caption)
    is_sought = caption in PAIRS and verb not in ("place", "make")
    return int(is_sought) << (NOUNS.index(noun) if is_sought else 0)


# WHAT ASKING NEEDS
# How the player feels is a reason for a goal, never a need; what is faced may be anything in view a
# step later.
HELD = tuple(f"have {item}" for item in ITEMS)
NEEDABLE = tuple(f"see {thing}" for thing in THINGS) + HELD
CHANGING = tuple(fact for fact in FACTS if not fact.startswith("see "))
KINDS = {tool: tuple(f"have {material} {tool}" for material in MATERIALS) for tool in KINDS_OF_TOOL}


def parts(caption: str) -> tuple[str, str]:
    """Return a caption's verb and noun; noun "" where there is none."""
    verb, _, noun = caption.partition(" ")
    return verb, noun


CAPTION_SOUGHT = np.array([_sought(caption) for caption in CAPTIONS], np.uint32)


def never_needs(caption: str) -> frozenset[str]:
    """Return what is not asked of a goal: to see its own thing, and tools of its own kind."""
    noun = parts(caption)[1]
    return frozenset({f"see {noun}"} & set(NEEDABLE)) | set(KINDS.get(noun.split(" ")[-1], ()))


def describe(scene: np.ndarray) -> str:
    """Say a packed scene, uint32 [W], in a sentence."""
    facts = [f for i, f in enumerate(FACTS) if int(scene[i // 32]) >> (i % 32) & 1]

    def of(kind: str) -> str:
        return ", ".join(sorted(f.split(" ", 1)[1] for f in facts if f.startswith(kind + " ")))

    said = [f"You see {of('see') or 'nothing'}."]
    said += [f"You are facing {of('facing')}."] if of("facing") else []
    said += [f"You have {of('have')}."] if of("have") else []
    felt = ", ".join(sorted(f for f in facts if f in FELT))
    return " ".join(said + ([f"You feel {felt}."] if felt else []))


def prompt_mask(scope: str) -> np.ndarray:
    """Return the facts a prompt tells, uint32 [W]: "full" (the paper's) or "compact".

    Compact leaves out what is faced, grass, path and lava: far fewer scenes.
    """
    if scope not in ("full", "compact"):
        raise UserError(f"crafter has no --prompt-scope {scope!r}; known: full, compact")
    untold = {"hungry", "thirsty", "hurt"}
    if scope == "compact":
        untold |= {f for f in FACTS if f.startswith("facing ")}
        untold |= {"see grass", "see path", "see lava"}
    return mask_of(FACTS, [f for f in FACTS if f not in untold])


def in_view_masks() -> np.ndarray:
    """Return per caption the facts of which one must hold to do it, uint32 [C, W].

    A thing to be mined, eaten, attacked, chopped or drunk must be in view, a tool (never in view)
    at hand.
    """

    def facts(caption: str) -> list[str]:
        verb, noun = parts(caption)
        if caption not in PAIRS or verb in ("place", "make"):
            return []
        return _visible_facts(noun) or [f"have {noun}"]

    return np.stack([mask_of(FACTS, facts(caption)) for caption in CAPTIONS])


def grounding_masks() -> np.ndarray:
    """Return per caption the facts of which one must hold for its noun to be there, uint32 [C, W].

    The noun is in view, held, or (zero row: no condition) something to be made.
    """
    makeable = {"crafting table", "furnace", *TOOLS}

    def facts(caption: str) -> list[str]:
        verb, noun = parts(caption)
        if caption not in PAIRS or (verb in ("place", "make") and noun in makeable):
            return []
        item = "sapling" if noun == "plant" else noun
        return _visible_facts(noun) + ([f"have {item}"] if item in ITEMS else [])

    return np.stack([mask_of(FACTS, facts(caption)) for caption in CAPTIONS])


def _visible_facts(noun: str) -> list[str]:
    names = ("plant", "ripe plant") if noun == "plant" else (noun,)
    return [f"see {name}" for name in names if name in VISIBLE]

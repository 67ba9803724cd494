"""The rules form: its questions, its centring, and what answers compile to."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from goals import record, rules
from goals.language_models import Usage
from goals.store import Store
from lab.errors import UserError
from worlds import make_world

CAPTIONS = ("nothing", "mine stone", "mine cow", "make table", "make cow", "sleep")
FACTS = ("see stone", "see cow", "see lava", "facing stone", "have wood", "hungry", "sleepy")


class Village:
    """A world of words: four pairs and sleep; lava has no caption and hunger is never told."""

    name, captions, facts, num_scene_words = "village", CAPTIONS, FACTS, 1

    def prompt_mask(self, form):
        return np.array([0b1011111], np.uint32)

    def in_view_masks(self):
        return np.array([[0], [1], [2], [0], [0], [0]], np.uint32)


def answers_of(sensible, needs):
    """Write log-odds as raw answers; None is left out."""
    raw = {"sensible": sensible, "needs": needs}
    return {
        kind: {q: json.dumps({"yes": x - 3.0, "no": -3.0}) for q, x in scores.items() if x is not None}
        for kind, scores in raw.items()
    }


@pytest.fixture
def village():
    return Village()


@pytest.fixture
def crafter():
    return make_world("crafter")


def test_every_pair_is_asked_and_every_fact_a_prompt_tells(crafter):
    asked = rules.questions(crafter)
    facts = rules.asked_facts(crafter)
    assert len(facts) == 26 and facts[0] == "see zombie" and facts[-1] == "sleepy"
    assert not any(f.startswith("facing") or f in ("see lava", "see path", "see ripe plant", "hungry") for f in facts)
    assert asked["sensible"].texts == crafter.captions[1:] and len(asked["sensible"].texts) == 134
    assert len(set(asked["needs"].texts)) == 134 * 26
    assert asked["needs"].texts[:2] == ("mine zombie: see zombie", "mine zombie: see skeleton")


def test_prompts_render_as_published(crafter):
    asked = rules.questions(crafter)
    assert {kind: questions.prompt_hash for kind, questions in asked.items()} == {
        "sensible": "SENSIBLE_HASH",
        "needs": "NEEDS_HASH",
    }
    sensible = asked["sensible"].prompt("make wood pickaxe").splitlines()
    assert sensible[0] == "SENSIBLE_FIRST"
    assert sensible[-1] == "SENSIBLE_LAST"
    needs = asked["needs"].prompt("make wood pickaxe: see crafting table").splitlines()
    assert needs[0] == "For each goal in a game, is the thing needed to reach it? Answer yes or no."
    assert needs[2] == "Goal: bake bread. Needed: have flour? yes"
    assert needs[-1] == "Goal: make wood pickaxe. Needed: see crafting table?"
    assert not any("$" in line for line in sensible + needs)


def test_examples_come_from_other_games(crafter):
    words = {"zombie", "skeleton", "cow", "tree", "stone", "coal", "iron", "diamond", "water", "grass", "table"}
    words |= {"furnace", "plant", "pickaxe", "sword", "sapling", "wood", "sleep", "mine", "chop", "attack"}
    for questions in rules.questions(crafter).values():
        shown = set(questions.template.template.lower().replace(".", " ").replace("?", " ").split())
        assert not shown & words


@pytest.mark.parametrize("content", ["no placeholder", "$goal $fact $more", "$goal $ 5"])
def test_prompts_with_other_placeholders_are_refused(tmp_path, village, content):
    (tmp_path / "mine_sensible_v1.txt").write_text("$goal")
    (tmp_path / "mine_needs_v1.txt").write_text(content)
    with pytest.raises(UserError, match=r"\$fact and \$goal"):
        rules.questions(village, tmp_path / "mine")


def test_a_missing_prompt_is_named(tmp_path, village):
    with pytest.raises(UserError, match="absent_sensible_v1.txt cannot be read"):
        rules.questions(village, tmp_path / "absent")


def test_centring_takes_out_rows_and_columns_and_ignores_gaps():
    np.testing.assert_allclose(rules.centre(np.array([[1.0, 2.0], [3.0, 8.0]])), [[1.0, -1.0], [-1.0, 1.0]])
    gap = rules.centre(np.array([[1.0, 3.0], [np.nan, 5.0], [4.0, 4.0]]))
    # Row means 2, 5, 4 leave [-1, 1], [-, 0], [0, 0]; column means are then -1/2 and 1/3.
    np.testing.assert_allclose(gap, [[-1 / 2, 2 / 3], [np.nan, -1 / 3], [1 / 2, -1 / 3]])

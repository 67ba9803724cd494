"""The rules form: its questions, its centring, what answers compile to, and their recording."""

import json
from pathlib import Path

import numpy as np
import pytest

from goals import record, rules
from goals.language_models import Usage
from goals.store import Store
from lab.errors import UserError
from worlds import make_world

CAPTIONS = ("nothing", "mine stone", "mine cow", "make stone", "make cow", "sleep")
ASKED = ("see stone", "see cow", "have wood", "sleepy")
FACTS = ("see stone", "see cow", "see lava", "facing stone", "have wood", "hungry", "sleepy")


class Village:
    """A world of words: four pairs and sleep; lava has no caption and hunger is never told."""

    name, captions, facts, num_scene_words = "village", CAPTIONS, FACTS, 1

    def prompt_mask(self, form):
        return np.array([0b1011111], np.uint32)

    def in_view_masks(self):
        return np.array([[0], [1], [2], [0], [0], [0]], np.uint32)


def answers_of(**kinds):
    """Write log-odds, by kind and question, as raw answers; None is left out."""
    return {
        kind: {q: json.dumps({"yes": x - 3.0, "no": -3.0}) for q, x in scores.items() if x is not None}
        for kind, scores in kinds.items()
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
    assert not {"see lava", "see path", "see ripe plant", "hungry"} & set(facts)
    assert not any(fact.startswith("facing") for fact in facts)
    assert asked["sensible"].texts == asked["possible"].texts == crafter.captions[1:]
    assert len(asked["sensible"].texts) == 134
    assert len(set(asked["needs"].texts)) == 134 * 26
    assert asked["needs"].texts[:2] == ("mine zombie: see zombie", "mine zombie: see skeleton")


@pytest.mark.parametrize(
    ("kind", "prompt_hash", "question", "first", "example", "last"),
    [
        (
            "sensible",
            "2587931f204223a8",
            "make wood pickaxe",
            "Does the action make sense in a game? Answer yes or no.",
            "Action: ride soup. Makes sense? no",
            "Action: make wood pickaxe. Makes sense?",
        ),
        (
            "possible",
            "392c8ca195446322",
            "sleep",
            "Which actions can a player do in a game with an effect? Answer yes or no.",
            "In Stardew Valley, does the player ride soup? no",
            "In Minecraft, does the player sleep?",
        ),
        (
            "needs",
            "59fc028f5b650a2c",
            "make wood pickaxe: see crafting table",
            "For each goal in a game, is the thing needed to reach it? Answer yes or no.",
            "Goal: bake bread. Needed: see oven? yes",
            "Goal: make wood pickaxe. Needed: see crafting table?",
        ),
    ],
)
def test_prompts_render_as_published(crafter, kind, prompt_hash, question, first, example, last):
    asked = rules.questions(crafter)[kind]
    lines = asked.prompt(question).split("\n")
    assert (lines[0], lines[5], lines[-1]) == (first, example, last)
    assert asked.prompt_hash == prompt_hash
    assert not any("$" in line for line in lines)


def test_examples_come_from_other_games(crafter):
    words = {word for caption in crafter.captions for word in caption.split()} - {"nothing", "make", "eat"}
    words |= {"sapling", "wooden", "trees"}
    for questions in rules.questions(crafter).values():
        shown = set(questions.template.template.lower().replace(".", " ").replace("?", " ").split())
        assert not shown & words


@pytest.mark.parametrize("content", ["no placeholder", "$goal $fact $more", "$goal $ 5"])
def test_prompts_with_other_placeholders_are_refused(tmp_path, village, content):
    for kind, text in (("sensible", "$goal"), ("possible", "$goal"), ("needs", content)):
        (tmp_path / f"mine_{kind}_v1.txt").write_text(text)
    with pytest.raises(UserError, match=r"mine_needs_v1.txt must have \$fact and \$goal"):
        rules.questions(village, tmp_path / "mine")


def test_a_missing_prompt_is_named(tmp_path, village):
    with pytest.raises(UserError, match="absent_sensible_v1.txt cannot be read"):
        rules.questions(village, tmp_path / "absent")


def test_centring_takes_out_rows_and_columns_and_ignores_gaps():
    np.testing.assert_allclose(rules.centre(np.array([[1.0, 2.0], [3.0, 8.0]])), [[1.0, -1.0], [-1.0, 1.0]])
    gap = rules.centre(np.array([[1.0, 3.0], [np.nan, 5.0], [4.0, 4.0]]))
    # Row means 2, 5, 4 leave [-1, 1], [-, 0], [0, 0]; column means are then -1/2 and 1/3.
    np.testing.assert_allclose(gap, [[-1 / 2, 2 / 3], [np.nan, -1 / 3], [1 / 2, -1 / 3]])


def test_scores_are_centred_and_scaled_by_hand(village):
    sensible = {"mine stone": 3.0, "mine cow": 1.0, "make stone": None, "make cow": 1.0, "sleep": 4.0}
    needs = {f"{goal}: {fact}": 0.0 for goal in CAPTIONS[1:] for fact in ASKED}
    needs["make stone: have wood"] = 5.0
    scores = rules.score(village, answers_of(sensible=sensible, possible=sensible, needs=needs))
    assert scores.goals == CAPTIONS[1:] and scores.facts == ASKED
    # Rows [3, 1] and [-, 1] less their means: [1, -1] and [-, 0]; then columns: [0, -1/2] and [-, 1/2].
    spread = np.sqrt(1 / 6)
    assert scores.sensible[1] == pytest.approx(-0.5 / np.sqrt(0.25 * 0.5))
    assert np.isnan(scores.sensible[2])
    assert scores.sensible[4] == pytest.approx((4.0 - 5 / 3) / spread)
    # 5 in one of 5 x 4 cells: less row and column means it is 3, beside -1, -3/4 and 1/4.
    deviation = np.sqrt((9 + 3 * 1 + 4 * 9 / 16 + 12 / 16) / 20)
    assert scores.needs[2] == pytest.approx(np.array([-1, -1, 3, -1]) / deviation)
    assert scores.needs[0] == pytest.approx(np.array([0.25, 0.25, -0.75, 0.25]) / deviation)


def test_rules_compile_to_what_stands_out(village):
    sensible = {"mine stone": 4.0, "mine cow": 0.0, "make stone": 0.0, "make cow": 4.0, "sleep": 6.0}
    needs = {f"{goal}: {fact}": 0.0 for goal in CAPTIONS[1:] for fact in ASKED}
    needs |= {"make cow: see cow": 6.0, "mine stone: see stone": 6.0, "sleep: sleepy": 6.0}
    needs["mine cow: have wood"] = 6.0
    asked = rules.questions(make_world("crafter"))
    answers = answers_of(sensible=sensible, possible=sensible, needs=needs)
    compiled = rules.compile_rules(village, asked, answers, sensible_threshold=0.5, need_threshold=1.5)
    assert compiled.sensible.tolist() == [False, True, False, False, True, True]
    found = {(CAPTIONS[c], FACTS[f]) for c, f in zip(*np.nonzero(compiled.needs), strict=True)}
    # The world itself says that a stone to be mined must be in view.
    assert found == {("make cow", "see cow"), ("sleep", "sleepy"), ("mine cow", "have wood")}
    assert compiled.need_masks(village).tolist() == [[0], [0], [1 << 4], [0], [1 << 1], [1 << 6]]
    strict = rules.compile_rules(village, asked, answers, sensible_threshold=99.0, need_threshold=99.0)
    assert not strict.sensible.any() and not strict.needs.any()


@pytest.mark.parametrize("broken", ["", "yes", "[]", '{"yes": -1}', '{"yes": null, "no": -1}'])
def test_unreadable_answers_count_as_none(village, broken):
    sensible = {"mine stone": 4.0, "mine cow": 0.0, "make stone": 0.0, "make cow": 4.0, "sleep": 6.0}
    answers = answers_of(sensible=sensible, possible=sensible, needs={})
    answers["sensible"]["make cow"] = broken
    compiled = rules.compile_rules(village, rules.questions(make_world("crafter")), answers, 0.5)
    assert not compiled.sensible[CAPTIONS.index("make cow")] and compiled.sensible[CAPTIONS.index("sleep")]
    assert not compiled.needs.any()


class Oracle:
    """Stand in for a model: a question's log-odds are its length; what it was asked is kept."""

    name = "oracle@0"

    def __init__(self, shift=0.0):
        self.asked, self.shift, self.usage = [], shift, Usage()

    def yes_no(self, prompts):
        self.asked += prompts
        return [(-float(len(prompt)) + self.shift, 0.0) for prompt in prompts]


def test_a_recording_goes_on_where_it_stopped_and_is_compared(tmp_path, monkeypatch, capsys):
    model = Oracle()
    monkeypatch.setattr(record, "load_language_model", lambda spec: model)
    recorded = tmp_path / "recorded.sqlite"
    args = record.Args(llm="oracle", store=recorded, sample=5)
    assert record.record(args) == 0.0
    assert len(model.asked) == 15 and model.asked[0].endswith("mine zombie. Makes sense?")
    record.record(args)
    assert len(model.asked) == 15
    model.shift = 0.25
    again = record.Args(llm="oracle", store=tmp_path / "again.sqlite", sample=5, compare=recorded)
    assert record.record(again) == 0.25
    assert "largest difference of log-odds: 0.250000" in capsys.readouterr().out
    model.name = "another@1"
    with pytest.raises(UserError, match="no answer of another@1 to 5 .* it holds answers of oracle@0"):
        record.record(again)
    with Store(recorded, read_only=True) as store:
        assert store.models() == ["oracle@0"] and store.count()["answers"] == 15


def test_recorded_answers_are_complete_and_compile(crafter):
    asked = rules.questions(crafter)
    (path,) = Path(rules.__file__).parent.joinpath("recorded").glob("crafter_rules_qwen*.sqlite")
    with Store(path, read_only=True) as store:
        (model,) = store.models()
        answers = {
            kind: store.get_answers(model, q.prompt_hash, json.dumps(q.parameters, sort_keys=True), q.texts)
            for kind, q in asked.items()
        }
    assert {kind: len(found) for kind, found in answers.items()} == {"sensible": 134, "possible": 134, "needs": 3484}
    assert model == "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf@cc324af070c2ecbf"
    compiled = rules.compile_rules(crafter, asked, answers)
    goals = {caption for caption, yes in zip(crafter.captions, compiled.sensible, strict=True) if yes}
    # What the model got right and a run depends on: the way to the first tools.
    assert {"chop tree", "make crafting table", "make wood pickaxe", "mine stone", "drink water"} <= goals
    assert len(goals) < 45 and "nothing" not in goals
    needs = {
        caption: {crafter.facts[i] for i in np.flatnonzero(row)}
        for caption, row in zip(crafter.captions, compiled.needs, strict=True)
    }
    assert needs["make crafting table"] == {"have wood"} and needs["sleep"] == {"sleepy"}
    assert needs["chop tree"] == needs["drink water"] == set()

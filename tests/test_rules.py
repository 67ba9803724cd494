"""The rules form: what is asked, how answers are calibrated, and what they compile to."""

import hashlib
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from goals import rules
from goals.asking import Asker
from goals.packing import unpack_scores
from goals.recipes import Recipe, find_recipe
from goals.rules import ENDINGS, GOALS_WITH_NEEDS, PLACEHOLDERS, WORDINGS, RulesForm
from goals.store import Store
from lab.errors import UserError
from tests.helpers.scripted_model import ScriptedModel, last_line
from worlds import make_world
from worlds.crafter.words import NOUNS, VERBS
from worlds.world import PROMPTS, RECORDED, WorldArgs, pack_facts

pytestmark = pytest.mark.filterwarnings("error")
RECIPE = Recipe(sensible_threshold=0.5, need_threshold=1.0, closed_threshold=0.0)
RECIPES = {
    "small": {"sensible_threshold": 1.0, "need_threshold": 2.0, "closed_threshold": 3.0},
    "": {"sensible_threshold": 0.5, "need_threshold": 1.0, "closed_threshold": 0.0},
}
CRAFTER_PROMPTS = PROMPTS / "crafter_rules"


class Village:
    """A world of words: four pairs and sleep. No thing is of several kinds."""

    name = "village"
    captions = ("nothing", "mine stone", "mine cow", "make stone", "make cow", "sleep")
    facts = ("see stone", "see cow", "see lava", "facing stone", "have wood", "have gold", "sleepy")
    num_scene_words = 1
    in_view = {"mine stone": 0, "mine cow": 1}
    prompts, recipes = PROMPTS, RECIPES
    needable = ("see stone", "see cow", "have wood")
    held, kinds = frozenset({"have wood"}), ()

    def parts(self, caption):
        verb, _, noun = caption.partition(" ")
        return verb, noun

    def never_needs(self, caption):
        return frozenset({f"see {self.parts(caption)[1]}"} & set(self.needable))

    def in_view_masks(self):
        masks = np.zeros((len(self.captions), 1), np.uint32)
        for caption, fact in self.in_view.items():
            masks[self.captions.index(caption)] = 1 << fact
        return masks


class Smithy(Village):
    """A world with axes of two kinds, which tells all there is."""

    captions = ("nothing", "mine stone", "place table", "make wood axe", "make iron axe", "sleep")
    facts = ("see stone", "see table", "have wood axe", "have wood", "have iron axe", "have iron")
    in_view = {"mine stone": 0}
    needable = facts
    held = frozenset(fact for fact in facts if fact.startswith("have "))
    kinds = (("have wood axe", "have iron axe"),)

    def never_needs(self, caption):
        own = self.kinds[0] if caption.endswith(" axe") else ()
        return super().never_needs(caption) | set(own)


@pytest.fixture(scope="module")
def crafter():
    return make_world(WorldArgs())


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "answers.sqlite") as store:
        yield store


def shown_examples(kind):
    """Return the answered examples of a yes-or-no prompt as (goal, fact or "", answer)."""
    lines = (PROMPTS / f"crafter_rules_{kind}_v1.txt").read_text().split("\n")
    question = next(line for line in lines if "$goal" in line)
    pattern = (
        re.escape(question).replace(r"\$goal", "(?P<goal>.+)").replace(r"\$fact", "(?P<fact>.+)")
    )
    pattern = (
        re.sub(r"In\\ (Crafter,.*game\\ like.*Minecraft|Minecraft)", "In Stardew Valley", pattern)
        + " (?P<answer>yes|no)"
    )
    found = [re.fullmatch(pattern, line) for line in lines]
    return [(m["goal"], m.groupdict().get("fact", ""), m["answer"]) for m in found if m]


# What is asked


def test_goals_are_asked_once_and_the_best_about_their_needs(crafter, store):
    pairs = crafter.meaningful - {"sleep"}
    model = ScriptedModel(
        lambda prompt: 3.0 * any(pair in last_line(prompt) for pair in pairs),
        lambda prompt, candidate: 3.0 * (candidate[1:-1] in pairs),
    )
    form = RulesForm(crafter)
    form.prepare(Asker(model.name, store, model).answers)
    phrases, wordings, needs = (
        model.asked[:9],
        model.asked[9 : 9 + 7 * 134],
        model.asked[9 + 7 * 134 :],
    )
    assert phrases[0].endswith("For example, the player can") and not any(
        "$" in prompt for prompt in model.asked
    )
    assert model.candidates[:4] == [
        " mine zombie.",
        " mine zombie\n",
        " mine zombie,",
        " mine skeleton.",
    ]
    assert len(set(wordings)) == 7 * 134 and len(set(needs)) == len(needs) == 48 * 25
    assert last_line(wordings[0]) == "Action: mine zombie. Makes sense?"
    asked = {last_line(prompt).split("Goal: ")[1].split(".")[0] for prompt in needs}
    worst_asked = min(
        score for goal, score in zip(form.goals, form.sensible, strict=True) if goal in asked
    )
    best_unasked = max(
        score for goal, score in zip(form.goals, form.sensible, strict=True) if goal not in asked
    )
    assert len(asked) == GOALS_WITH_NEEDS and worst_asked >= best_unasked and pairs <= asked
    RulesForm(crafter).prepare(Asker(model.name, store, model).answers)
    assert len(model.asked) == 9 + 7 * 134 + 48 * 25


def test_what_is_kept_of_a_phrase_is_how_likely_a_goal_is_with_any_ending(store):
    def likelihood(prompt, candidate):
        return np.log({".": 0.25, "\n": 0.125, ",": 0.125}[candidate[-1]]) - candidate.startswith(
            " make"
        )

    form = RulesForm(Village(), CRAFTER_PROMPTS)
    form.ask_sensible(Asker("scripted@0", store, ScriptedModel(likelihood=likelihood)).answers)
    parameters = {
        "form": "phrases",
        "endings": list(ENDINGS),
        "goals": rules.hash_texts(Village.captions[1:]),
    }
    kept = store.get_answers(
        "scripted@0", form.prompts["phrases"], json.dumps(parameters, sort_keys=True), form.phrases
    )
    assert len(kept) == 9
    for raw in kept.values():
        np.testing.assert_allclose(
            unpack_scores(raw), np.log(0.5) - np.array([0, 0, 1, 1, 0]), atol=0.005
        )


# Prompt files

LAST_LINES = {
    "sensible": "Action: make wood pickaxe. Makes sense?",
    "possible": "In Minecraft, does the player make wood pickaxe?",
    "useful": "In Minecraft, is it useful to make wood pickaxe?",
    "known": "In Crafter, a survival game like a small Minecraft, "
    "does the player make wood pickaxe?",
    "aimed": 'Is "make wood pickaxe" a goal of the game?',
    "gainful": "Action: make wood pickaxe. Gain?",
    "described": "How to make wood pickaxe: article?",
    "needs": "Goal: make wood pickaxe. Needed: see crafting table?",
}
# Of the file, and of the prompt for "make wood pickaxe: see crafting table". A published prompt
# never changes.
HASHES = {
    "sensible": ("2587931f204223a8", "a522272fc3d59bcc"),
    "possible": ("392c8ca195446322", "62833fe1deb233d9"),
    "useful": ("88d930564334f21e", "11383a8ef6310f8b"),
    "known": ("de889ef283b1b70f", "e6c7c7b069b0187d"),
    "aimed": ("c44094ffec4150e8", "b09f0d38f62b8fee"),
    "gainful": ("cdde975814726035", "dae82d31d7691a37"),
    "described": ("013430af414c4c6f", "43cbd5718551f474"),
    "needs": ("59fc028f5b650a2c", "49b64f1ad7792f4a"),
}


@pytest.mark.parametrize("kind", LAST_LINES)
def test_questions_render_as_published(crafter, kind):
    form, model = RulesForm(crafter), ScriptedModel()
    rules.ask_yes_no(form.templates[kind], model, ["make wood pickaxe: see crafting table"])
    (rendered,) = model.asked
    assert last_line(rendered) == LAST_LINES[kind]
    assert (form.prompts[kind], hashlib.sha256(rendered.encode()).hexdigest()[:16]) == HASHES[kind]


def test_phrases_render_as_published(crafter):
    form, model = RulesForm(crafter), ScriptedModel()
    form.score_phrases(model, form.phrases)
    assert len(model.asked) == 9 and model.asked[1] == "Minecraft guide. How to"
    assert model.asked[7] == "Question: What can you do in Minecraft?\nAnswer: In Minecraft you can"
    rendered = hashlib.sha256("\n\n".join(model.asked).encode()).hexdigest()[:16]
    assert (form.prompts["phrases"], rendered) == ("e6247f82c3bafdf5", "ecf54353b315449f")
    # Part of the key of what was recorded.
    assert rules.hash_texts(form.goals) == "f802f1bb094bdbc2"


@pytest.mark.parametrize("kind", [*WORDINGS, "needs"])
def test_examples_come_from_other_games(crafter, kind):
    examples = shown_examples(kind)
    assert min(sum(answer == word for _, _, answer in examples) for word in ("yes", "no")) >= 10
    assert len({example[:2] for example in examples}) == len(examples)
    for goal, fact, _ in examples:
        verb, _, noun = goal.partition(" ")
        assert goal not in crafter.captions and not (verb in VERBS and noun in NOUNS)
        assert fact not in crafter.facts


def test_phrases_name_no_goal_of_the_world(crafter):
    text = (PROMPTS / "crafter_rules_phrases_v1.txt").read_text().lower()
    assert not [pair for pair in crafter.captions if " " in pair and pair in text]


@pytest.mark.parametrize(
    "kind, content, message",
    [
        ("needs", "no placeholder", r"mine_needs_v1.txt must have \$fact and \$goal"),
        ("needs", "$goal $fact $more", r"mine_needs_v1.txt must have \$fact and \$goal"),
        ("useful", "$goal $ 5", r"mine_useful_v1.txt must have \$goal"),
        (
            "phrases",
            "You can $goal\n\nTo $goal is good.",
            r"mine_phrases_v1.txt: every phrase.* must end with \$goal",
        ),
        (
            "phrases",
            "You can $goal\n\n\n\nIt is good to $goal",
            r"mine_phrases_v1.txt: every phrase.* must end with \$goal",
        ),
        ("known", None, "mine_known_v1.txt cannot be read"),
    ],
)
def test_wrong_prompts_are_refused(tmp_path, kind, content, message):
    texts = {k: " ".join(f"${name}" for name in names) for k, names in PLACEHOLDERS.items()} | {
        kind: content
    }
    for name, text in texts.items():
        if text is not None:
            (tmp_path / f"mine_{name}_v1.txt").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        RulesForm(Village(), tmp_path / "mine")
    assert "\n" not in str(caught.value)


# Calibration


def parts(goals):
    """Return verb and noun of goals, "" where there is none."""
    return [tuple(goal.partition(" ")[::2]) for goal in goals]


def test_centring_takes_out_rows_and_columns_and_ignores_gaps():
    np.testing.assert_allclose(
        rules.centre(np.array([[1.0, 2.0], [3.0, 8.0]])), [[1.0, -1.0], [-1.0, 1.0]]
    )
    gap = rules.centre(np.array([[1.0, 3.0], [np.nan, 5.0], [4.0, 4.0]]))
    # Row means 2 and 4, and 17/5 of all for the lone 5, leave [-1, 1], [-, 1.6], [0, 0]; column
    # means are then -1/2, 2.6/3.
    np.testing.assert_allclose(gap, [[-1 / 2, 0.4 / 3], [np.nan, 2.2 / 3], [1 / 2, -2.6 / 3]])
    assert np.isnan(rules.centre(np.full((2, 3), np.nan))).all() and rules.centre(
        np.zeros((0, 0))
    ).shape == (0, 0)


def test_pairs_are_compared_by_verb_and_noun():
    goals = (
        "mine stone",
        "mine cow",
        "mine old tree",
        "sleep",
        "make stone",
        "make cow",
        "make old tree",
    )
    found = rules.calibrate_pairs(parts(goals), np.array([6.0, 0.0, 0.0, 5.0, 0.0, 3.0, 3.0]))
    # Less the means of rows, 2 and 2, then of columns, 1, -1/2, -1/2: [3, -1.5, -1.5] and the
    # opposite.
    row = np.sqrt((9 + 2 * 2.25) / 3)
    pair, other = 3 / np.sqrt(row * 3), 1.5 / np.sqrt(row * 1.5)
    # Sleep is 3 above the mean of all pairs, whose centred spread is that of each row.
    np.testing.assert_allclose(found, [pair, -other, -other, 3 / row, -pair, other, other])


def test_a_missing_answer_leaves_the_others_comparable():
    scores = np.array([3.0, 1.0, np.nan, 1.0, 4.0])
    found = rules.calibrate_pairs(parts(Village.captions[1:]), scores)
    # Less means of rows (5/3 of all for the lone 1): [1, -1], [-, -2/3]; of columns (-2/9 of all
    # for the lone 1): as below.
    centred = np.array([11 / 9, -1 / 6, 1 / 6])
    whole, row, column = centred.std(), centred[:2].std(), 1 / 6
    expected = [centred[0] / np.sqrt(row * whole), centred[1] / np.sqrt(row * column), np.nan]
    expected += [centred[2] / np.sqrt(whole * column), (4 - 5 / 3) / whole]
    np.testing.assert_allclose(found, expected)
    assert np.isnan(rules.calibrate_pairs(parts(Village.captions[1:]), np.full(5, np.nan))).all()


def test_goals_that_share_no_word_are_compared_with_one_another():
    scores = np.array([1.0, 5.0, 3.0])
    expected = (scores - 3) / np.sqrt(8 / 3)
    np.testing.assert_allclose(
        rules.calibrate_pairs(parts(("sleep", "dance", "sing")), scores), expected
    )
    pairs = rules.calibrate_pairs(parts(("take key", "open door", "kick wall")), scores)
    np.testing.assert_allclose(pairs / pairs.std(), expected)


def test_needs_are_compared_by_goal_and_fact():
    log_odds = np.zeros((5, 4))
    log_odds[2, 2] = 5.0
    # Less row and column means 5 is 3, in its row and column -1 and -3/4, elsewhere 1/4.
    centred = np.full((5, 4), 0.25)
    centred[2], centred[:, 2] = -1, -0.75
    centred[2, 2] = 3
    rows = np.where(np.arange(5) == 2, np.sqrt(3), np.sqrt(3) / 4)
    columns = np.where(np.arange(4) == 2, 1.5, 0.5)
    scaled = centred / np.sqrt(rows[:, None] * columns[None])
    np.testing.assert_allclose(rules.calibrate_needs(log_odds), scaled / scaled.std())
    log_odds[0, 1] = np.nan
    found = rules.calibrate_needs(log_odds)
    assert (
        np.isnan(found[0, 1])
        and np.isnan(found).sum() == 1
        and found.argmax() != 2
        and np.nanargmax(found) == 2 * 4 + 2
    )
    assert np.nanstd(found) == pytest.approx(1)
    assert np.isnan(rules.calibrate_needs(np.full((3, 2), np.nan))).all()


# Four goals of one word are compared with one another alone: P, Q and R are in standard deviations
# and uncorrelated.
ALONE = parts(("sleep", "dance", "sing", "rest"))
P, Q, R = np.array([[1.0, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])


def unit(scores):
    return scores / scores.std()


def test_a_wording_weighs_as_much_as_it_agrees_with_the_phrases():
    half = 0.6 * P + 0.8 * Q  # correlates 0.6 with P
    found = rules.score_sensible(
        ALONE, [3 * P - 7], {"equal": 9 * P + 1, "half": half - 5, "none": 4 * R, "opposite": -P}
    )
    # Weights 1, 0.6, 0, 0; their mean 0.4 gives the wordings together 0.8 of the phrases' weight.
    np.testing.assert_allclose(found, unit(P + 0.8 * unit((P + 0.6 * half) / 1.6)))
    found = rules.score_sensible(ALONE, [P], {"equal": P, "half": half})
    np.testing.assert_allclose(found, unit(P + 1.0 * unit((P + 0.6 * half) / 1.6)))
    weak = 0.2 * P + np.sqrt(0.96) * Q
    np.testing.assert_allclose(
        rules.score_sensible(ALONE, [P], {"weak": weak}), unit(P + 0.4 * weak)
    )
    np.testing.assert_allclose(
        rules.score_sensible(ALONE, [P, P + Q], {"opposite": -P}), unit(P + unit(P + Q))
    )


def test_without_phrases_the_wordings_count_alike():
    found = rules.score_sensible(ALONE, [], {"one": 5 * P - 1, "two": Q})
    np.testing.assert_allclose(found, unit(P + Q))


def test_a_missing_answer_counts_as_a_middling_one():
    gap = np.array([np.nan, 1.0, -1.0, -1.0])
    rest = unit(gap[1:] + 1 / 3)
    for phrases in ([], [P]):
        found = rules.score_sensible(ALONE, phrases, {"whole": P, "gap": gap})
        assert np.isfinite(found).all()
        if not phrases:
            np.testing.assert_allclose(found, unit(P + np.array([0.0, *rest])))
    unanswered = np.full(4, np.nan)
    np.testing.assert_allclose(
        rules.score_sensible(ALONE, [P], {"whole": 0.0 * P + 2, "none": unanswered}), P
    )
    assert rules.score_sensible(ALONE, [], {"none": unanswered}).tolist() == [0.0] * 4


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "yes",
        "[]",
        '"yes"',
        "7",
        "null",
        '{"yes": -1}',
        '{"yes": null, "no": -1}',
        "[" * 100_000,
        "\ud800",
    ]
    + [
        '{"yes": NaN, "no": 0}',
        '{"yes": 0, "no": -Infinity}',
        '{"yes": 1e999, "no": 1}',
        f'{{"yes": 1{"0" * 400}, "no": 1}}',
    ],
)
def test_an_unreadable_answer_is_none(raw):
    assert np.isnan(rules.read_odds(raw))
    assert rules.read_odds('{"yes": -0.5, "no": -2}') == 1.5


# Rules


def compiled(world, needs, sensible=None, recipe=RECIPE):
    """Compile needs by goal and fact, -9 where nothing is said.

    Return the rules, what is needed, and the alternatives, by goal.
    """
    asked = [goal for goal in world.captions[1:] if goal in needs]
    table = np.array([[needs[goal].get(fact, -9.0) for fact in world.needable] for goal in asked])
    scores = np.ones(len(world.captions) - 1) if sensible is None else np.array(sensible)
    found = rules.compile_rules(world, scores, asked, table, recipe)
    named = {
        goal: {world.facts[i] for i in np.flatnonzero(found.needs[world.captions.index(goal)])}
        for goal in asked
    }
    sets = {goal: found.alternatives[world.captions.index(goal)] for goal in asked}
    return (
        found,
        named,
        {
            goal: [{world.facts[i] for i in np.flatnonzero(s)} for s in sets[goal] if s.any()]
            for goal in asked
        },
    )


def test_what_makes_sense_is_what_stands_out():
    found, _, _ = compiled(Village(), {"sleep": {}}, sensible=[0.6, 0.5, np.nan, -3.0, 0.51])
    assert found.sensible.tolist() == [False, True, False, False, False, True]
    assert not found.needs.any()


def test_of_what_must_be_in_view_only_things_to_have_are_needed():
    said = dict.fromkeys(Smithy.facts, 5.0) | {"have wood": 0.9}
    _, named, sets = compiled(Smithy(), {"mine stone": said, "sleep": said})
    assert named["mine stone"] == {"have iron"}
    assert named["sleep"] == {"see stone", "see table", "have iron"}
    assert sets["mine stone"] == sets["sleep"] == [{"have wood axe", "have iron axe"}]


def test_kinds_of_a_thing_are_alternatives_but_not_for_their_own_kind():
    wood, iron = (
        {"have wood axe": 2.5, "have iron axe": 0.1},
        {"have wood axe": 2.5, "have iron axe": -0.6},
    )
    axes = {"have wood axe": 9.0, "have iron axe": 9.0, "see table": 2.0, "have wood": 3.0}
    _, named, sets = compiled(
        Smithy(), {"mine stone": wood, "place table": iron, "make iron axe": axes}
    )
    assert sets == {
        "mine stone": [{"have wood axe", "have iron axe"}],
        "place table": [],
        "make iron axe": [],
    }
    # A kind is never needed by itself, nor the likeliest thing to have.
    assert named["mine stone"] == set() and named["make iron axe"] == {"see table", "have wood"}
    assert not any("axe" in fact for fact in named["place table"])


def test_what_is_made_or_placed_needs_the_likeliest_thing_and_not_to_see_itself():
    said = {"see table": 5.0, "see stone": 2.0, "have wood": -1.0, "have iron": -2.0}
    _, named, _ = compiled(
        Smithy(), {"place table": said, "make wood axe": said, "mine stone": said, "sleep": said}
    )
    assert named["place table"] == {"see stone", "have wood"}
    assert named["make wood axe"] == {"see stone", "see table", "have wood"}
    assert named["mine stone"] == set() and named["sleep"] == {"see stone", "see table"}


def test_a_missing_answer_is_no_need():
    axes = {
        "have wood axe": 9.0,
        "have iron axe": np.nan,
        "have wood": np.nan,
        "have iron": -3.0,
        "see table": np.nan,
    }
    nothing = dict.fromkeys(Smithy.facts, np.nan)
    _, named, sets = compiled(
        Smithy(), {"mine stone": axes, "place table": axes, "make iron axe": nothing}
    )
    assert named == {"mine stone": set(), "place table": {"have iron"}, "make iron axe": set()}
    assert not any(sets.values())


def test_a_world_without_kinds_has_no_alternatives():
    found, named, _ = compiled(
        Village(), {"make cow": {"see stone": 2.0, "see cow": 2.0}, "sleep": {"have wood": 2.0}}
    )
    assert found.alternatives.shape == (6, 0, 7)
    assert named == {"make cow": {"see stone", "have wood"}, "sleep": {"have wood"}}
    assert pack_facts(found.needs).tolist() == [[0], [0], [0], [0], [0b10001], [0b10000]]
    assert pack_facts(found.alternatives).shape == (6, 0, 1)


@settings(max_examples=50, deadline=None)
@given(
    arrays(np.float64, (5, 6), elements=st.floats(-5, 5) | st.just(np.nan)),
    arrays(np.float64, 5, elements=st.floats(-5, 5)),
)
def test_any_scores_compile(needs, sensible):
    world = Smithy()
    found = rules.compile_rules(world, sensible, world.captions[1:], needs, RECIPE)
    axes = np.array([fact.endswith("axe") for fact in world.facts])
    assert (
        found.alternatives.shape == (6, 1, 6)
        and found.alternatives.dtype == found.needs.dtype == found.sensible.dtype == bool
    )
    assert (
        not (found.needs & axes[None]).any() and not (found.alternatives & ~axes[None, None]).any()
    )
    assert not found.alternatives[3:5].any() and not found.sensible[0] and not found.needs[0].any()


# From questions to rules

SENSIBLE = ("mine stone", "make cow", "sleep")


def knows(prompt):
    """Answer as one who knows the village, and prefers some words."""
    line = last_line(prompt)
    if "Needed" in line:
        needs = (
            "make cow. Needed: have wood",
            "make stone. Needed: see cow",
            "sleep. Needed: see stone",
        )
        return 6.0 * any(need in line for need in needs) - 2.0 * ("see" in line) - ("mine" in line)
    return (
        3.0 * any(goal in line for goal in SENSIBLE) + ("sleep" in line) + ("stone" in line) - 6.0
    )


def likely(prompt, candidate):
    return (
        5.0 * any(goal in candidate for goal in SENSIBLE)
        + ("sleep" in candidate)
        - ("make" in candidate)
        - 20
    )


@pytest.mark.parametrize("can_score", [True, False])
def test_a_model_that_knows_the_world_gives_its_rules(store, can_score):
    model = ScriptedModel(knows, likely, can_score=can_score)
    form = RulesForm(Village(), CRAFTER_PROMPTS, recipe=RECIPE)
    form.prepare(Asker(model.name, store, model).answers)
    assert [
        goal for goal, yes in zip(Village.captions, form.rules.sensible, strict=True) if yes
    ] == list(SENSIBLE)
    needs = {
        c: {Village.facts[i] for i in np.flatnonzero(n)}
        for c, n in zip(Village.captions, form.rules.needs, strict=True)
    }
    assert (
        needs["make cow"] == {"have wood"}
        and needs["make stone"] >= {"see cow"}
        and needs["sleep"] == {"see stone"}
    )
    # All there is to know is in the store, also of a model that cannot score phrases.
    again, replay = RulesForm(Village(), CRAFTER_PROMPTS, recipe=RECIPE), Asker(model.name, store)
    again.prepare(replay.answers)
    assert replay.costs.unanswered == 0 and replay.costs.store_hits == 9 + 7 * 5 + 5 * 3
    np.testing.assert_array_equal(again.sensible, form.sensible)
    np.testing.assert_array_equal(again.rules.needs, form.rules.needs)


def test_what_got_no_answer_is_asked_again(store):
    def sometimes(prompt):
        return (
            None
            if "useful to mine stone" in last_line(prompt) or "see cow" in last_line(prompt)
            else knows(prompt)
        )

    form, model = (
        RulesForm(Village(), CRAFTER_PROMPTS, recipe=RECIPE),
        ScriptedModel(sometimes, likely),
    )
    asker = Asker(model.name, store, model)
    form.prepare(asker.answers)
    assert asker.costs.unanswered == 1 + 5
    assert form.rules.sensible[1] and not form.rules.needs[:, 1].any()
    again = ScriptedModel(knows, likely)
    form.prepare(Asker(model.name, store, again).answers)
    assert len(again.asked) == 6 and form.rules.needs[3, 1]


def test_without_any_answer_there_are_no_goals(store):
    form = RulesForm(Village(), CRAFTER_PROMPTS, recipe=RECIPE)
    form.prepare(Asker("nobody@0", store, on_missing="no-goals").answers)
    assert not form.rules.sensible.any() and not form.rules.needs.any()
    with pytest.raises(UserError, match="no stored answer of nobody@0"):
        form.prepare(Asker("nobody@0", store).answers)


@pytest.mark.parametrize(
    "plausible, known, said",
    [
        ([True, False], 1.0, ""),
        ([True, True], 1.0, "every goal is said to make sense"),
        ([True, False], 0.4, "only 40% of the questions have an answer"),
        ([False, False], 0.0, "only 0% of the questions have an answer"),
    ],
)
def test_rules_of_little_meaning_are_said_in_one_line(capsys, plausible, known, said):
    rules.check_plausible(np.asarray(plausible), known, "gemma")
    error = capsys.readouterr().err
    assert len(error.splitlines()) == bool(said) and said in error


def test_rules_that_suggest_nothing_are_an_error():
    with pytest.raises(UserError, match="gemma tells no sensible goal") as caught:
        rules.check_plausible(np.zeros(2, bool), 1.0, "gemma")
    assert "\n" not in str(caught.value)


def test_what_is_next_to_impossible_is_no_evidence(store):
    assert np.isnan(rules.read_odds('{"yes": -27.0, "no": -27.1}'))
    assert rules.read_odds('{"yes": -9.0, "no": -27.0}') == 18.0
    store.put_answers("old@0", "0", '{"form": "yes-no"}', {"eat cow": '{"yes": -27, "no": -27}'})
    model = ScriptedModel(knows, name="old@0")
    asker = Asker(model.name, store, model)
    (raw,) = asker.answers(
        "0", {"form": "yes-no"}, ["eat cow"], lambda model, asked: ['{"yes": -1, "no": -2}']
    ).values()
    assert rules.read_odds(raw) == 1.0 and asker.costs.queries == 1


def test_a_half_answered_model_is_known_by_half(store):
    form = RulesForm(Village(), CRAFTER_PROMPTS, recipe=RECIPE)
    model = ScriptedModel(lambda prompt: knows(prompt) if "cow" in prompt else None, likely)
    form.prepare(Asker(model.name, store, model).answers)
    assert 0 < form.known < 1


def test_a_model_gets_its_own_thresholds(crafter):
    gemma = Recipe(**crafter.recipes["gemma-3-270m"])
    full_name = "gemma-3-270m-q4_k_m.gguf@a5fd3b62,transformers,bfloat16"
    assert find_recipe(crafter.recipes, full_name) == gemma
    assert find_recipe(crafter.recipes, "google/Gemma-3-270m@0123") == gemma
    others = find_recipe(crafter.recipes, "qwen2.5-coder-1.5b.gguf@00")
    assert others == find_recipe(crafter.recipes, "") == Recipe(**crafter.recipes[""]) != gemma
    assert RulesForm(Village(), CRAFTER_PROMPTS, "small.gguf@1").recipe.need_threshold == 2.0
    assert RulesForm(Village(), CRAFTER_PROMPTS, "large.gguf@1").recipe == RECIPE
    assert RulesForm(Village(), CRAFTER_PROMPTS, "small.gguf@1", RECIPE).recipe == RECIPE


def test_the_longest_beginning_of_a_name_counts():
    thresholds = {
        name: dict.fromkeys(RECIPES[""], value)
        for value, name in enumerate(("", "a", "a-large", "a-larger"))
    }
    names = {"b": 0, "a-small": 1, "a-large.gguf@0": 2, "a-largest": 2, "a-larger": 3}
    found = {name: find_recipe(thresholds, name).closed_threshold for name in names}
    assert found == names


@pytest.mark.parametrize(
    "path", sorted(RECORDED.glob("crafter_rules_*.sqlite")), ids=lambda path: path.stem
)
def test_recorded_answers_are_complete_and_compile(crafter, path):
    with Store(path, read_only=True) as store:
        (model,) = store.models()
        form = RulesForm(crafter, model=model)
        form.prepare(Asker(model, store).answers)
    sensible = {
        caption for caption, yes in zip(crafter.captions, form.rules.sensible, strict=True) if yes
    }
    assert 10 < len(sensible) < GOALS_WITH_NEEDS
    if "qwen" in path.stem:
        # What a run depends on: the way to the first tools.
        assert {
            "chop tree",
            "place crafting table",
            "make wood pickaxe",
            "mine stone",
            "drink water",
        } <= sensible
        row = form.rules.needs[crafter.captions.index("make wood pickaxe")]
        assert {crafter.facts[i] for i in np.flatnonzero(row)} == {
            "see crafting table",
            "have wood",
        }
        assert not form.rules.needs[crafter.captions.index("chop tree")].any()

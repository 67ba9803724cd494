"""The closed form: what is asked by likelihood and by yes or no, and what scores come to."""

import base64
import hashlib
import re
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goals.asking import Asker
from goals.closed import Closed
from goals.language_models import load_language_model
from goals.packing import pack_scores, unpack_scores
from goals.recipes import Recipe
from goals.rules import hash_texts
from goals.store import Store
from lab.errors import UserError
from tests.helpers.scripted_model import ScriptedModel, last_line
from worlds.crafter.words import FACTS
from worlds.crafter.world import Crafter
from worlds.world import PROMPTS

pytestmark = pytest.mark.filterwarnings("error")
RECIPE = Recipe(sensible_threshold=0.0, need_threshold=0.0, closed_threshold=0.5)
SCENES = (PROMPTS / "crafter_scenes_v1.txt").read_text().splitlines()
SCENE = "You see cow, tree. You have $wood."


class Farm:
    """Crafter with six captions: its prompts, few questions."""

    name, prompts, recipes = "crafter", PROMPTS, Crafter.recipes
    captions = ("nothing", "chop tree", "chop cow", "eat tree", "eat cow", "sleep")
    facts = needable = ("see tree", "see cow")

    def parts(self, caption):
        verb, _, noun = caption.partition(" ")
        return verb, noun


GOALS = Farm.captions[1:]
PLAUSIBLE = np.array([True, False, False, True, True])


def knows(prompt):
    """Say what makes sense at all and, in a scene, what is in view."""
    scene, _, goal = last_line(prompt).rpartition(" Should the player ")
    if scene:
        return (
            4.0 * all(word.removesuffix(" now?") in scene for word in goal.split(" ")[1:2])
            - 2.0
            + 2.0 * ("sleep" in goal)
        )
    return 3.0 * any(good in last_line(prompt) for good in ("chop tree", "eat cow", "sleep")) + (
        "sleep" in last_line(prompt)
    )


def likely(prompt, candidate):
    """Prefer what makes sense and is in view."""
    goal, good = candidate.strip(" .,\n"), ("chop tree", "eat cow", "sleep")
    if "Next:" not in prompt:
        return 5.0 * (goal in good) + ("sleep" in goal) - 20
    return -2.0 if goal in good and goal.split(" ")[-1] in prompt.split("\n")[-2] else -12.0


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "answers.sqlite") as store:
        yield store


@pytest.fixture(scope="module")
def crafter():
    return Crafter()


def facts_of(world, sentence):
    """Return the facts that a sentence tells, packed; the world says them in these very words."""
    words = [0] * world.num_scene_words
    for verb, things in re.findall(r"You (see|have|feel) ([^.]*)\.", sentence):
        for thing in things.split(", "):
            index = FACTS.index(thing if verb == "feel" else f"{verb} {thing}")
            words[index // 32] |= 1 << index % 32
    assert world.describe(words) == sentence
    return np.array(words, np.uint32)


def can_be_done(world, words, goal):
    """Tell whether what must be in view for a goal is; a compact scene does not tell of grass."""
    in_view = world.in_view_masks()[world.captions.index(goal)]
    return not in_view.any() or (in_view & words).any() or goal == "chop grass"


# Prompt files


@pytest.mark.parametrize(
    "scoring, last, hashes",
    [
        ("likelihood", f"\n\n{SCENE}\nNext:", ("04b792db67f77741", "adfd962fb91dbf0e")),
        (
            "yes-no",
            f"\n\n{SCENE} Should the player chop tree now?",
            ("b316b98f290fa2f3", "00a23773a4da7561"),
        ),
    ],
)
def test_golden_render(scoring, last, hashes):
    form, model = Closed(Farm(), scoring=scoring), ScriptedModel()
    form.plausible = np.array([True, False, False, False, False])
    form.ask(model, [SCENE])
    (rendered,) = model.asked
    assert rendered.startswith("Advice for the player of a survival game") and rendered.endswith(
        last
    )
    # A published prompt never changes: stored answers belong to these very bytes.
    assert form.prompts["closed"] == form.prompt_hash
    assert (form.prompt_hash, hashlib.sha256(rendered.encode()).hexdigest()[:16]) == hashes


def test_the_published_scenes_never_change():
    assert (
        hashlib.sha256((PROMPTS / "crafter_scenes_v1.txt").read_bytes()).hexdigest()[:16]
        == "e097516512edc243"
    )


def test_examples_speak_as_the_world_does_and_advise_what_can_be_done(crafter):
    text = (PROMPTS / "crafter_closed_v1.txt").read_text()
    examples = re.findall(r"\n\n(You see .*)\nNext: (.*)(?=\n)", text)
    assert len(examples) == text.count("Next:") - 1 >= 18
    for scene, goal in examples:
        assert goal in crafter.captions and can_be_done(crafter, facts_of(crafter, scene), goal)


def test_yes_no_examples_speak_as_the_world_does(crafter):
    text = (PROMPTS / "crafter_closed_yesno_v1.txt").read_text()
    examples = re.findall(r"\n(You see .*) Should the player (.*) now\? (yes|no)(?=\n)", text)
    assert len(examples) == text.count("Should") - 1 and len(set(examples)) == len(examples)
    assert min([answer for _, _, answer in examples].count(word) for word in ("yes", "no")) >= 8
    for scene, goal, answer in examples:
        assert goal in crafter.captions
        assert can_be_done(crafter, facts_of(crafter, scene), goal) or answer == "no"


def test_scenes_to_calibrate_with_are_compact_and_differ(crafter):
    assert len(SCENES) == len(set(SCENES)) == 64
    for scene in SCENES:
        assert not (facts_of(crafter, scene) & ~crafter.prompt_mask("compact")).any()


@pytest.mark.parametrize("scoring, wrong", [("likelihood", "$scene $goal"), ("yes-no", "$scene")])
def test_a_prompt_of_another_way_is_refused(tmp_path, scoring, wrong):
    (tmp_path / "mine.txt").write_text(wrong)
    with pytest.raises(UserError, match="mine.txt must have"):
        Closed(Farm(), tmp_path / "mine.txt", scoring=scoring)


def test_missing_scenes_are_named(tmp_path):
    for path in PROMPTS.glob("crafter_[cr]*.txt"):
        shutil.copy(path, tmp_path)
    farm = Farm()
    farm.prompts = tmp_path
    Closed(farm)
    message = "crafter_scenes_v1.txt cannot be read .*: give --closed-calibration scene"
    with pytest.raises(UserError, match=message):
        Closed(farm, calibration="goal")
    (tmp_path / "crafter_scenes_v9.txt").write_text("You see cow.\nYou see tree.")
    form, asked = Closed(farm, calibration="goal", recipe=RECIPE), []
    form.prepare(lambda prompt_hash, parameters, questions, ask: asked.extend(questions) or {})
    assert asked[-2:] == ["You see cow.", "You see tree."]


# What is asked


def test_every_goal_of_the_world_is_scored(store):
    form, model = Closed(Farm(), recipe=RECIPE), ScriptedModel(knows, likely)
    asker = Asker(model.name, store, model)
    form.prepare(asker.answers)
    assert form.plausible.tolist() == PLAUSIBLE.tolist()
    assert form.parameters == {"form": "likelihood", "goals": hash_texts(GOALS)}
    model.asked.clear()
    answers = asker.answers(
        form.prompt_hash, form.parameters, ["You see cow.", "You see tree."], form.ask
    )
    # Stored answers belong to these very candidates.
    assert len(model.asked) == 2 and model.candidates == [f" {goal}" for goal in GOALS]
    assert unpack_scores(answers["You see cow."]).tolist() == [-12, -12, -12, -2, -12]
    assert form.goals(answers["You see cow."]) == ("eat cow",)
    assert form.goals(answers["You see tree."]) == ("chop tree",)


def test_by_yes_or_no_goals_that_make_sense_are_asked_about(store):
    form, model = (
        Closed(Farm(), scoring="yes-no", recipe=RECIPE),
        ScriptedModel(knows, likely, can_score=False),
    )
    asker = Asker(model.name, store, model)
    form.prepare(asker.answers)
    model.asked.clear()
    scenes = ["You see cow.", "You see tree."]
    answers = asker.answers(form.prompt_hash, form.parameters, scenes, form.ask)
    goals = [goal for goal, plausible in zip(GOALS, PLAUSIBLE, strict=True) if plausible]
    assert [last_line(p) for p in model.asked] == [
        f"{scene} Should the player {goal} now?" for scene in scenes for goal in goals
    ]
    np.testing.assert_array_equal(
        unpack_scores(answers["You see cow."]), [-2, np.nan, np.nan, 2, 0]
    )
    assert form.goals(answers["You see cow."]) == ("eat cow",)
    assert form.goals(answers["You see tree."]) == ("chop tree",)


def test_the_choice_of_goals_is_part_of_what_is_asked_by_yes_or_no(store):
    keys = set()
    for threshold in (0.0, 1.3):
        form = Closed(Farm(), scoring="yes-no", recipe=Recipe(threshold, 0.0, 0.0))
        form.prepare(Asker("scripted@0", store, ScriptedModel(knows, likely)).answers)
        goals = [goal for goal, plausible in zip(GOALS, form.plausible, strict=True) if plausible]
        assert form.parameters == {"form": "yes-no", "goals": hash_texts(goals)}
        keys.add(form.parameters["goals"])
    assert len(keys) == 2


def test_a_question_without_an_answer_is_no_score():
    form = Closed(Farm(), scoring="yes-no", recipe=RECIPE)
    form.plausible = PLAUSIBLE
    model = ScriptedModel(
        lambda prompt: (
            None if "chop tree" in prompt.split("\n")[-1] or "water" in last_line(prompt) else 1.5
        )
    )
    answers = form.ask(model, ["You see cow.", "You see water."])
    assert answers[1] is None
    np.testing.assert_array_equal(unpack_scores(answers[0]), [np.nan, np.nan, np.nan, 1.5, 1.5])


def test_a_scene_most_of_whose_questions_have_no_answer_has_none():
    form = Closed(Farm(), scoring="yes-no", recipe=RECIPE)
    form.plausible = np.ones(5, bool)
    for answered, is_enough in ((0, False), (2, False), (3, True), (5, True)):
        odds = iter([1.5] * answered + [None] * (5 - answered))
        model = ScriptedModel(lambda prompt, odds=odds: next(odds))
        assert (form.ask(model, ["You see cow."]) != [None]) == is_enough


def test_where_no_goal_makes_sense_there_is_an_answer_and_nobody_is_asked():
    form, model = Closed(Farm(), scoring="yes-no", recipe=RECIPE), ScriptedModel()
    form.plausible = np.zeros(5, bool)
    answers = form.ask(model, ["You see cow.", "You see tree."])
    assert len(answers) == 2 and not model.asked
    assert [form.goals(answer) for answer in answers] == [(), ()]


# What scores come to


def test_goals_of_a_scene_are_compared_with_one_another():
    form = Closed(Farm(), recipe=Recipe(0.0, 0.0, closed_threshold=0.9))
    form.plausible = np.array([True, False, True, True, False])
    # Mean -5, standard deviation sqrt(8): the first two and the last stand out by 1.06, 0.35 and
    # 1.06.
    raw = pack_scores([-2.0, -4.0, -8.0, -9.0, -2.0])
    np.testing.assert_allclose(
        form.calibrate(unpack_scores(raw)), np.array([3, 1, -3, -4, 3]) / np.sqrt(8.8)
    )
    assert form.goals(raw) == ("chop tree",)
    # What was not scored counts nowhere: mean -4, standard deviation 2.
    np.testing.assert_allclose(
        form.calibrate(np.array([-2.0, np.nan, -6.0, np.nan, np.nan])),
        [1, np.nan, -1, np.nan, np.nan],
    )
    assert form.goals(pack_scores([np.nan] * 5)) == form.goals(pack_scores([-3.0] * 5)) == ()


def test_a_goal_is_compared_with_itself_over_scenes():
    form = Closed(Farm(), calibration="goal", recipe=Recipe(0.0, 0.0, closed_threshold=0.9))
    table = {
        SCENES[0]: pack_scores([-1.0, -9.0, -5.0, -4.0, np.nan]),
        SCENES[1]: pack_scores([-3.0, -9.0, -5.0, np.nan, np.nan]),
        SCENES[2]: "no scores",
        SCENES[3]: pack_scores([-2.0]),
        SCENES[4]: pack_scores([-2.0, -9.0, -8.0, -2.0, np.nan]),
    }
    asked = []

    def answers(prompt_hash, parameters, questions, ask):
        asked.append((prompt_hash, questions))
        return table if list(questions) == SCENES else {}

    form.prepare(answers)
    assert asked[-1] == (form.prompt_hash, SCENES)
    form.plausible = np.ones(5, bool)
    # Means -2, -9, -6, -3 and deviations sqrt(2/3), none, sqrt(2), 1; of the last goal nothing is
    # known.
    found = form.calibrate(np.array([-1.0, -9.0, -4.0, -2.0, -2.0]))
    np.testing.assert_allclose(found, [np.sqrt(1.5), 0, np.sqrt(2), 1, np.nan])
    assert form.goals(pack_scores([-1.0, -9.0, -4.0, -2.5, -2.0])) == ("chop tree", "eat tree")


def test_without_answers_about_the_scenes_there_are_no_goals(store):
    form = Closed(Farm(), calibration="goal", recipe=RECIPE)
    form.prepare(Asker("nobody@0", store, on_missing="no-goals").answers)
    form.plausible = np.ones(5, bool)
    assert form.goals(pack_scores([1.0, 2.0, 3.0, 4.0, 5.0])) == ()


@pytest.fixture(scope="module", params=["scene", "goal"])
def form(request):
    form = Closed(Farm(), calibration=request.param, recipe=RECIPE)
    scores = [pack_scores(np.random.default_rng(seed).normal(size=5)) for seed in range(3)]
    form.prepare(
        lambda prompt_hash, parameters, questions, ask: dict(zip(questions, scores, strict=False))
    )
    form.plausible = PLAUSIBLE
    return form


@settings(max_examples=150, deadline=None)
@given(
    st.text(max_size=40)
    | st.binary(min_size=10, max_size=10).map(lambda data: base64.b64encode(data).decode())
)
def test_any_text_is_an_answer(form, raw):
    goals = form.goals(raw)
    assert [goal for goal in GOALS if goal in goals] == list(goals)
    assert set(goals) <= {"chop tree", "eat cow", "sleep"}


@pytest.mark.parametrize(
    "raw",
    ["", "- eat cow", '{"yes": -1.0, "no": -2.0}', pack_scores([9.0] * 4), pack_scores([9.0] * 6)],
)
def test_an_unreadable_answer_suggests_nothing(form, raw):
    assert form.goals(raw) == ()


@pytest.mark.torch
def test_a_real_model_answers():
    model = load_language_model("gemma3-270m", engine="transformers")
    form = Closed(Farm(), model=model.name, recipe=RECIPE)
    tree, cow = map(unpack_scores, form.ask(model, ["You see tree.", "You see cow."]))
    # Even the small model knows when to chop a tree and when to eat a cow.
    assert tree[0] - cow[0] > 0.1 and cow[3] - tree[3] > 0.1
    form = Closed(Farm(), model=model.name, scoring="yes-no", recipe=RECIPE)
    form.plausible = PLAUSIBLE
    (answer,) = form.ask(model, ["You see tree."])
    np.testing.assert_array_equal(np.isfinite(unpack_scores(answer)), PLAUSIBLE)
    model.close()

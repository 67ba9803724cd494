"""The pairs form: what is asked of each thing, what scores come to, and the tables of a run."""

import hashlib
import re

import numpy as np
import pytest

from goals.arguments import GoalArgs
from goals.asking import Asker
from goals.forms import is_answer, make_form
from goals.language_models import load_language_model
from goals.packing import pack_scores, unpack_scores
from goals.pairs import (
    ANY_THING,
    BEST_WEIGHT,
    CONTRAST_WEIGHT,
    PLACE_WEIGHT,
    PLACEHOLDERS,
    PairsForm,
    combine,
)
from goals.prompts import prompt_hashes
from goals.recipes import Recipe
from goals.rules import hash_texts
from goals.service import GoalService
from goals.store import Store
from goals.tables import suggest
from lab.errors import UserError
from tests.helpers.room import PLACES, THINGS, Room
from tests.helpers.scripted_model import ScriptedModel, last_line
from tests.toy.world import ToyWorld
from worlds.frames import FrameStack
from worlds.housekeep.houses import NUM_TASKS
from worlds.housekeep.truth import SPLITS, read_twc
from worlds.housekeep.world import Housekeep, reference_things
from worlds.world import PROMPTS, RECORDED, mask_of

pytestmark = pytest.mark.filterwarnings("error")
HOME = {"cup": "shelf", "hat": "hook", "soap": "sink", "sock": "shelf"}
RECIPE = Recipe(0.0, 0.0, 0.0, pair_threshold=0.0)
NUM_OPENINGS = 4


def likely(prompt, candidate):
    """Say where things belong, in any opening about order; places differ in how likely they are."""
    question = last_line(prompt)
    place = next((place for place in PLACES if place in question), candidate.strip())
    thing = next((thing for thing in THINGS if thing in question), candidate.strip())
    is_mess = any(word in question for word in ("not", "strange", "mistake", "wrong", "mess!"))
    is_mess |= "Nothing is in its place" in question
    return -len(place) - len(thing) + 4.0 * (HOME.get(thing) == place) * (not is_mess)


def knows(prompt):
    """Say yes to the pairs that belong together."""
    thing, place = re.fullmatch(r"The (.*): in the (.*)\?", last_line(prompt)).groups()
    return 2.0 if HOME[thing] == place else -1.0


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "answers.sqlite") as store:
        yield store


def prepared(store, model, on_missing="error", **options):
    """Return a form that has asked a model, or with None looked into the store."""
    form = PairsForm(Room(), **{"recipe": RECIPE, "choice": "threshold", **options})
    form.prepare(Asker("scripted@0", store, model, on_missing=on_missing).answers)
    return form


RIGHT = np.array([[HOME[thing] == place for place in PLACES] for thing in THINGS])


# Prompt files


@pytest.mark.parametrize(
    "kind, names, last, digest",
    [
        (
            "tidy",
            {"thing": "cup"},
            "Everything is in its place: you find the cup in the",
            "9350f10ffc424a8d",
        ),
        (
            "mess",
            {"thing": "cup"},
            "Nothing is in its place: the cup lies in the",
            "7cc011229a598cc1",
        ),
        ("keeps", {"thing": "cup"}, "The cup goes in the", "629e98c31d0795bd"),
        ("holds", {"place": "shelf"}, "In the shelf goes the", "ecddcb06d5e43778"),
        ("suits", {"place": "shelf"}, "The shelf is the right place for the", "3449abbd8220beec"),
        ("yesno", {"thing": "cup", "place": "shelf"}, "The cup: in the shelf?", "655951263e4eb5e4"),
    ],
)
def test_golden_render(kind, names, last, digest):
    form = PairsForm(Room(), scoring="yes-no" if kind == "yesno" else "recipe")
    rendered = form.templates[kind].substitute(names)
    assert last_line(rendered) == last
    # A published prompt never changes: stored answers belong to these very bytes.
    assert hashlib.sha256(rendered.encode()).hexdigest()[:16] == digest
    assert form.prompts[kind] == prompt_hashes()[f"housekeep_pairs_{kind}", 1]


def test_openings_are_as_many_of_tidiness_as_of_mess():
    form = PairsForm(Room())
    for kind in ("tidy", "mess"):
        openings = form.templates[kind].template.split("\n\n")
        assert len(openings) == NUM_OPENINGS
        assert all(text.count("$thing") == 1 and text.endswith(" the") for text in openings)


def test_examples_are_of_no_object_or_place_that_is_judged():
    table = read_twc()
    judged = table.split > SPLITS.index("train")
    names = [name for name, is_in in zip(table.objects, judged, strict=True) if is_in]
    names += [table.places[i] for i in np.flatnonzero(table.belongs[judged].any(0))]
    for path in PROMPTS.glob("housekeep_*.txt"):
        text = path.read_text().lower()
        assert [n for n in names if re.search(rf"\b{re.escape(n.lower())}\b", text)] == []


def test_both_lists_show_the_same_pairs():
    keeps, holds = (
        (PROMPTS / f"housekeep_pairs_{kind}_v1.txt").read_text() for kind in ("keeps", "holds")
    )
    shown = re.findall(r"The (.*) goes in the (.*)\.", keeps)
    assert len(shown) >= 12
    assert [pair[::-1] for pair in re.findall(r"In the (.*) goes the (.*)\.", holds)] == shown


def test_missing_prompts_are_named(tmp_path):
    for scoring, kinds in PLACEHOLDERS.items():
        first = next(iter(kinds))
        with pytest.raises(UserError, match=f"mine_{first}_v1.txt cannot be read"):
            PairsForm(Room(), tmp_path / "mine", scoring=scoring)


# What is asked


def test_each_thing_is_asked_about_once_ever(store):
    model = ScriptedModel(knows, likely)
    form = prepared(store, model)
    assert form.parameters == {"form": "pairs", "places": hash_texts(PLACES)}
    # Openings of anything, one list for each thing, a list and a text for each place.
    assert len(model.asked) == len(ANY_THING) * 2 * NUM_OPENINGS + 4 + 2 * 3
    assert set(form.prompts) == {"tidy", "mess", "keeps", "holds", "suits"} and form.known == 1.0
    rows = {(row.prompt, row.question): row.answer for row in store.rows()}
    assert len(rows) == 2 * len(ANY_THING) + 3 * len(THINGS)
    for kind, prompt in form.prompts.items():
        of_any = kind in ("tidy", "mess")
        asked = {question for answered, question in rows if answered == prompt}
        assert asked == set(ANY_THING if of_any else THINGS)
        size = len(PLACES) * (NUM_OPENINGS if of_any else 1)
        assert {unpack_scores(rows[prompt, question]).size for question in asked} == {size}
    assert unpack_scores(rows[form.prompts["holds"], "hat"]).tolist() == [-8.0, -3.0, -7.0]
    asked = len(model.asked)
    again = prepared(store, model)
    assert len(model.asked) == asked
    np.testing.assert_array_equal(again.scores, form.scores)


def test_another_thing_asks_no_more_than_itself(store, monkeypatch):
    model = ScriptedModel(knows, likely)
    prepared(store, model)
    asked = len(model.asked)
    monkeypatch.setattr(Room, "things", (*THINGS, "cup", "ring"))
    monkeypatch.setitem(HOME, "ring", "hook")
    monkeypatch.setattr(ScriptedModel, "likelihood", likely, raising=False)
    model.likelihood = lambda prompt, candidate: likely(
        prompt.replace("ring", "hat"), candidate.replace("ring", "hat")
    )
    form = prepared(store, model)
    assert len(model.asked) - asked == 1 + 2 * 3
    assert form.right[[0, 4, 5]].tolist() == [*RIGHT[[0, 0]].tolist(), RIGHT[1].tolist()]


def test_by_yes_or_no_every_pair_is_a_question(store):
    model = ScriptedModel(knows, can_score=False)
    form = prepared(store, model, scoring="yes-no")
    assert [last_line(prompt) for prompt in model.asked] == [
        f"The {thing}: in the {place}?" for thing in THINGS for place in PLACES
    ]
    assert form.right.tolist() == RIGHT.tolist()
    np.testing.assert_array_equal(form.scores, np.where(RIGHT, 2.0, -1.0))
    assert set(form.prompts) == {"yesno"}


def test_a_model_that_cannot_score_is_refused_in_one_line(store):
    with pytest.raises(
        UserError, match="cannot score places: give --pair-scoring yes-no"
    ) as caught:
        prepared(store, ScriptedModel(knows, can_score=False))
    assert "\n" not in str(caught.value)


def test_a_world_without_pairs_is_told_so():
    for world in (ToyWorld(), FrameStack(ToyWorld())):
        with pytest.raises(UserError, match="^world toy has no pairs: choose another form$"):
            make_form(world, GoalArgs(goal_form="pairs"))
    form = make_form(FrameStack(Room()), GoalArgs(goal_form="pairs"))
    assert (form.things, form.places) == (THINGS, PLACES)


def test_what_can_be_used_of_an_answer():
    assert is_answer({"form": "pairs"}, pack_scores([1.0]))
    assert not is_answer({"form": "pairs"}, "") and not is_answer({"form": "pairs"}, "cup!")


# What scores come to


def test_a_model_that_knows_the_house_is_believed(store):
    form = prepared(store, ScriptedModel(knows, likely))
    assert form.right.tolist() == form.plausible.tolist() == RIGHT.tolist()
    assert form.scores.shape == (4, 3) and form.scores[RIGHT].min() > form.scores[~RIGHT].max()


def test_the_fit_is_what_neither_thing_nor_place_brings_along():
    rng = np.random.default_rng(0)
    contrast, fit = rng.normal(size=4), rng.normal(size=(5, 4))
    np.testing.assert_allclose(
        combine(3.0 + contrast, fit + rng.normal(size=(5, 1))), combine(contrast, fit)
    )
    # By hand: a fit of spread one, asked in two ways, and a contrast of spread one beside it.
    cross, places = np.array([[1.0, -1.0], [-1.0, 1.0]]), np.array([1.0, -1.0])
    both = (cross + CONTRAST_WEIGHT * places) / np.sqrt(1 + CONTRAST_WEIGHT**2)
    expected = both - BEST_WEIGHT * both.max(1, keepdims=True)
    np.testing.assert_allclose(combine(np.array([2.0, 0.0]), cross, 2 * cross), expected)
    # A place that goes well with all things does so less.
    both = (cross + PLACE_WEIGHT * places) / np.sqrt(1 + PLACE_WEIGHT**2)
    expected = both - BEST_WEIGHT * both.max(1, keepdims=True)
    np.testing.assert_allclose(combine(np.zeros(2), cross + places), expected)
    # A fit without any information, and a contrast that nobody was asked of.
    expected = places - BEST_WEIGHT
    np.testing.assert_allclose(combine(np.array([2.0, 0.0]), 7.0 + 0 * cross)[0], expected)
    np.testing.assert_allclose(combine(np.zeros(2), cross), cross - BEST_WEIGHT)


def test_what_is_not_known_takes_nothing_from_the_rest():
    fit = np.array([[2.0, 0.0, np.nan], [np.nan] * 3, [0.0, 2.0, 1.0]])
    scores = combine(np.zeros(3), fit)
    np.testing.assert_array_equal(np.isnan(scores), np.isnan(fit))


def test_without_a_threshold_the_best_two_places_count(store):
    recipe = Recipe(0.0, 0.0, 0.0)
    form = prepared(store, ScriptedModel(knows, likely), recipe=recipe)
    assert form.right.sum(1).tolist() == [2] * 4 and (form.right | ~RIGHT).all()
    scores = np.array([[3.0, 1.0, 2.0], [0.0, np.nan, np.nan], [np.nan] * 3])
    assert form.choose(scores).tolist() == [[1, 0, 1], [1, 0, 0], [0, 0, 0]]


def test_a_thing_is_put_in_the_best_place_there_is(store, monkeypatch):
    scores = np.array([[3.0, 1.0, -1.0], [-1.0, -2.0, np.nan], [0.5, 0.5, 2.0], [np.nan] * 3])
    monkeypatch.setattr(PairsForm, "judge", lambda self, answers, things: scores)
    form = prepared(store, None, choice="best")
    assert form.right.tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 1], [1, 1, 1]]
    assert form.wrong.tolist() == [[0, 0, 1], [0, 1, 0], [0, 0, 0], [0, 0, 0]]
    monkeypatch.setattr(Room, "places_here", np.array([False, True, True]))
    form = prepared(store, None, choice="best")
    assert form.right.tolist() == [[0, 1, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]
    form = prepared(store, None, choice="threshold")
    assert form.right[0].tolist() == [1, 1, 0] and form.wrong.tolist() == (~form.right).tolist()


def test_a_thing_that_nobody_answered_about_stays_where_it_is(store):
    model = ScriptedModel(knows, likely)
    prepared(store, model)
    with pytest.raises(UserError, match="no stored answer of scripted@0 for 4 question"):
        prepared(store, None, scoring="yes-no")
    form = PairsForm(Room(), recipe=RECIPE, choice="threshold")
    form.things = (*THINGS, "ring")
    form.prepare(Asker("scripted@0", store, on_missing="no-goals").answers)
    assert np.isnan(form.scores[4]).all() and form.right[4].all()
    assert form.known == pytest.approx(0.8) and form.right[:4].tolist() == RIGHT.tolist()
    for raw in ("", "no scores", pack_scores([1.0])):
        form.prepare(lambda *_, raw=raw: dict.fromkeys(THINGS, raw))
        assert form.known == 0.0 and form.right.all()


def test_an_answer_of_which_too_little_is_known_is_none():
    form = PairsForm(Room(), scoring="yes-no")
    odds = iter([None, 1.0, 1.0, None, None, 1.0])
    answers = form.ask_yes_no(ScriptedModel(lambda prompt: next(odds)), ["cup", "hat"])
    np.testing.assert_array_equal(unpack_scores(answers[0]), [np.nan, 1.0, 1.0])
    assert answers[1] is None
    model = ScriptedModel()
    model.score = lambda prompts, candidates: [None for _ in prompts]
    assert PairsForm(Room()).score_places("tidy", model, ["cup"]) == [None]
    assert PairsForm(Room()).score_things("holds", model, ["cup", "hat"]) == [None, None]


# A run


def test_a_run_has_the_tables_of_rules(tmp_path, monkeypatch):
    monkeypatch.setattr(Room, "recorded", tmp_path)
    with Store(tmp_path / "housekeep_pairs_scripted.sqlite") as store:
        prepared(store, ScriptedModel(knows, likely))
    args = GoalArgs(
        goal_form="pairs",
        llm="scripted",
        store=str(tmp_path / "own.sqlite"),
        text_observation="none",
        goal_conditioned=False,
        similarity_threshold=0.5,
    )
    world = Room()
    assert not (args.per_scene or args.asks or args.must_know_scene)
    monkeypatch.setattr("goals.embeddings.load_sentence_encoder", lambda name: Encoder())
    service = GoalService(world, args)
    service.prepare()
    assert "recorded answers of scripted@0, nobody is asked (form: pairs)" in service.describe()
    scenes = np.stack([mask_of(world.facts, facts) for facts in SUGGESTED])
    goals = np.asarray(suggest(args, world, service.tables, None, None, scenes))
    for row, expected in zip(goals, SUGGESTED.values(), strict=True):
        assert {service.goals[i] for i in np.flatnonzero(row)} == expected
    service.close()


SUGGESTED = {
    (): set(),
    ("cup in shelf", "hat in sink"): {"pick up hat"},
    ("cup in hook", "hat in shelf"): {"pick up cup", "pick up hat"},
    ("hold cup", "hat in hook"): {"put cup in shelf"},
}


class Encoder:
    """Embed a text as a unit vector of its own."""

    name = "encoder@0"

    def encode(self, texts):
        digits = [hashlib.sha256(text.encode()).digest() for text in texts]
        vectors = np.array([list(digest) for digest in digits], np.float32) - 127.5
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_nothing_recorded_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(Room, "recorded", tmp_path)
    args = GoalArgs(
        goal_form="pairs", llm="nobody", resolve="replay", store=str(tmp_path / "own.sqlite")
    )
    service = GoalService(Room(), args)
    with pytest.raises(UserError, match="no stored answer of nobody for 3 question") as caught:
        service.prepare()
    assert "\n" not in str(caught.value)
    service.close()


@pytest.mark.parametrize(
    "path", sorted(RECORDED.glob("housekeep_pairs_*.sqlite")), ids=lambda path: path.stem
)
def test_recorded_answers_are_complete_and_make_sense(path):
    with Store(path, read_only=True) as store:
        (model,) = store.models()
        answers = Asker(model, store).answers
        for task in map(str, range(1, NUM_TASKS + 1)):
            form = PairsForm(Housekeep(task), model=model)
            form.prepare(answers)
            assert form.known == 1.0
        belongs = form.right[form.things.index("red apple")]
        assert "fridge" in {form.places[i] for i in np.flatnonzero(belongs)}
        table = read_twc()
        tested = [table.objects[i] for i in np.flatnonzero(table.split == SPLITS.index("test"))]
        scores = form.judge(answers, [*tested, *reference_things(table)])
    assert np.isfinite(scores).all()


@pytest.mark.slow
@pytest.mark.torch
def test_a_real_model_answers(store):
    model = load_language_model("gemma3-270m", engine="transformers")
    form = prepared(store, model)
    # Even the small model keeps soap in the sink rather than on a hook.
    assert np.isfinite(form.scores).all() and form.scores[2, 2] > form.scores[2, 1]
    by_pairs = prepared(store, model, scoring="yes-no")
    assert np.isfinite(by_pairs.scores).all()
    model.close()

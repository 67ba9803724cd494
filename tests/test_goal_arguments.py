"""What the arguments of goals come to, for every combination that matters."""

import dataclasses
import itertools

import pytest

from goals.arguments import GoalArgs, TextArgs

SOURCES = ("llm", "oracle", "novelty", "uniform", "grounded", "none")
FORMS = ("rules", "open", "closed", "pairs")
RESOLVE = ("exact", "async", "replay")
TEXTS = ("none", "caption", "facts")


@pytest.mark.parametrize("source", SOURCES)
def test_properties(source):
    ways = itertools.product(FORMS, RESOLVE, TEXTS, (False, True))
    for form, resolve, text, conditioned in ways:
        args = GoalArgs(
            goal_source=source,
            goal_form=form,
            resolve=resolve,
            text_observation=text,
            goal_conditioned=conditioned,
        )
        asks_each_scene = source == "llm" and form in ("open", "closed")
        waits = asks_each_scene and resolve in ("exact", "replay")
        assert args.per_scene == asks_each_scene
        assert args.in_background == (asks_each_scene and resolve == "async")
        assert args.waits_for_goals == waits
        assert args.stores_suggestions == (source in ("oracle", "uniform"))
        assert args.reads_goals == (conditioned and source != "none")
        assert args.asks == (waits or text == "caption")
        reads_what_is_asked = conditioned and waits
        assert args.must_know_scene == (text == "caption" or reads_what_is_asked)


@pytest.mark.parametrize("guide", [{"goal_view": True}, {"approach_coef": 1.0}])
def test_goals_that_a_guide_reads_must_be_known(guide):
    args = GoalArgs(goal_form="open", goal_conditioned=False, text_observation="none", **guide)
    assert args.tracks_goals and args.must_know_scene
    assert not dataclasses.replace(args, goal_form="rules").must_know_scene


@pytest.mark.parametrize("text", TEXTS)
def test_without_goals_only_text_counts(text):
    args = TextArgs(text_observation=text)
    assert args.asks == args.must_know_scene == (text == "caption")
    assert not (args.reads_goals or args.per_scene or args.in_background)
    assert not (args.waits_for_goals or args.stores_suggestions)


def test_free_fields_are_fields():
    for group in (TextArgs, GoalArgs):
        assert set(group.FREE) <= {field.name for field in dataclasses.fields(group)}
    assert GoalArgs.FREE == ("store", "llm_url", "llm_engine", "llm_budget", "on_exit")

"""Recording beforehand: it goes on where it stopped, compares, and says what is wrong at once."""

import dataclasses
import sys

import numpy as np
import pytest

from goals import embeddings, record
from goals.arguments import GoalArgs
from goals.closed import Closed
from goals.model import Usage
from goals.open_ended import OpenEnded
from goals.packing import pack_scores
from goals.pairs import ANY_THING
from goals.rules import RulesForm
from goals.service import GoalService
from goals.store import Answer, Embedding, Store
from lab.cli import run_cli
from lab.errors import UserError
from tests.helpers.rankings import save_rankings
from tests.helpers.scripted_model import ScriptedModel, last_line
from tests.toy import record as toy_record
from tests.toy.world import ToyWorld
from worlds import make_world
from worlds.world import WorldArgs

SCENES = ["You see cow.", "You see diamond.", "You see tree, water. You have wood."]
QUESTIONS = 9 + 7 * 134 + 48 * 25


class Encoder:
    """Embed a text as a unit vector of two numbers."""

    name = "encoder@0"

    def encode(self, texts):
        angles = np.arange(len(texts), dtype=np.float32)
        return np.stack([np.cos(angles), np.sin(angles)], 1)


@pytest.fixture
def model(monkeypatch):
    """Return the model that record loads, whatever it is told to load."""
    model = ScriptedModel(
        lambda prompt: len(last_line(prompt)) / 9, lambda prompt, candidate: -float(len(candidate))
    )
    monkeypatch.setattr(record, "load_language_model", lambda spec, url, engine: model)
    monkeypatch.setattr(embeddings, "load_sentence_encoder", lambda name: Encoder())
    return model


@pytest.fixture
def scenes(tmp_path):
    """Write a file of scenes, one of them twice."""
    path = tmp_path / "scenes.txt"
    path.write_text("\n".join([*SCENES, "", SCENES[0]]) + "\n", encoding="utf-8")
    return path


def contents(path):
    """Return the answers and the embedded texts of a store."""
    with Store(path, read_only=True) as store:
        rows = list(store.rows())
    return [row for row in rows if isinstance(row, Answer)], [
        row.text for row in rows if isinstance(row, Embedding)
    ]


def test_the_rules_are_recorded_whole(tmp_path, model, capsys):
    args = record.Args(llm="scripted", store=tmp_path / "new.sqlite")
    assert record.main(args) == {"queries": QUESTIONS, "unanswered": 0}
    answers, embedded = contents(args.store)
    world = make_world(WorldArgs())
    assert len(answers) == QUESTIONS and {row.model for row in answers} == {"scripted@0"}
    assert {row.prompt for row in answers} == set(RulesForm(world).prompts.values())
    assert set(embedded) == {*world.captions, *world.facts}
    out = capsys.readouterr().out
    assert (
        out.endswith(f"scripted@0: {QUESTIONS} queries, 0 unanswered\n")
        and "1136 of this kind left" in out
    )
    assert record.main(args) == {"queries": 0, "unanswered": 0}
    assert len(model.asked) == QUESTIONS


def test_a_recording_goes_on_where_it_stopped(tmp_path, model):
    def dies(prompt):
        if len(model.asked) > 700:
            raise UserError("the model died")
        return 1.0

    args = record.Args(llm="scripted", store=tmp_path / "new.sqlite")
    alive, model.odds = model.odds, dies
    with pytest.raises(UserError, match="the model died"):
        record.main(args)
    kept, _ = contents(args.store)
    # Of what was asked, only the last batch of 64 is lost.
    assert 700 - 64 <= len(kept) <= 700
    asked, model.odds = len(model.asked), alive
    model.usage = Usage()
    assert record.main(args)["queries"] == QUESTIONS - len(kept)
    answers, _ = contents(args.store)
    assert len(answers) == QUESTIONS and set(kept) <= set(answers)
    assert len(model.asked) == asked + QUESTIONS - len(kept)


def test_what_got_no_answer_is_counted_and_asked_again(tmp_path, model):
    knows = model.odds
    model.odds = lambda prompt: (
        None if "attack cow. Makes sense" in last_line(prompt) else knows(prompt)
    )
    args = record.Args(llm="scripted", store=tmp_path / "new.sqlite")
    assert record.main(args)["unanswered"] == 1
    model.odds = knows
    again = record.main(args)
    # The one answer may change which goals make most sense, and so whose needs are asked.
    assert again["unanswered"] == 0 and 1 <= again["queries"] <= 1 + 2 * 25


def test_lists_are_recorded_for_each_scene(tmp_path, model, scenes):
    args = record.Args(llm="scripted", store=tmp_path / "new.sqlite", form="open", scenes=scenes)
    assert record.main(args) == {"queries": 3, "unanswered": 0}
    answers, _ = contents(args.store)
    assert [(row.question, row.answer) for row in answers] == [
        (scene, " eat cow\n- sleep") for scene in SCENES
    ]
    assert {row.prompt for row in answers} == {OpenEnded(make_world(WorldArgs())).prompt_hash}


@pytest.mark.parametrize(
    "scoring, calibration, queries", [("likelihood", "scene", 3), ("yes-no", "goal", 3 + 64)]
)
def test_scores_are_recorded_for_each_scene(tmp_path, model, scenes, scoring, calibration, queries):
    args = record.Args(
        llm="scripted",
        store=tmp_path / "new.sqlite",
        form="closed",
        scenes=scenes,
        closed_scoring=scoring,
        closed_calibration=calibration,
    )
    assert record.main(args) == {"queries": 9 + 7 * 134 + queries, "unanswered": 0}
    prompt_hash = Closed(make_world(WorldArgs()), scoring=scoring).prompt_hash
    recorded = {
        row.question: row.answer for row in contents(args.store)[0] if row.prompt == prompt_hash
    }
    assert set(SCENES) <= set(recorded) and len(recorded) == queries
    if scoring == "likelihood":
        assert recorded[SCENES[0]] == pack_scores(
            [-float(len(f" {caption}")) for caption in make_world(WorldArgs()).captions[1:]]
        )


def test_where_things_belong_is_recorded_for_those_of_a_file_too(tmp_path, model):
    things = tmp_path / "things.txt"
    things.write_text("ring\n  cup \n\nring\n", encoding="utf-8-sig")
    env = "tests.helpers.room:Room"
    args = record.Args(llm="scripted", store=tmp_path / "new.sqlite", env=env, form="pairs")
    # Four things in three ways, three words for any thing in two; then one more thing, for "cup" is
    # the world's.
    assert record.main(args) == {"queries": 4 * 3 + 3 * 2, "unanswered": 0}
    args = dataclasses.replace(args, things=things)
    assert record.main(args) == {"queries": 3, "unanswered": 0}
    answers, embedded = contents(args.store)
    asked = {"cup", "hat", "soap", "sock", "ring", *ANY_THING}
    assert {row.question for row in answers} == asked
    assert "pick up hat" in embedded
    yes_no = dataclasses.replace(args, pair_scoring="yes-no")
    assert record.main(yes_no) == {"queries": 5, "unanswered": 0}
    with pytest.raises(UserError, match="--things .*absent.txt cannot be read"):
        record.main(dataclasses.replace(args, things=tmp_path / "absent.txt"))


def test_things_of_another_table_are_recorded(tmp_path, model):
    path, store = tmp_path / "ranks.npz", tmp_path / "new.sqlite"
    save_rankings(path)
    args = record.Args(llm="scripted", store=store, env="housekeep", form="pairs", placements=path)
    world = make_world(WorldArgs("housekeep", placements=path))
    asked = {*world.things, *ANY_THING}
    assert record.main(args)["queries"] == len(set(world.things)) * 3 + len(ANY_THING) * 2
    assert {row.question for row in contents(store)[0]} == asked


def test_recordings_are_compared(tmp_path, model):
    old, new = (
        record.Args(llm="scripted", store=tmp_path / name) for name in ("old.sqlite", "new.sqlite")
    )
    record.main(old)
    compared = record.Args(llm="scripted", store=new.store, compare=old.store)
    assert record.main(compared) == {
        "queries": QUESTIONS,
        "unanswered": 0,
        "compared": QUESTIONS,
        "different": 0,
        "largest_difference": 0.0,
    }
    odds, model.odds = (
        model.odds,
        lambda prompt: odds(prompt) + 0.25 * ("attack cow. Makes sense" in last_line(prompt)),
    )
    report = record.main(
        record.Args(llm="scripted", store=tmp_path / "other.sqlite", compare=old.store)
    )
    assert report["different"] == 1 and report["largest_difference"] == pytest.approx(0.25)
    likelihood = model.likelihood
    model.likelihood = lambda prompt, candidate: (
        likelihood(prompt, candidate) - 1.5 * (prompt == "Minecraft guide. How to")
    )
    report = record.main(
        record.Args(llm="scripted", store=tmp_path / "third.sqlite", compare=old.store)
    )
    assert report["different"] == 2 and report["largest_difference"] == pytest.approx(1.5)
    model.name = "another@1"
    with pytest.raises(
        UserError, match="old.sqlite has none of these answers; it holds answers of scripted@0"
    ):
        record.main(
            record.Args(llm="scripted", store=tmp_path / "fourth.sqlite", compare=old.store)
        )


def test_files_that_are_not_there_are_named_before_a_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(
        record, "load_language_model", lambda *_, **__: pytest.fail("a model was loaded")
    )
    (tmp_path / "latin.txt").write_bytes(b"You see caf\xe9.")
    new = tmp_path / "new.sqlite"
    for form in ("open", "closed"):
        for scenes, message in (
            (None, f"--form {form} needs --scenes"),
            (tmp_path / "absent.txt", "absent.txt cannot be read"),
            (tmp_path, "cannot be read"),
            (tmp_path / "latin.txt", r"latin.txt cannot be read \(not UTF-8\)"),
        ):
            with pytest.raises(UserError, match=message):
                record.main(record.Args(llm="scripted", store=new, form=form, scenes=scenes))
    with pytest.raises(UserError, match="absent.sqlite does not exist"):
        record.main(record.Args(llm="scripted", store=new, compare=tmp_path / "absent.sqlite"))
    assert not new.exists()


def test_the_command_line_says_it_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        sys,
        "argv",
        ["record", "--llm", "x", "--store", str(tmp_path / "new.sqlite"), "--form", "open"],
    )
    with pytest.raises(SystemExit) as caught:
        run_cli(record.main, record.Args)
    assert caught.value.code == 2
    assert (
        capsys.readouterr().err
        == "error: --form open needs --scenes: a file with one scene's sentence a line\n"
    )


def test_the_toys_recording_is_what_its_script_writes(tmp_path):
    name = "toy_rules_toy-model.sqlite"
    toy_record.write(tmp_path / name)
    recorded, written = contents(ToyWorld.recorded / name), contents(tmp_path / name)
    assert recorded == written and set(recorded[1]) == {*ToyWorld.captions, *ToyWorld.facts}
    assert (ToyWorld.recorded / name).stat().st_size < 200_000


def test_a_world_of_ones_own_runs_on_its_recording(tmp_path):
    args = GoalArgs(llm="toy-model", store=str(tmp_path / "s.sqlite"), text_observation="facts")
    world = make_world(WorldArgs(env="tests.toy.world:ToyWorld"))
    service = GoalService(world, args)
    service.prepare()
    assert "recorded answers of toy-model, nobody is asked" in service.describe()
    assert service.usage.queries == 0 and service.store.count()["embeddings"] == 0
    sensible = np.flatnonzero(np.asarray(service.tables.sensible)).tolist()
    assert [service.goals[goal] for goal in sensible] == ["take key", "open door"]
    facts = {fact: 1 << index for index, fact in enumerate(world.facts)}
    needs, any_of = service.tables.needs[:3, 0], service.tables.any_of[:3, 0]
    assert needs.tolist() == [0, 0, facts["have key"]]
    assert any_of.tolist() == [0, facts["see key"], facts["see door"]]
    service.close()

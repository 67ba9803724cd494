"""What is asked, when, how often, and what becomes of it when a model is slow, silent or dies."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import goals.forms
import goals.service
import goals.sources
from goals.arguments import GoalArgs, TextArgs
from goals.asking import PATIENCE as QUESTIONS_IN_VAIN
from goals.background import FIRST_BATCH
from goals.rules import Rules, RulesForm
from goals.service import GoalService
from goals.store import Store
from goals.tables import is_known, suggest_by_rules, suggest_by_scene, unpack_bits
from lab.errors import UserError
from tests.helpers.table_model import (
    PATIENCE,
    PROMPT,
    DyingModel,
    SilentModel,
    SlowModel,
    TableModel,
)
from tests.toy.world import ToyWorld

SCENES = np.arange(1, 9, dtype=np.uint32)[:, None]


@dataclass(frozen=True)
class Elsewhere(ToyWorld):
    """The toy, with its recorded answers in a folder of the test's own."""

    recorded: Path = Path("nowhere")


@pytest.fixture
def make_service(monkeypatch, tmp_path):
    """Make services of the open form on the toy, all on one store, and close them at the end."""
    made = []

    def make(model, world=None, **options):
        prompt = tmp_path / "toy_open_v1.txt"
        prompt.write_text(PROMPT, encoding="utf-8")
        monkeypatch.setattr(goals.sources, "load_language_model", lambda spec, **kwargs: model)
        fields = {"goal_form": "open", "llm": "table", "prompt": str(prompt), "on_exit": "drain"}
        fields |= {"goal_conditioned": False, "text_observation": "none"}
        fields |= {"store": str(tmp_path / "store.sqlite")}
        args = GoalArgs(**{**fields, **options})
        service = GoalService(world or Elsewhere(), args)
        service.prepare()
        made.append(service)
        return service

    yield make
    for service in made:
        service.close()


def suggested(service, scenes):
    """Return the texts of the goals suggested in each scene, None where the scene is unknown."""
    packed, rows = suggest_by_scene(service.tables, service.prompt_mask, jnp.asarray(scenes))
    bits = np.asarray(unpack_bits(packed))
    return [
        {service.goals[goal] for goal in np.flatnonzero(line)} if row >= 0 else None
        for line, row in zip(bits, np.asarray(rows), strict=True)
    ]


def observe(service, scenes):
    """Let the service observe scenes [M, W], one env's steps in which nothing is done."""
    scenes = jnp.asarray(scenes)[:, None]
    nothing = jnp.zeros(scenes.shape[:2], jnp.int32)
    return service.observe(scenes, nothing, nothing > 0)


def wait(service):
    assert service.background.wait(PATIENCE)


def test_the_run_goes_on_while_a_slow_model_is_asked_and_each_scene_is_asked_once(make_service):
    model = SlowModel()
    service = make_service(model, resolve="async")
    assert not observe(service, np.repeat(SCENES[:4], 2, axis=0))
    assert model.asked.wait(PATIENCE) and suggested(service, SCENES[:4]) == [None] * 4
    assert not observe(
        service, SCENES[:6]
    )  # four of them are being asked already, two begin to wait
    assert service.queue_length == 6 and not model.prompts
    model.allowed.set()
    wait(service)
    assert observe(service, SCENES[:2]) and service.queue_length == 0
    assert suggested(service, SCENES[:1]) == [{"take key", "sing song"}]
    assert (
        None not in suggested(service, SCENES[:6])
        and len(model.prompts) == len(set(model.prompts)) == 6
    )
    assert (
        not observe(service, SCENES[:6])
        and service.usage.queries == 6
        and service.usage.prompt_tokens == 60
    )


def test_stored_answers_are_there_at_once_and_another_runs_answers_are_not_asked_again(
    make_service,
):
    make_service(TableModel()).know(SCENES[:3])
    model = SlowModel()
    service = make_service(model, resolve="async")
    assert observe(service, SCENES[:3]) and None not in suggested(service, SCENES[:3])
    observe(service, SCENES[3:5])
    assert model.asked.wait(PATIENCE)
    observe(
        service, SCENES[5:]
    )  # waits behind the batch that is asked; meanwhile another run asks the same
    make_service(TableModel()).know(SCENES[5:])
    model.allowed.set()
    wait(service)
    assert observe(service, SCENES) and None not in suggested(service, SCENES)
    assert len(model.prompts) == 2 == service.usage.queries and service.usage.store_hits == 6


def test_each_batch_is_one_transaction(make_service, monkeypatch):
    service, written, put = make_service(TableModel(), resolve="async"), [], Store.put_answers
    monkeypatch.setattr(
        Store, "put_answers", lambda self, *key: (written.append(len(key[-1])), put(self, *key))
    )
    observe(service, np.arange(1, 1 + FIRST_BATCH, dtype=np.uint32)[:, None])
    wait(service)
    assert written == [FIRST_BATCH]


def test_recorded_answers_need_no_thread(make_service, tmp_path):
    make_service(TableModel(), store=str(tmp_path / "recorded.sqlite")).know(SCENES)
    options = {"llm": str(tmp_path / "recorded.sqlite"), "resolve": "async"}
    service = make_service(None, **options)
    assert observe(service, SCENES) and None not in suggested(service, SCENES)
    service.finish()
    with pytest.raises(UserError, match="no stored answer of table for 8 question"):
        observe(service, SCENES + 32)
    lenient = make_service(None, on_missing="no-goals", **options)
    assert observe(lenient, SCENES + 32) and suggested(lenient, SCENES + 32)[0] == set()


def test_what_waits_is_in_the_checkpoint_with_its_visits(make_service):
    model = SlowModel()
    service = make_service(model, resolve="async")
    observe(service, np.repeat(SCENES[:3], 2, axis=0))
    assert model.asked.wait(PATIENCE)
    observe(service, SCENES[2:6])
    state = json.loads(json.dumps(service.state()))
    assert state["queue"] == {scene.tobytes().hex(): 2 if scene < 4 else 1 for scene in SCENES[:6]}
    model.allowed.set()
    wait(service)
    again = TableModel()
    resumed = make_service(again, resolve="async")
    resumed.restore(state | {"queue": state["queue"] | {SCENES[7].tobytes().hex(): 3}})
    assert resumed.queue_length == 7
    resumed.finish()
    assert None not in suggested(resumed, [*SCENES[:6], SCENES[7]])
    assert len(again.prompts) == 1  # what was answered since the checkpoint was in the store
    observe(service, SCENES[:1])
    done = json.loads(json.dumps(service.state()))
    resumed = make_service(again, resolve="async")
    resumed.restore(done)
    assert (
        suggested(resumed, SCENES[:6]) == suggested(service, SCENES[:6])
        and resumed.goals == service.goals
    )
    assert resumed.usage == service.usage and not done["queue"]


def test_a_question_without_an_answer_is_not_asked_again(make_service):
    model = SilentModel()
    service = make_service(model)
    spoken, silent = np.asarray([[0b1000001], [0b0100001]], np.uint32)  # one stands at 3 or at 2
    for _ in range(3):
        service.know(np.stack([silent, spoken]))
    assert suggested(service, np.stack([silent, spoken])) == [set(), {"take key", "sing song"}]
    assert (
        len(model.prompts) == 2 == service.usage.queries
        and service.usage.unanswered == 1
        and service.usage.unparsed == 0
    )
    assert service.tables.answered.sum() == 1 and service.store.count()["answers"] == 1
    resumed = make_service(TableModel())
    resumed.restore(json.loads(json.dumps(service.state())))
    resumed.know(silent[None])
    assert suggested(resumed, silent[None]) == [set()] and resumed.usage == service.usage


def test_in_the_background_it_is_asked_once_more(make_service):
    model = SilentModel()
    service = make_service(model, resolve="async")
    scene = np.asarray([[0b0100001]], np.uint32)
    for asked in (1, 2, 2):
        observe(service, scene)
        wait(service)
        observe(service, scene[:0])
        assert len(model.prompts) == asked == service.usage.unanswered
    assert suggested(service, scene) == [set()] and not service.tables.answered.any()


class Mumbling(TableModel):
    """Says nothing of use about scenes in which one stands at 2, and else what suits."""

    says = "\n\nHm, hm."

    def answer(self, scene):
        return self.says if "stand at 2" in scene else super().answer(scene)


def test_an_answer_of_no_use_is_none_in_this_run_and_asked_for_again_in_the_next(make_service):
    scenes = np.asarray([[0b1000001], [0b0100001]], np.uint32)  # one stands at 3 or at 2
    service = make_service(Mumbling())
    for _ in range(2):
        service.know(scenes)
    assert service.usage.queries == 2 and service.usage.unparsed == 1
    assert service.tables.answered.sum() == 1 and service.store.count()["answers"] == 2
    again = Mumbling()
    resumed = make_service(again)
    resumed.restore(json.loads(json.dumps(service.state())))
    resumed.know(scenes)
    assert not again.prompts and resumed.usage == service.usage
    assert suggested(resumed, scenes) == suggested(service, scenes)
    well = TableModel()
    healed = make_service(well)
    healed.know(scenes)
    assert len(well.prompts) == 1 and None not in suggested(healed, scenes)
    assert healed.tables.answered.sum() == 2 and healed.usage.unparsed == 0


def test_a_server_is_asked_about_a_scene_before_the_run_and_no_run_is_made_in_vain(make_service):
    model = TableModel()
    for _ in range(2):
        service = make_service(model, llm_url="http://there")
        assert len(model.prompts) == 1 and service.store.count()["answers"] == 1
    assert not make_service(TableModel(), llm_url="http://there", llm_budget=1).usage.queries
    model = Mumbling()
    model.name, model.answer = "mumbling", lambda scene: model.says
    with pytest.raises(UserError, match="mumbling has no usable answer to a scene .it says '"):
        make_service(model, llm_url="http://there")
    model.name, model.answer, model.trouble = "silent", lambda scene: None, "HTTP 400: no"
    with pytest.raises(UserError, match="silent has no usable answer to a scene .HTTP 400: no"):
        make_service(model, llm_url="http://there")
    assert len(model.prompts) == 2 * goals.service.REHEARSALS


@pytest.mark.parametrize("says", ["", "<think>Okay", None])
def test_in_the_background_too_a_model_that_answers_nothing_at_first_ends_the_run(
    make_service, says
):
    model = TableModel()
    model.answer = lambda scene: says
    service = make_service(model, resolve="async")
    observe(service, np.arange(1, 101, dtype=np.uint32)[:, None])
    wait(service)
    assert "table has no usable answer to any of" in str(service.failure)
    assert QUESTIONS_IN_VAIN <= len(model.prompts) < 100 and "\n" not in str(service.failure)


def test_budget_is_the_most_that_is_asked_before_and_after_a_checkpoint(make_service):
    model = TableModel()
    service = make_service(model, llm_budget=3)
    service.know(SCENES[:2])
    resumed = make_service(model, llm_budget=3)
    resumed.restore(service.state())
    resumed.know(SCENES)
    assert len(model.prompts) == 3 == resumed.usage.queries and resumed.usage.unanswered == 5
    assert suggested(resumed, SCENES).count(set()) == 5
    later = make_service(model, llm_budget=5, resolve="async")
    later.restore(resumed.state())
    observe(later, SCENES + 16)
    later.finish()
    assert len(model.prompts) == 5 and later.queue_length == 6


def test_drain_asks_all_that_waits_and_shows_it_and_discard_ends_after_the_batch(
    make_service, monkeypatch
):
    monkeypatch.setattr(goals.service, "PROGRESS_SECONDS", 0.01)
    model, shown = SlowModel(), []
    service = make_service(model, resolve="async")
    observe(service, np.arange(1, 31, dtype=np.uint32)[:, None])
    assert model.asked.wait(PATIENCE)
    service.on_progress = lambda waiting: (shown.append(waiting), model.allowed.set())
    service.finish()
    assert (
        shown[0] == 30
        and sorted(shown, reverse=True) == shown
        and len(model.prompts) == 30 == service.num_scenes
    )
    assert service.tables.answered.sum() == 30
    model = SlowModel()
    service = make_service(model, resolve="async", on_exit="discard")
    observe(service, np.arange(31, 61, dtype=np.uint32)[:, None])
    assert model.asked.wait(PATIENCE)
    service.finish()
    model.allowed.set()
    service.background.join()
    assert len(model.prompts) == FIRST_BATCH and not service.background.is_alive


def test_a_model_that_dies_while_draining_is_an_error(make_service):
    service = make_service(DyingModel(), resolve="async")
    observe(service, np.arange(1, 31, dtype=np.uint32)[:, None])
    with pytest.raises(UserError, match="background ended .the server is gone."):
        service.finish()
    assert service.num_scenes == FIRST_BATCH


def test_recorded_stores_are_found_by_world_form_and_model(make_service, tmp_path):
    for name in ("small", "gemma-3-270m-q4_k_m"):
        recorded = tmp_path / f"toy_open_{name}.sqlite"
        make_service(TableModel(), store=str(recorded)).know(SCENES)
    world = Elsewhere(recorded=tmp_path)
    small = make_service(None, world, llm="small")
    assert small.describe() == "goals from recorded answers of table, nobody is asked (form: open)"
    live = make_service(TableModel(), world, llm="gemma3-270m")
    live.know(SCENES)
    assert "live answers of table" in live.describe() and live.usage.queries == 0
    there = make_service(TableModel(), world, llm="small", llm_url="http://there")
    assert "live answers of table" in there.describe()
    replayed = make_service(None, world, llm="gemma3-270m", resolve="replay")
    replayed.know(SCENES)
    assert replayed.language_model == "table" and None not in suggested(replayed, SCENES)
    message = "no recorded 'rules' answers of small: recorded are open; or give a live --llm"
    with pytest.raises(UserError, match=message):
        make_service(None, world, llm="small", goal_form="rules", prompt=None)


def test_no_world_is_served_the_answers_about_another(tmp_path):
    """The default model is recorded for crafter, and cannot be asked about the toy."""
    args = GoalArgs(store=str(tmp_path / "store.sqlite"))
    message = "^no recorded answers of qwen2.5-coder-1.5b for the world toy: give a live --llm"
    for form in ("rules", "open", "closed"):
        with pytest.raises(UserError, match=message):
            GoalService(ToyWorld(), dataclasses.replace(args, goal_form=form))
    with pytest.raises(UserError, match="no stored answer of qwen2.5-coder-1.5b"):
        GoalService(ToyWorld(), dataclasses.replace(args, resolve="replay")).prepare()


def test_replay_finds_the_stored_answers_of_a_model_file(make_service):
    model = TableModel()
    model.name = "model.gguf@0123,transformers,float32"
    make_service(model).know(SCENES)
    replayed = make_service(None, llm="some/folder/Model.gguf", resolve="replay")
    replayed.know(SCENES)
    assert (
        replayed.language_model == model.name
        and "stored answers of model.gguf" in replayed.describe()
    )


class FirstLetters:
    """A closed form as plain as can be: an answer names the captions, by their first letters."""

    prompts, prompt_hash, parameters = {"closed": "0123"}, "0123", {"form": "letters"}

    def __init__(self, world, *options, **more):
        self.world, self.prepared = world, None

    def prepare(self, answers):
        self.prepared = answers(self.prompt_hash, self.parameters, ["calibration"], self.ask)

    def ask(self, model, questions):
        model.prompts.extend(questions)
        return [
            None if "stand at 2" in question else "tk" if "see key" in question else "o"
            for question in questions
        ]

    def goals(self, raw):
        return tuple(caption for caption in self.world.captions if caption[0] in raw)


def test_forms_are_of_one_shape(make_service, monkeypatch):
    monkeypatch.setattr(goals.forms, "Closed", FirstLetters)
    model = TableModel()
    service = make_service(model, goal_form="closed")
    assert (
        model.prompts == ["calibration"]
        and service.form.prepared == {"calibration": "o"}
        and service.num_goals == 32
    )
    service.know(SCENES[:2])
    assert suggested(service, SCENES[:2]) == [{"take key", "kick wall"}, {"open door"}]
    in_background = make_service(model, goal_form="closed", resolve="async")
    assert observe(in_background, SCENES[:3]) and model.prompts.count("calibration") == 1
    in_background.finish()
    assert (
        suggested(in_background, SCENES[:3])[2] == {"take key", "kick wall"}
        and len(model.prompts) == 4
    )


# Evidence


@pytest.fixture
def needy(monkeypatch, tmp_path):
    """Return a function that makes a service whose goals need what they should not."""
    world = ToyWorld()
    needs = np.zeros((4, len(world.facts)), bool)
    pairs = (("take key", "see door"), ("kick wall", "have key"), ("open door", "have key"))
    for goal, fact in pairs:
        needs[world.captions.index(goal), world.facts.index(fact)] = True
    alternatives = np.zeros((4, 1, len(world.facts)), bool)
    alternatives[2, 0, 3:5] = True  # a door is opened where one stands at 0 or 1
    rules = Rules(np.asarray([False, True, True, True]), needs, alternatives)
    margins = np.zeros((4, len(world.facts)))

    def prepare(form, answers):
        form.rules, form.margins = rules, margins

    monkeypatch.setattr(RulesForm, "prepare", prepare)
    monkeypatch.setattr(goals.sources, "load_language_model", lambda *_, **__: TableModel())

    def make(**options):
        args = GoalArgs(llm="table", store=str(tmp_path / "store.sqlite"), **options)
        service = GoalService(world, args)
        service.prepare()
        return service

    return make


def test_needs_that_play_refutes_are_dropped_from_the_next_rollout_on(needy):
    service = needy(evidence=True, doubt=0.0)
    before = service.tables
    assert service.metrics() == {"scenes": 0, "rules_corrected": 0, "corrections": []}
    # Twenty take a key where no door is seen, as many stand about.
    scenes = [[[0b0001001]] * 40, [[0b0001010]] * 20 + [[0b0001001]] * 20]
    scenes, captions = jnp.asarray(scenes, jnp.uint32), jnp.asarray([[1, 0], [0, 0]]).repeat(20, 1)
    done = jnp.zeros((2, 40), bool)
    assert not service.observe(scenes, captions, done.at[0].set(True)), "the scene after is another"
    assert service.observe(scenes, captions, done)
    assert service.tables.needs[:4, 0].tolist() == [0, 0, 0b10, 0b10]
    assert service.tables.alternatives.shape == before.alternatives.shape
    line = service.metrics()
    assert line["rules_corrected"] == 1
    assert line["corrections"] == ["take key: needs see door no longer: 20 successes without it"]
    assert "now: needs nothing" in service.rules_report()
    assert not service.observe(scenes, captions, done), "nothing more is refuted"
    assert service.metrics()["corrections"] == []
    resumed = needy(evidence=True, doubt=0.0)
    resumed.restore(json.loads(json.dumps(service.state())))
    np.testing.assert_array_equal(resumed.tables.needs, service.tables.needs)
    assert resumed.metrics() == service.metrics()
    assert resumed.rules_report() == service.rules_report()


def test_the_twin_without_a_model_learns_rules_from_nothing(tmp_path):
    args = GoalArgs(goal_source="grounded", evidence=True, store=str(tmp_path / "store.sqlite"))
    service = GoalService(ToyWorld(), args)
    service.prepare()
    plain = GoalService(ToyWorld(), dataclasses.replace(args, evidence=False))
    plain.prepare()
    everything = jnp.arange(128, dtype=jnp.uint32)[:, None]
    told, same = (suggest_by_rules(each.tables, everything) for each in (service, plain))
    assert (told == same).all()
    scenes = [[[0b0001001]] * 400, [[0b0001001]] * 400]
    scenes, kicks = jnp.asarray(scenes, jnp.uint32), jnp.full((2, 400), 3)
    assert service.observe(scenes, kicks, kicks < 0)
    (said,) = service.metrics()["corrections"]
    assert said == "kick wall: makes no sense so far: 400 attempts changed nothing"
    with_key = 1 << ToyWorld.facts.index("have key")
    assert service.tables.sensible[3] and service.tables.alternatives[3, -1].tolist() == [with_key]
    for each in (service, plain):
        each.close()


def test_doubt_lets_needs_come_and_go(needy):
    service = needy(evidence=True, doubt=0.5)
    before = service.tables.needs[:4, 0].tolist()
    scenes, none = jnp.zeros((2, 1, 1), jnp.uint32), jnp.zeros((2, 1), jnp.int32)
    known = set()
    for _ in range(20):
        assert not service.observe(scenes, none, none > 0)
        known.add(tuple(service.tables.needs[:4, 0].tolist()))
        assert service.evaluation_tables.needs[:4, 0].tolist() == before, "doubt is for training"
    assert len(known) > 4
    old = service.state() | {"evidence": None}
    with pytest.raises(UserError, match="^the run is of an older version of --evidence"):
        service.restore(old)


def test_without_evidence_needs_stay(needy):
    service = needy()
    once = jnp.ones((1, 1), jnp.int32)
    assert not service.observe(jnp.zeros((1, 1, 1), jnp.uint32), once, once < 0)
    assert service.tables.needs[1].any() and service.metrics() == {"scenes": 0}
    assert service.state()["evidence"] is None
    assert service.rules_report().startswith("take key: needs see door\n")


def test_a_world_that_tells_no_changes_has_no_evidence(needy, monkeypatch):
    monkeypatch.delattr(ToyWorld, "changing")
    with pytest.raises(UserError, match="world toy does not tell what actions change: leave --evi"):
        needy(evidence=True)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"evidence": True, "goal_source": "oracle"}, "^--evidence corrects rules: give --goal-"),
        ({"evidence": True, "goal_form": "open"}, "^--evidence corrects rules: give --goal-source"),
        ({"llm_budget": -1}, "^--llm-budget -1 is negative"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        GoalService(ToyWorld(), GoalArgs(**options))


# Without goals


def test_a_run_without_goals_may_read_the_scene_in_words(tmp_path):
    args = TextArgs(text_observation="caption", store=str(tmp_path / "store.sqlite"))
    service = GoalService(ToyWorld(), args)
    service.prepare()
    assert service.holds_up and service.source == "none" and service.language_model is None
    scenes = jnp.asarray(SCENES)
    assert not is_known(args, service.world, service.tables, scenes).any()
    service.know(SCENES)
    assert is_known(args, service.world, service.tables, scenes).all()
    assert service.metrics() == {"scenes": 8} and service.embedding_size == 384
    assert service.tables.embeddings.shape == (32, 0) and service.goals == list(ToyWorld.captions)
    assert not service.observe(
        scenes[:, None], jnp.zeros((8, 1), jnp.int32), jnp.zeros((8, 1), bool)
    )
    resumed = GoalService(ToyWorld(), args)
    resumed.prepare()
    resumed.restore(json.loads(json.dumps(service.state())))
    assert is_known(args, service.world, resumed.tables, scenes).all()

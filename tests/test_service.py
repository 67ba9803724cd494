"""What is asked, when, how often, and what becomes of it when a model is slow, silent or dies."""

import dataclasses
import json
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import ellm_ppo
import goals.service
from goals.asking import Usage
from goals.background import FIRST_BATCH, LARGEST_BATCH, Background
from goals.service import GoalService
from goals.store import Store
from goals.tables import suggest_by_scene
from lab.errors import UserError
from tests.toy_world import ToyWorld
from tests.training import PROMPT, TableModel, train

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 30  # seconds; nothing here takes long unless it is broken
SCENES = np.arange(1, 9, dtype=np.uint32)[:, None]


class SlowModel(TableModel):
    """Answers only while `allowed` is set, and tells by `asked` that it was asked."""

    def __init__(self):
        super().__init__()
        self.asked, self.allowed = threading.Event(), threading.Event()

    def generate(self, prompts, **options):
        self.asked.set()
        assert self.allowed.wait(PATIENCE)
        return super().generate(prompts, **options)


class SilentModel(TableModel):
    """Has no answer where one could stand at 2."""

    def answer(self, scene):
        return None if "stand at 2" in scene else super().answer(scene)


class DyingModel(TableModel):
    """Answers one batch, then fails in its own way."""

    def generate(self, prompts, **options):
        if self.prompts:
            raise ConnectionError("the server\nis gone")
        return super().generate(prompts, **options)


# The queue and its thread


def collect_batches(batches, usage=Usage(), fails=()):  # noqa: B008, Usage is frozen
    """Return what a Background is given: it notes batches and answers each scene by its own text."""

    @contextmanager
    def open_asker():
        def answer(scenes):
            batches.append(scenes)
            if set(scenes) & set(fails):
                raise ValueError("no such scene")
            return {scene: scene.decode() for scene in scenes}, dataclasses.replace(usage, queries=len(scenes))

        yield answer

    return open_asker


def test_most_visited_scenes_come_first_and_a_full_queue_drops_the_least_visited():
    batches = []
    background = Background(collect_batches(batches), capacity=20)
    names = [b"%02d" % number for number in range(25)]
    assert background.add({name: int(name) for name in names[:20]}) == 0
    assert background.add({b"00": 50, b"03": 1}) == 0  # visits add up
    assert background.add({name: int(name) for name in names[20:]}) == 5 and len(background) == 20
    assert background.visits().keys() == {b"00", *names[6:]}
    background.start(budget=100)
    assert background.wait(PATIENCE)
    assert [len(batch) for batch in batches] == [FIRST_BATCH, 12]
    assert [name for batch in batches for name in batch] == [b"00", *reversed(names[6:])]
    answers, usage = background.take()
    assert answers == {name: name.decode() for name in [b"00", *names[6:]]} and usage.queries == 20
    assert background.take() == ({}, Usage()) and not background.visits()
    background.stop()
    background.join()
    assert not background._thread.is_alive()


def test_budget_is_kept_and_what_it_does_not_allow_stays_in_the_queue():
    batches = []
    background = Background(collect_batches(batches))
    background.add({b"%02d" % number: 1 for number in range(30)})
    background.start(budget=11)
    assert background.wait(PATIENCE) and len(background.take()[0]) == 11 and len(background) == 19
    assert [len(batch) for batch in batches] == [FIRST_BATCH, 11 - FIRST_BATCH]
    background.stop()


def test_batches_grow_while_answers_are_quick():
    batches = []
    background = Background(collect_batches(batches))
    background.add({b"%04d" % number: 1 for number in range(1000)})
    background.start(budget=float("inf"))
    assert background.wait(PATIENCE)
    assert [len(batch) for batch in batches] == [FIRST_BATCH, *[LARGEST_BATCH] * 3, 1000 - FIRST_BATCH - 3 * LARGEST_BATCH]
    background.stop()


def test_a_failure_ends_the_thread_in_one_line_and_loses_nothing():
    background = Background(collect_batches([], fails=[b"20"]))
    visits = {b"%02d" % number: 30 - number for number in range(30)}
    background.add(visits)
    background.start(budget=100)
    assert background.wait(PATIENCE)
    background.join()
    assert str(background.failure) == "asking in the background ended (no such scene)"
    assert isinstance(background.failure.__cause__, ValueError) and not background._thread.is_alive()
    answers, _ = background.take()
    assert len(answers) == FIRST_BATCH
    assert background.visits() == {scene: count for scene, count in visits.items() if scene not in answers}


# The service


@pytest.fixture
def make_service(monkeypatch, tmp_path):
    """Make services of the open form on the toy, all on one store, and close them at the end."""
    made = []

    def make(model, **options):
        prompt = tmp_path / "toy_open_v1.txt"
        prompt.write_text(PROMPT, encoding="utf-8")
        monkeypatch.setattr(goals.service, "load_language_model", lambda spec, **kwargs: model)
        fields = {"source": "llm", "form": "open", "llm": "table", "prompt": prompt, "store": tmp_path / "store.sqlite"}
        service = GoalService(ToyWorld(), **{**fields, **options})
        service.prepare()
        made.append(service)
        return service

    yield make
    for service in made:
        service.close()


def suggested(service, scenes):
    """Return the texts of the goals suggested in each scene, None where the scene is unknown."""
    packed, rows = suggest_by_scene(service.tables, service.prompt_mask, jnp.asarray(scenes))
    bits = np.asarray(ellm_ppo.unpack_bits(packed))
    return [
        {service.goals[goal] for goal in np.flatnonzero(line)} if row >= 0 else None
        for line, row in zip(bits, np.asarray(rows), strict=True)
    ]


def wait(service):
    assert service._background.wait(PATIENCE)


def test_the_run_goes_on_while_a_slow_model_is_asked_and_each_scene_is_asked_once(make_service):
    model = SlowModel()
    service = make_service(model, resolve_mode="async")
    assert not service.exchange(np.repeat(SCENES[:4], 2, axis=0))
    assert model.asked.wait(PATIENCE) and suggested(service, SCENES[:4]) == [None] * 4
    assert not service.exchange(SCENES[:6])  # four of them are being asked already, two begin to wait
    assert service.queue_length == 6 and not model.prompts
    model.allowed.set()
    wait(service)
    assert service.exchange(SCENES[:2]) and service.queue_length == 0
    assert suggested(service, SCENES[:1]) == [{"take key", "sing song"}]
    assert None not in suggested(service, SCENES[:6]) and len(model.prompts) == len(set(model.prompts)) == 6
    assert not service.exchange(SCENES[:6]) and service.usage.queries == 6 and service.usage.prompt_tokens == 60


def test_stored_answers_are_there_at_once_and_another_runs_answers_are_not_asked_again(make_service):
    make_service(TableModel()).resolve(SCENES[:3])
    model = SlowModel()
    service = make_service(model, resolve_mode="async")
    assert service.exchange(SCENES[:3]) and None not in suggested(service, SCENES[:3])
    service.exchange(SCENES[3:5])
    assert model.asked.wait(PATIENCE)
    service.exchange(SCENES[5:])  # waits behind the batch that is asked; meanwhile another run asks the same
    make_service(TableModel()).resolve(SCENES[5:])
    model.allowed.set()
    wait(service)
    assert service.exchange(SCENES) and None not in suggested(service, SCENES)
    assert len(model.prompts) == 2 == service.usage.queries and service.usage.store_hits == 6


def test_each_batch_is_one_transaction(make_service, monkeypatch):
    service, written, put = make_service(TableModel(), resolve_mode="async"), [], Store.put_answers
    monkeypatch.setattr(Store, "put_answers", lambda self, *key: (written.append(len(key[-1])), put(self, *key)))
    service.exchange(np.arange(1, 1 + FIRST_BATCH, dtype=np.uint32)[:, None])
    wait(service)
    assert written == [FIRST_BATCH]


def test_recorded_answers_need_no_thread(make_service, tmp_path):
    make_service(TableModel(), store=tmp_path / "recorded.sqlite").resolve(SCENES)
    options = {"llm": str(tmp_path / "recorded.sqlite"), "resolve_mode": "async"}
    service = make_service(None, **options)
    assert service.exchange(SCENES) and None not in suggested(service, SCENES)
    service.finish(drain=True)
    with pytest.raises(UserError, match="no stored answer of table for 8 question"):
        service.exchange(SCENES + 32)
    lenient = make_service(None, on_missing="no-goals", **options)
    assert lenient.exchange(SCENES + 32) and suggested(lenient, SCENES + 32)[0] == set()


def test_what_waits_is_in_the_checkpoint_with_its_visits(make_service):
    model = SlowModel()
    service = make_service(model, resolve_mode="async")
    service.exchange(np.repeat(SCENES[:3], 2, axis=0))
    assert model.asked.wait(PATIENCE)
    service.exchange(SCENES[2:6])
    state = json.loads(json.dumps(service.state()))
    assert state["queue"] == {scene.tobytes().hex(): 2 if scene < 4 else 1 for scene in SCENES[:6]}
    model.allowed.set()
    wait(service)
    again = TableModel()
    resumed = make_service(again, resolve_mode="async")
    resumed.restore(state | {"queue": state["queue"] | {SCENES[7].tobytes().hex(): 3}})
    assert None not in suggested(resumed, SCENES[:6]) and resumed.queue_length == 1  # answered since the checkpoint
    resumed.finish(drain=True)
    assert None not in suggested(resumed, SCENES[7:]) and len(again.prompts) == 1
    service.exchange(SCENES[:1])
    done = json.loads(json.dumps(service.state()))
    resumed = make_service(again, resolve_mode="async")
    resumed.restore(done)
    assert suggested(resumed, SCENES[:6]) == suggested(service, SCENES[:6]) and resumed.goals == service.goals
    assert resumed.usage == service.usage and not done["queue"]


def test_a_question_without_an_answer_is_not_asked_again(make_service):
    model = SilentModel()
    service = make_service(model)
    spoken, silent = np.asarray([[0b1000001], [0b0100001]], np.uint32)  # one stands at 3 or at 2
    for _ in range(3):
        service.resolve(np.stack([silent, spoken]))
    assert suggested(service, np.stack([silent, spoken])) == [set(), {"take key", "sing song"}]
    assert len(model.prompts) == 2 == service.usage.queries and service.usage.unanswered == 1 and service.usage.unparsed == 0
    assert service.tables.answered.sum() == 1 and service.store.count()["answers"] == 1
    resumed = make_service(TableModel())
    resumed.restore(json.loads(json.dumps(service.state())))
    resumed.resolve(silent[None])
    assert suggested(resumed, silent[None]) == [set()] and resumed.usage == service.usage


def test_in_the_background_it_is_asked_once_more(make_service):
    model = SilentModel()
    service = make_service(model, resolve_mode="async")
    scene = np.asarray([[0b0100001]], np.uint32)
    for asked in (1, 2, 2):
        service.exchange(scene)
        wait(service)
        service.exchange(scene[:0])
        assert len(model.prompts) == asked == service.usage.unanswered
    assert suggested(service, scene) == [set()] and not service.tables.answered.any()


def test_budget_is_the_most_that_is_asked_before_and_after_a_checkpoint(make_service):
    model = TableModel()
    service = make_service(model, budget=3)
    service.resolve(SCENES[:2])
    resumed = make_service(model, budget=3)
    resumed.restore(service.state())
    resumed.resolve(SCENES)
    assert len(model.prompts) == 3 == resumed.usage.queries and resumed.usage.unanswered == 5
    assert suggested(resumed, SCENES).count(set()) == 5
    later = make_service(model, budget=5, resolve_mode="async")
    later.restore(resumed.state())
    later.exchange(SCENES + 16)
    later.finish(drain=True)
    assert len(model.prompts) == 5 and later.queue_length == 6


def test_drain_asks_all_that_waits_and_shows_it_and_discard_ends_after_the_batch(make_service, monkeypatch):
    monkeypatch.setattr(goals.service, "PROGRESS_SECONDS", 0.01)
    model, shown = SlowModel(), []
    service = make_service(model, resolve_mode="async")
    service.exchange(np.arange(1, 31, dtype=np.uint32)[:, None])
    assert model.asked.wait(PATIENCE)
    service.on_progress = lambda waiting: (shown.append(waiting), model.allowed.set())
    service.finish(drain=True)
    assert shown[0] == 30 and sorted(shown, reverse=True) == shown and len(model.prompts) == 30 == service.num_scenes
    assert service.tables.answered.sum() == 30
    model = SlowModel()
    service = make_service(model, resolve_mode="async")
    service.exchange(np.arange(31, 61, dtype=np.uint32)[:, None])
    assert model.asked.wait(PATIENCE)
    service.finish(drain=False)
    model.allowed.set()
    service._background.join()
    assert len(model.prompts) == FIRST_BATCH and not service._background._thread.is_alive()


def test_a_model_that_dies_while_draining_is_an_error(make_service):
    service = make_service(DyingModel(), resolve_mode="async")
    service.exchange(np.arange(1, 31, dtype=np.uint32)[:, None])
    with pytest.raises(UserError, match="background ended .the server is gone."):
        service.finish(drain=True)
    assert service.num_scenes == FIRST_BATCH


def test_recorded_stores_are_chosen_by_name_and_form(make_service, monkeypatch, tmp_path):
    recorded = tmp_path / "recorded.sqlite"
    make_service(TableModel(), store=recorded).resolve(SCENES)
    monkeypatch.setattr(goals.service, "RECORDED", {("small", "open"): recorded, ("gemma3-270m", "open"): recorded})
    assert make_service(None, llm="small").describe() == "goals from recorded answers of table, nobody is asked (form: open)"
    assert "live answers of table" in make_service(TableModel(), llm="gemma3-270m").describe()
    assert "live answers of table" in make_service(TableModel(), llm="small", url="http://there").describe()
    replayed = make_service(None, llm="gemma3-270m", resolve_mode="replay")
    replayed.resolve(SCENES)
    assert replayed.language_model == "table" and None not in suggested(replayed, SCENES)
    with pytest.raises(UserError, match="no recorded 'rules' answers of small: recorded are open; or give a live --llm"):
        make_service(None, llm="small", form="rules", prompt=ROOT / "prompts/crafter_rules")


def test_replay_finds_the_stored_answers_of_a_model_file(make_service):
    model = TableModel()
    model.name = "model.gguf@0123,transformers,float32"
    make_service(model).resolve(SCENES)
    replayed = make_service(None, llm="some/folder/Model.gguf", resolve_mode="replay")
    replayed.resolve(SCENES)
    assert replayed.language_model == model.name and "stored answers of model.gguf" in replayed.describe()


class FirstLetters:
    """A closed form as plain as can be: an answer names the captions, by their first letters."""

    prompts, prompt_hash, parameters = {"closed": "0123"}, "0123", {"form": "letters"}

    def __init__(self, world, *options):
        self.world, self.prepared = world, None

    def prepare(self, answers):
        self.prepared = answers(self.prompt_hash, self.parameters, ["calibration"], self.ask)

    def ask(self, model, questions):
        model.prompts.extend(questions)
        return [None if "stand at 2" in question else "tk" if "see key" in question else "o" for question in questions]

    def goals(self, raw):
        return tuple(caption for caption in self.world.captions if caption[0] in raw)


def test_forms_are_of_one_shape(make_service, monkeypatch):
    monkeypatch.setattr(goals.service, "Closed", FirstLetters)
    model = TableModel()
    service = make_service(model, form="closed")
    assert model.prompts == ["calibration"] and service._form.prepared == {"calibration": "o"} and service.num_goals == 32
    service.resolve(SCENES[:2])
    assert suggested(service, SCENES[:2]) == [{"take key", "kick wall"}, {"open door"}]
    in_background = make_service(model, form="closed", resolve_mode="async")
    assert in_background.exchange(SCENES[:3]) and model.prompts.count("calibration") == 1
    in_background.finish(drain=True)
    assert suggested(in_background, SCENES[:3])[2] == {"take key", "kick wall"} and len(model.prompts) == 4


# Whole runs


ASYNC = {"goal_form": "open", "resolve": "async", "total_timesteps": 4 * 8 * 8, "checkpoint_every": 100}


def wait_after(monkeypatch, model, *updates):
    """Let the model answer from the first of these updates on, and the run wait after each until all is answered."""
    services, exchange, log = [], GoalService.exchange, ellm_ppo.Run.log

    def note(self, scenes):
        services.append(self)
        return exchange(self, scenes)

    def log_and_wait(self, line):
        if line["update"] in updates:
            model.allowed.set()
            wait(services[-1])
        return log(self, line)

    monkeypatch.setattr(GoalService, "exchange", note)
    monkeypatch.setattr(ellm_ppo.Run, "log", log_and_wait)


@pytest.mark.parametrize("fields", [{}, {"goal_conditioned": True, "text_observation": "caption"}], ids=["blind", "reads"])
def test_async_run_gets_its_goals_later_and_learns_from_them(monkeypatch, tmp_path, fields):
    model = SlowModel()
    wait_after(monkeypatch, model, 3, 4, 5, 6, 7, 8)
    summary, _, lines = train(monkeypatch, ToyWorld(), tmp_path, "run", model, on_exit="drain", **ASYNC, **fields)
    assert [line["steps_without_answer"] for line in lines[:4]] == [1.0] * 4 and lines[0]["queue_length"] > 0
    assert lines[-1]["steps_without_answer"] == 0.0 == lines[-1]["queue_length"]
    assert lines[3]["reward_per_step"] == 0.0 < lines[4]["reward_per_step"]
    assert len(model.prompts) == len(set(model.prompts)) == summary["queries"] > 3
    assert summary["prompt_tokens"] == 10 * summary["queries"] and summary["language_model_seconds"] == summary["queries"] / 2
    assert summary["per_million_steps"]["generated_tokens"] == 3 * summary["queries"] * 1e6 / 256


def test_a_model_that_dies_stops_the_run_after_a_checkpoint_and_the_same_command_goes_on(monkeypatch, tmp_path):
    model = DyingModel()
    model.allowed = threading.Event()
    wait_after(monkeypatch, model, 1, 2, 3, 4, 5, 6, 7)
    with pytest.raises(UserError, match="background ended .the server is gone.; all is kept: go on with --run-dir .*run$") as error:
        train(monkeypatch, ToyWorld(), tmp_path, "run", model, **ASYNC)
    assert "\n" not in str(error.value)
    lines = ellm_ppo.read_metrics(tmp_path / "run")
    with ellm_ppo.Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() == len(lines) < 8
        assert checkpoints.host()["service"]["queue"]
    again = TableModel()
    again.allowed = threading.Event()
    summary, state, lines = train(monkeypatch, ToyWorld(), tmp_path, "run", again, **ASYNC)
    assert int(state.update) == 8 == len(lines) and not set(again.prompts) & set(model.prompts)
    assert summary["queries"] == len(again.prompts) + len(model.prompts)


INTERRUPTED = """
import signal, sys, threading
from pathlib import Path
import pytest
import goals.background
from lab.cli import run_cli
from tests.test_service import ASYNC, SlowModel
from tests.toy_world import ToyWorld
from tests.training import train

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so would its children
goals.background.CLOSE_SECONDS = 0.2
with pytest.MonkeyPatch.context() as patch:
    fields = ASYNC | {"total_timesteps": 10**9, "compilation_cache": True}
    train(patch, ToyWorld(), Path(sys.argv[1]), "run", SlowModel(), **fields)
"""


@pytest.mark.slow
def test_no_thread_keeps_an_interrupted_run_alive(tmp_path):
    """The model never answers; the run is interrupted in its loop."""
    process = subprocess.Popen([sys.executable, "-c", INTERRUPTED, str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    try:
        while not (metrics.exists() and metrics.read_bytes().count(b"\n") > 3):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGINT and errors.rstrip().endswith(
        "KeyboardInterrupt\n--run-dir " + str(tmp_path / "run")
    )

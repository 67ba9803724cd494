"""Models that think aloud, chat, or refuse fields: asked over HTTP on loopback."""

import math
import random

import pytest

from goals.asking import ATTEMPTS, PATIENCE, Asker
from goals.endpoint import PROBE, ROOMS, Endpoint
from goals.forms import is_answer
from goals.open_ended import OpenEnded, parse_goals
from goals.reasoning import begins_to_reason, is_unfinished, without_reasoning
from goals.store import Store
from lab.errors import UserError
from tests.helpers.misbehaving_server import (
    CHATTING,
    FAULTS,
    REASONING,
    ROUTES,
    WAYS,
    WORTHLESS,
    MisbehavingServer,
)
from tests.helpers.table_model import PROMPT
from tests.toy.world import ToyWorld

pytestmark = pytest.mark.endpoint

CHAT = ("models", "chat/completions")
COMPLETIONS = ("models", "completions")
MAX_TOKENS = 40  # words, for the server
GOALS = ("chop tree", "eat cow", "sleep")
SAID = " chop tree\n- eat cow\n- sleep"
SWITCHES = ("chat_template_kwargs", "reasoning_effort")
# What servers say to a field that they do not take.
REFUSALS = {
    "max_tokens": "Unsupported parameter: 'max_tokens' is not supported with this model. "
    "Use 'max_completion_tokens' instead.",
    "temperature": "Unsupported value: 'temperature' does not support 0.0 with this model. "
    "Only the default (1) value is supported.",
    "seed": "[{'type': 'extra_forbidden', 'loc': ('body', 'seed')}]",
    "stop": "`stop` is not supported",
}


pytestmark = pytest.mark.usefixtures("loopback")


@pytest.fixture
def serve():
    """Return a function that serves a way of answering, and an Endpoint that asks it."""
    opened = []

    def serve(way="", routes=CHAT, answer=SAID, options=None, **fields):
        server = MisbehavingServer(routes=routes, **fields)
        opened.append(server)
        server.way, server.answer = lambda prompt: way, lambda prompt: answer
        opened.append(Endpoint(server.url, "tiny", **{"timeout": 5.0} | (options or {})))
        return server, opened[-1]

    yield serve
    for one in reversed(opened):
        one.close()


@pytest.fixture
def form(tmp_path):
    path = tmp_path / "toy_open_v1.txt"
    path.write_text(PROMPT, encoding="utf-8")
    return OpenEnded(ToyWorld(), path, max_tokens=MAX_TOKENS)


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store.sqlite") as store:
        yield store


def ask_list(there):
    return there.generate(["a"], MAX_TOKENS, stop=["\n\n"])[0]


def ask(form, model, store, scenes):
    """Return an asker and its answers about scenes."""
    asker = Asker(model.name, store, model)
    return asker, asker.answers(form.prompt_hash, form.parameters, scenes, form.ask)


@pytest.mark.parametrize(
    "text, answer",
    [
        ("<think>hm</think>\n\n- a", "- a"),
        ("hm</think> - a", "- a"),
        ("<think>hm", ""),
        ("- a\n<think>hm", "- a\n"),
        ("<think>a</think>b<think>c</think>d", "d"),
        ("<|channel|>analysis<|message|>hm<|end|><|channel|>final<|message|>- a", "- a"),
        (" - a < b, [1] ", " - a < b, [1] "),
        ("", ""),
    ],
)
def test_reasoning_is_told_from_the_answer(text, answer):
    assert without_reasoning(text) == answer
    assert is_unfinished(text) == (text.count("<think>") > text.count("</think>"))
    assert begins_to_reason("<") and begins_to_reason(" <think>\nSo") and not begins_to_reason(" y")


# Lists


@pytest.mark.parametrize("way", [*REASONING, *CHATTING])
def test_a_chat_gives_its_list_however_it_says_it(serve, way):
    server, there = serve(way)
    assert parse_goals(ask_list(there)) == GOALS
    assert there.unanswered == 0 and there.name.endswith(",chat")
    assert all("stop" not in body for body in server.bodies)


@pytest.mark.parametrize("way", ["reasons in tags", "reasons in other tags"])
def test_a_continuation_gives_its_list_after_reasoning(serve, way):
    server, there = serve(way, routes=COMPLETIONS)
    assert parse_goals(ask_list(there)) == GOALS


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("way", REASONING)
def test_reasoning_is_switched_off_where_a_field_does_that(serve, way, switch):
    server, there = serve(way, routes=ROUTES, switch=switch)
    assert there.name == "tiny,endpoint,chat,quiet"
    before = there.requests
    assert ask_list(there) == SAID and there.requests == before + 1
    assert switch in server.bodies[-1] and server.bodies[-1]["max_tokens"] == MAX_TOKENS
    ((yes, no),) = there.yes_no(["a"])
    assert math.exp(yes) + math.exp(no) > 0.1


def test_a_switch_that_is_refused_is_said_once_and_the_next_one_tried(serve, capsys):
    refuses = {"chat_template_kwargs": "Unknown field: chat_template_kwargs"}
    server, there = serve("reasons in tags", switch="reasoning_effort", refuses=refuses)
    assert there.name.endswith(",quiet") and ask_list(there) == SAID
    said = capsys.readouterr().err
    assert said.count("chat_template_kwargs refused") == 1 and len(said.splitlines()) == 1


def test_a_model_that_does_not_reason_is_asked_as_before(serve):
    server, there = serve(routes=ROUTES)
    assert there.name == "tiny,endpoint" and list(server.prompts) == [PROBE]
    assert not set(SWITCHES) & set(server.bodies[0])


def test_a_list_that_is_cut_before_it_begins_is_asked_for_with_more_room(serve):
    server, there = serve("begins politely and long")
    assert parse_goals(ask_list(there)) == GOALS
    rooms = [body["max_tokens"] for body in server.bodies[2:]]
    assert rooms == [MAX_TOKENS * room for room in ROOMS]


def test_an_endless_reasoning_is_bounded_and_kept_as_evidence(serve):
    server, there = serve("never ends reasoning")
    before = there.requests
    text = ask_list(there)
    assert text.startswith("<think>Okay") and parse_goals(text) == ()
    assert there.requests - before <= len(ROOMS)


# Yes or no


@pytest.mark.parametrize("way", REASONING)
@pytest.mark.parametrize("routes", [COMPLETIONS, CHAT])
def test_no_evidence_is_no_answer(serve, way, routes):
    server, there = serve(routes=routes)
    server.way = lambda prompt: "" if "good" in prompt else way
    good, bad = there.yes_no(["good", "bad"])
    assert good is not None and bad is None and there.unanswered == 1
    assert "neither yes nor no but '<think>'" in there.trouble


@pytest.mark.parametrize("way", REASONING)
@pytest.mark.parametrize("routes", [COMPLETIONS, CHAT, ROUTES])
def test_a_model_that_must_reason_is_not_asked_yes_or_no(serve, way, routes):
    server, there = serve(way, routes=routes)
    before = there.requests
    with pytest.raises(UserError, match="reasoning switched off") as caught:
        there.yes_no(["a"])
    assert "\n" not in str(caught.value) and there.requests == before


# Fields that are refused


@pytest.mark.parametrize("routes", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("field", REFUSALS)
def test_a_field_that_is_refused_is_left_out_or_renamed_and_said_once(serve, capsys, field, routes):
    server, there = serve(routes=routes, refuses={field: REFUSALS[field]})
    for _ in range(3):
        assert parse_goals(ask_list(there)) == GOALS
        assert there.yes_no(["a"]) != [None]
    assert there.unanswered == 0 and field not in server.bodies[-1]
    assert ("max_completion_tokens" in server.bodies[-1]) == (field == "max_tokens")
    way = "messages" if routes == CHAT else "prompt"
    refused = sum(field in body for body in server.bodies if way in body)
    assert refused == (routes == COMPLETIONS or field != "stop")
    assert capsys.readouterr().err.count(f"{field} refused") == refused


def test_all_fields_refused_at_once_and_one_that_is_too_long(serve):
    server, there = serve(refuses=REFUSALS | {"max_completion_tokens": "max_completion_tokens?"})
    assert parse_goals(ask_list(there)) == GOALS
    assert server.bodies[-1].keys() == {"model", "messages"}
    server, there = serve()
    server.refuses = {"max_tokens": "max_tokens 40 exceeds the context of 8"}
    assert there.generate(["a"], MAX_TOKENS) == [None]
    server.refuses = {}
    assert parse_goals(ask_list(there)) == GOALS and "max_tokens" in server.bodies[-1]


# Worthless answers


@pytest.mark.parametrize("way", WORTHLESS)
def test_an_answer_of_no_use_is_kept_and_asked_for_again_until_it_is_one(
    serve, form, store, way, monkeypatch
):
    monkeypatch.setattr("goals.asking.PATIENCE", 10**6)
    scenes = [f"scene {i}" for i in range(46)]
    server, there = serve(way)
    for attempt in range(1, ATTEMPTS):
        asker, answers = ask(form, there, store, scenes)
        assert not any(map(parse_goals, answers.values()))
        assert asker.costs.queries == 46 and asker.costs.store_hits == 0
        assert asker.costs.unanswered == 46 - len(answers)
        assert store.count()["answers"] == 46 * attempt
    server.way = lambda prompt: ""
    asker, answers = ask(form, there, store, scenes)
    assert {parse_goals(raw) for raw in answers.values()} == {GOALS} and len(answers) == 46
    asker, again = ask(form, there, store, scenes)
    assert again == answers and asker.costs.queries == 0 and asker.costs.store_hits == 46


def test_asking_again_ends_until_the_answers_are_dropped(serve, form, store, monkeypatch, capsys):
    from goals import store_cli

    server, there = serve("says nothing")
    for queries in (*[3] * ATTEMPTS, 0, 0):
        asker, answers = ask(form, there, store, ["x", "y", "z"])
        assert asker.costs.queries == queries and asker.costs.unanswered == 3 and not answers
    server.way = lambda prompt: ""
    kept = {"w": SAID}
    store.put_answers(there.name, form.prompt_hash, '{"max_tokens": 40}', kept)
    command = ["store_cli", "prune", str(store.path), "--yes", "--drop-unusable", there.name]
    monkeypatch.setattr("sys.argv", command)
    store_cli.main()
    assert "goes: 9 answers" in capsys.readouterr().out and store.count()["answers"] == 1
    asker, answers = ask(form, there, store, ["x", "y", "z"])
    assert asker.costs.queries == 3 and {parse_goals(a) for a in answers.values()} == {GOALS}
    (source,) = (s for s in store.sources() if s[2] == '{"max_tokens": 40}')
    assert store.get_answers(*source, ["w"]) == kept


@pytest.mark.parametrize("way", [*WORTHLESS, "refuses the request"])
def test_a_run_whose_first_questions_all_fail_stops_and_says_why(serve, form, store, way):
    server, there = serve("" if way == "refuses the request" else way)
    if way == "refuses the request":
        server.fault = lambda prompt, attempt: "400"
    scenes = [f"scene {i}" for i in range(200)]
    with pytest.raises(UserError, match="no usable answer to any of") as caught:
        ask(form, there, store, scenes)
    text = str(caught.value)
    assert "\n" not in text and ("HTTP 400: scripted" in text or "it says '" in text)
    assert there.usage.queries <= 64 >= PATIENCE


def test_what_fails_again_stops_no_run_of_a_model_that_answers_else(serve, form, store):
    server, there = serve()
    server.way = lambda prompt: "says nothing" if "dark" in prompt else ""
    scenes = [f"scene {i}" for i in range(10)] + [f"dark scene {i}" for i in range(50)]
    for queries in (60, 50, 50, 0):
        asker, answers = ask(form, there, store, scenes)
        assert len(answers) == 10 and asker.costs.queries == queries
        assert asker.costs.unanswered == 50
    server.way = lambda prompt: "says nothing"
    with pytest.raises(UserError, match="any of 30 questions in a row"):
        ask(form, there, store, [f"new scene {i}" for i in range(30)])


def test_a_model_that_has_answered_stops_the_run_when_it_fails_for_long(serve, form, store):
    server, there = serve()
    asker, _ = ask(form, there, store, ["first"])
    server.way = lambda prompt: "says nothing"
    few, later = ([f"{kind} scene {i}" for i in range(20)] for kind in ("few", "later"))
    key = form.prompt_hash, form.parameters
    assert asker.answers(*key, few, form.ask) == {} and asker.costs.unanswered == 20
    server.way = lambda prompt: ""
    assert len(asker.answers(*key, ["between"], form.ask)) == 1
    server.way = lambda prompt: "says nothing"
    assert asker.answers(*key, [f"again {i}" for i in range(20)], form.ask) == {}
    with pytest.raises(UserError, match="no usable answer to any of 40 questions in a row"):
        asker.answers(*key, later, form.ask)
    assert asker.costs.queries == 62


@pytest.mark.parametrize(
    "parameters, good, bad",
    [
        ({"max_tokens": 9}, [" run", "no idea"], ["", "\n\nHm.", "<think>- run", "7"]),
        ({"max_tokens": 9, "votes": 2}, ["\n\n run"], ["\n\n"]),
        ({"form": "yes-no"}, ['{"yes": -1, "no": -2}'], ["", '{"yes": -27, "no": -27}', "[]"]),
        ({"form": "yes-no", "goals": "0"}, ["AAA="], ["", "no"]),
        ({"form": "likelihood", "goals": "0"}, ["AAA="], ["", "no"]),
        ({"form": "phrases", "goals": "0"}, ["", "AAA="], []),
    ],
)
def test_what_can_be_used(parameters, good, bad):
    assert all(is_answer(parameters, raw) for raw in good)
    assert not any(is_answer(parameters, raw) for raw in bad)


# The drill


def test_a_thousand_scenes_over_all_ways_are_answered_or_counted(serve, form, store):
    server, there = serve(options={"retries": 1, "timeout": 2.0})
    slow, unseen = ("hangs", "trickles", "429"), "logprobs"  # which a list does not have
    faults = [name for name in FAULTS if not name.startswith(slow) and unseen not in name]

    def drawn(prompt):
        scene = prompt.partition("Scene: ")[2].partition("\n")[0]
        draw = random.Random(scene)
        return draw.choice(faults if draw.random() < 0.2 else ["", *WAYS]) if scene else ""

    server.way = lambda prompt: drawn(prompt) if drawn(prompt) in WAYS else ""
    server.fault = lambda prompt, attempt: drawn(prompt) if drawn(prompt) in faults else ""
    server.answer = lambda prompt: SAID
    scenes = [f"scene {i}" for i in range(1000)]
    asker, answers = ask(form, there, store, scenes)
    used = {scene for scene, raw in answers.items() if is_answer(form.parameters, raw)}
    drew = {scene: drawn(f"Scene: {scene}\n") for scene in scenes}
    # Answered is what was said in one way or the other, with its goals and no others.
    assert used == {scene for scene, way in drew.items() if way not in {*faults, *WORTHLESS}}
    goals = [form.goals(answers[scene]) for scene in used]
    assert all(said == GOALS[: len(said)] for said in goals) and goals.count(GOALS) > 0.9 * len(
        used
    )
    # All else is counted: what says something as unparsed, by the service, the rest here.
    assert asker.costs.queries == 1000 == len(answers) + asker.costs.unanswered
    assert {drew[scene] for scene in answers.keys() - used} == {"refuses politely"}
    assert there.unanswered == sum(drew[scene] in faults for scene in scenes)
    # No scene is asked about twice once it has an answer, nor for ever.
    assert max(server.prompts[p] for p in server.prompts if p != PROBE) <= 2 * len(ROOMS)
    asker, again = ask(form, there, store, scenes)
    assert again == answers and asker.costs.store_hits == len(used)

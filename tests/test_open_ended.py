"""The open-ended form: what is asked, to the letter, and what is read from any answer."""

import hashlib
import re

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from goals.open_ended import MAX_GOAL_LENGTH, MAX_GOALS, OpenEnded, parse_goals
from goals.prompts import load_prompt
from goals.sentence_encoder import normalise_goal
from lab.errors import UserError
from worlds.crafter.words import FACTS
from worlds.crafter.world import Crafter
from worlds.housekeep.world import Housekeep
from worlds.world import PROMPTS

OPEN_PROMPTS = sorted(PROMPTS.glob("*_open_*.txt"))
CRAFTER_PROMPTS = sorted(PROMPTS.glob("crafter_open_v*.txt"))
SCENE = "You see cow, tree. You are facing cow. You have $wood."
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=200)
BULLETS = ["\n- ", "\n* the ", "\r\n• ", "\n 1. ", "2)", "-", "\n", "\n\n"]
PIECES = [
    *BULLETS,
    " ",
    "eat",
    "cow",
    "goal:",
    "\0",
    "\u2028",
    "\ud800",
    "x" * (MAX_GOAL_LENGTH + 1),
]
# Drawn as bytes: thousands of lists would take a minute.
LIST_LIKE = st.binary(max_size=25).map(
    lambda drawn: "".join(PIECES[byte % len(PIECES)] for byte in drawn)
)


def examples(path):
    """Return the examples of a prompt file as (scene, answer) pairs."""
    pairs = []
    for paragraph in path.read_text(encoding="utf-8").split("\n\n"):
        lines = paragraph.strip().split("\n")
        if len(lines) > 2 and "$scene" not in paragraph:
            pairs.append((lines[0][lines[0].index("You see") :], "\n".join(lines[2:])))
    return pairs


@pytest.fixture(scope="module")
def world():
    return Crafter()


@pytest.mark.parametrize("path", OPEN_PROMPTS, ids=lambda path: path.stem)
def test_the_parser_gives_back_what_the_examples_say(path):
    answers = re.findall(r"(?m)(?:^- .+\n)+", path.read_text(encoding="utf-8"))
    assert answers
    for answer in answers:
        said = tuple(normalise_goal(line) for line in answer.splitlines())
        assert parse_goals(answer) == said
        # As a model gives it: the first bullet is the prompt's, and after a blank line anything
        # goes.
        assert parse_goals(answer.removeprefix("-") + "\nYou see\n- lava") == said


@pytest.mark.parametrize("path", CRAFTER_PROMPTS, ids=lambda path: path.stem)
def test_examples_speak_as_the_world_does(path, world):
    assert len(examples(path)) >= 2
    for scene, answer in examples(path):
        assert {line.removeprefix("- ") for line in answer.split("\n")} <= set(world.captions)
        seen, *rest = re.split(r"\. ?(?:You are (facing)|You (have)|You (feel))? ?", scene)
        kinds = [kind for kind in rest if kind in ("facing", "have", "feel")]
        lists = [text for text in rest if text and text not in kinds]
        names = [f"see {name}" for name in seen.removeprefix("You see ").split(", ")]
        for kind, text in zip(kinds, lists, strict=True):
            names += [name if kind == "feel" else f"{kind} {name}" for name in text.split(", ")]
        words = [0] * world.num_scene_words
        for name in names:
            words[FACTS.index(name) // 32] |= 1 << FACTS.index(name) % 32
        assert world.describe(words) == scene


@pytest.mark.parametrize(
    "name, golden",
    [
        ("crafter_open_v1.txt", ("e5abb9b372b9baaf", "817b8104e0481bcf")),
        ("crafter_open_v2.txt", ("6fe37a476a071da9", "79ab34eddc8d3200")),
        ("crafter_open_v3.txt", ("82c625ccd8121896", "b451b06e61030323")),
        ("housekeep_open_v1.txt", ("1686bc38786195ca", "fbde15cc14b365ab")),
    ],
)
def test_golden_render(name, golden):
    template, prompt_hash = load_prompt(PROMPTS / name)
    rendered = template.substitute(scene=SCENE)
    assert re.search(f"\n\n{re.escape(SCENE)}\n.+:\n-$", rendered)
    # A published prompt never changes: stored answers belong to these very bytes.
    assert (prompt_hash, hashlib.sha256(rendered.encode()).hexdigest()[:16]) == golden


@pytest.mark.parametrize(
    "raw, expected",
    [
        (" eat cow\n- chop tree", ("eat cow", "chop tree")),
        ("- Eat the cow.\n- eat cow\n* Chop-tree!", ("eat cow", "chop tree")),
        ("1. eat cow\n2) chop tree\n10: sleep", ("eat cow", "chop tree", "sleep")),
        ("Here is what to do:\n\n• eat cow\n• sleep\n\nYou see:\n- lava", ("eat cow", "sleep")),
        ("-\n- \n- ...\n- 7\n- sleep", ("sleep",)),
        ("- eat cow\nYou see tree.\n- chop tree", ("eat cow",)),
        ("- eat\x07 cow\r\n- slee\u200bp\r\n", ("eat cow", "sleep")),
        (f"- {'x' * (MAX_GOAL_LENGTH + 1)}\n- {'y' * MAX_GOAL_LENGTH}", ("y" * MAX_GOAL_LENGTH,)),
        ("\n".join(f"- goal {i}" for i in range(50)), tuple(f"goal {i}" for i in range(MAX_GOALS))),
        ("- '); DROP TABLE answers; --", ("); drop table answers;",)),
        ("\n\nThe player may rest.", ()),
        ("1. **Chop tree** - to get wood\n2. **Eat cow**: food", ("chop tree", "eat cow")),
        (
            "- **Eat cow:** food\n- Chop-tree (wood)\n- sleep → rest",
            ("eat cow", "chop tree", "sleep"),
        ),
        ("Sure! Here it is.\n\n- eat cow\n\n- sleep\n\nBye!\n- lava", ("eat cow", "sleep")),
        ("1. eat cow\n   It is food.\n\n2. sleep\n   - to rest", ("eat cow", "sleep")),
        ("- Food:\n  - eat cow\n- Rest:\n  - sleep", ("eat cow", "sleep")),
        ("I am sorry, but I cannot help with that.", ()),
        ("<think>\n- think\n</think>\n\n- eat cow", ("eat cow",)),
        ("<think>\n- think", ()),
        ("hm\n- think\n</think>\n\neat cow\n- sleep", ("eat cow", "sleep")),
        ("<|im_end|>\n<|im_start|>\n<|im_end|>", ()),  # of a model without training for chats
        ("- eat cow<|im_end|>\n<|im_start|>user\n- lava", ("eat cow",)),
        ("<start_of_turn>\n- eat cow<end_of_turn>\n- lava", ("eat cow",)),
        ("", ()),
        ("\n\n\n", ()),
    ],
)
def test_reads_lists_of_many_kinds(raw, expected):
    assert parse_goals(raw) == tuple(normalise_goal(goal) for goal in expected)


@settings(max_examples=10_000, deadline=None, database=None, phases=(Phase.generate, Phase.shrink))
@given(ANY_TEXT | LIST_LIKE)
def test_any_text_is_an_answer(raw):
    goals = parse_goals(raw)
    assert len(goals) == len(set(goals)) <= MAX_GOALS
    for goal in goals:
        assert 0 < len(goal) <= MAX_GOAL_LENGTH
        assert goal.isprintable() and normalise_goal(goal) == goal
    assert parse_goals("".join(f"- {goal}\n" for goal in goals)) == goals


def test_a_huge_answer_is_read_at_once():
    assert parse_goals("-" * 10**6) == ()
    assert parse_goals("- 1. " * 10**6) == ()
    assert len(parse_goals("- goal\n" * 10**5)) == 1


class Lists:
    """A model whose lists depend on the seed."""

    def __init__(self, *lists):
        self.lists, self.seeds = lists, []

    def generate(self, prompts, max_tokens, stop, temperature, seed):
        self.seeds.append(seed)
        return [self.lists[seed] for _ in prompts]


def test_votes_are_drawn_with_a_seed_each_and_the_majority_counts(world):
    form = OpenEnded(world, temperature=0.7, votes=3)
    model = Lists(
        " eat cow\n- chop tree", " Chop tree.\n- mine stone", " eat cow\n- eat cow\n- fly"
    )
    (raw,) = form.ask(model, ["You see cow."])
    assert model.seeds == [0, 1, 2]
    assert form.goals(raw) == ("eat cow", "chop tree")
    assert form.parameters["votes"] == 3 and "votes" not in OpenEnded(world).parameters


def test_goals_that_are_captions_but_for_articles_are_these_captions():
    house = Housekeep("train:3")
    longest = max(house.captions, key=len)
    form = OpenEnded(house)
    raw = f" Pick up flour\n- {longest.upper()}\n- water the plants\n- {'x' * 90}"
    assert len(normalise_goal(longest)) > MAX_GOAL_LENGTH
    assert form.goals(raw) == ("pick up the flour", longest, "water plants")


def test_a_vote_without_an_answer_leaves_the_scene_unanswered(world):
    form = OpenEnded(world, temperature=0.7, votes=2)
    assert form.ask(Lists(" eat cow", None), ["You see cow."]) == [None]


def test_votes_that_cannot_differ_are_refused(world):
    with pytest.raises(UserError, match="--temperature"):
        OpenEnded(world, votes=3)

"""Prompt files: read to the byte, chosen by version, refused by name."""

import hashlib

import pytest

from goals.arguments import GoalArgs
from goals.forms import make_form
from goals.prompts import PROMPTS, load_prompt, newest_version, prompt_hashes
from lab.errors import UserError
from tests.toy.world import ToyWorld
from worlds import world
from worlds.crafter.world import Crafter


def test_a_missing_prompt_is_named_with_those_there_are(tmp_path):
    for path in (PROMPTS / "crafter_open_v0.txt", tmp_path / "no_such_folder" / "mine.txt"):
        with pytest.raises(UserError, match="crafter_open_v1.txt") as caught:
            load_prompt(path)
        assert path.name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"You see.", b"$scene $goal", b"$scene for $5", b"\xff $scene"]
)
def test_a_wrong_prompt_is_refused(tmp_path, content):
    path = tmp_path / "mine.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match="mine.txt"):
        load_prompt(path)


def test_a_prompt_is_the_same_under_other_line_ends(tmp_path):
    rendered = []
    for content in (b"Hints:\n$scene $$\n-\n", b"Hints:\r\n$scene $$\r\n-"):
        path = tmp_path / "mine.txt"
        path.write_bytes(content)
        rendered.append(load_prompt(path).template.substitute(scene="You see nothing."))
    assert rendered == ["Hints:\nYou see nothing. $\n-"] * 2


def test_the_newest_version_is_chosen(tmp_path):
    names = ("toy_open_v1", "toy_open_v2", "toy_open_v10", "toy_open_long_v11", "toy_open_vx")
    for name in (*names, "other_open_v99", "toy_open_v12.bak"):
        (tmp_path / f"{name}.txt").write_text(f"{name} $scene")
    assert newest_version(tmp_path / "toy_open") == tmp_path / "toy_open_v10.txt"
    hashes = prompt_hashes(tmp_path)
    answered = {"other", hashes["toy_open", 2], hashes["toy_open", 1]}
    assert newest_version(tmp_path / "toy_open", answered) == tmp_path / "toy_open_v2.txt"
    assert newest_version(tmp_path / "toy_open", {"other"}) == tmp_path / "toy_open_v10.txt"
    assert newest_version(tmp_path / "toy_open_long") == tmp_path / "toy_open_long_v11.txt"
    assert newest_version(tmp_path / "toy_closed") == tmp_path / "toy_closed_v1.txt"
    assert newest_version(tmp_path / "no folder" / "toy") == tmp_path / "no folder" / "toy_v1.txt"


class Updated(ToyWorld):
    """The toy, with prompts of its own."""

    prompts = None


@pytest.mark.parametrize("form", ["open", "closed", "rules"])
def test_forms_take_the_newest_version_that_the_world_has(tmp_path, form):
    for path in ToyWorld.prompts.glob("*_v1.txt"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    toy, args = Updated(), GoalArgs(goal_form=form)
    type(toy).prompts = tmp_path
    first = make_form(toy, args).prompts
    for path in tmp_path.glob("*_v1.txt"):
        newer = path.read_text().replace("\n", " \n")
        path.with_name(path.name.replace("_v1", "_v12")).write_text(newer)
    newest = make_form(toy, args).prompts
    assert newest.keys() == first.keys() and not set(newest.values()) & set(first.values())
    hashes = prompt_hashes(tmp_path)
    name = {"rules": "toy_rules_needs"}.get(form, f"toy_{form}")
    kind = {"rules": "needs"}.get(form, form)
    assert (first[kind], newest[kind]) == (hashes[name, 1], hashes[name, 12])


def test_a_world_without_prompts_is_told_which_file_is_missing(tmp_path):
    toy = Updated()
    type(toy).prompts = tmp_path
    missing = {"open": "toy_open_v1", "closed": "toy_closed_v1", "rules": "toy_rules_phrases_v1"}
    for form, name in missing.items():
        with pytest.raises(UserError, match=f"{name}.txt cannot be read .No such file"):
            make_form(toy, GoalArgs(goal_form=form))


def test_all_versions_are_known_by_their_bytes(tmp_path):
    content = {"toy_open_v2.txt": b"2", "toy_open_v10.txt": b"10", "toy_rules_needs_v1.txt": b"n"}
    for name, data in (content | {"README.md": b"", "toy_open.txt": b"no version"}).items():
        (tmp_path / name).write_bytes(data)
    hashes = {name: hashlib.sha256(data).hexdigest()[:16] for name, data in content.items()}
    assert prompt_hashes(tmp_path) == {
        ("toy_open", 2): hashes["toy_open_v2.txt"],
        ("toy_open", 10): hashes["toy_open_v10.txt"],
        ("toy_rules_needs", 1): hashes["toy_rules_needs_v1.txt"],
    }


def test_published_prompts_are_those_of_the_repositorys_worlds():
    assert PROMPTS == world.PROMPTS == Crafter.prompts
    assert ("crafter_open", 2) in prompt_hashes()

"""The documents: links, pictures and flags are there, commands parse, the docs' world runs."""

import dataclasses
import importlib
import importlib.util
import re
import runpy
import shlex
import sys
import typing
import warnings
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro

from lab.errors import UserError
from worlds import make_world
from worlds.world import WorldArgs

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "prompts" / "README.md"]
PAGES += sorted(ROOT.glob("docs/*.md"))
SCRIPTS = ["ellm_ppo.py", "ellm_dqn.py", "goals.record", "goals.store_cli", "lab.evaluate"]
SCRIPTS += [f"baselines.{path.stem}" for path in sorted(ROOT.glob("baselines/[!_]*.py"))]
SCRIPTS += [
    f"benchmarks.{path.stem}"
    for path in sorted(ROOT.glob("benchmarks/[!_]*.py"))
    if "run_cli(" in path.read_text("utf-8")
]
MAX_README_LINES = 130
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
LINK = re.compile(r"\[(?:[^\[\]]|\[[^\[\]]*\])*\]\(([^()\s]+)\)")
FLAG = re.compile(r"--[a-z][a-z0-9]*(?:-[a-z0-9]+)*")


class Parsed(BaseException):
    """Raised instead of running what has been parsed."""


def name(page: Path) -> str:
    """Return how a page is called in a test's name."""
    return page.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return FENCE.sub("", page.read_text("utf-8"))


@cache
def anchors(page: Path) -> set[str]:
    """Return the anchors that a page's headings get."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#{1,6} +(.+?) *$", prose(page), re.M):
        text = LINK.sub(lambda link: link[0][1 : link[0].index("](")], heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        number = found[slug] = found.get(slug, -1) + 1
        found[f"{slug}-{number}" if number else slug] = number
    return set(found)


def commands(page: Path) -> list[tuple[str, ...]]:
    """Return the `python ...` commands of a page, in fenced blocks and in code spans.

    A script that a block has copied (`cp ellm_ppo.py my_idea.py`) stands for its original.
    """
    lines: list[str] = []
    for _, block in FENCE.findall(page.read_text("utf-8")):
        copies: dict[str, str] = {}
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("cp "):
                original, copy = shlex.split(line, comments=True)[1:3]
                copies[copy] = original
            parts = (part.strip() for part in line.split("&&"))
            for part in (part for part in parts if part.startswith("python ")):
                words = shlex.split(part, comments=True)
                lines.append(shlex.join(copies.get(word, word) for word in words))
    lines += re.findall(r"`(python [^`\n]+)`", prose(page))
    return [tuple(shlex.split(line)[1:]) for line in dict.fromkeys(lines)]


def call(target: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> type:
    """Let a script or module parse the words as its command line, and stop there.

    Returns the class (or union of classes) that it parses into; fails where it refuses the words.
    """
    parse, seen = tyro.cli, []

    def stop(args_class: type, *_, **__):
        seen.append(args_class)
        parse(args_class, args=words)
        raise Parsed

    monkeypatch.setattr(tyro, "cli", stop)
    monkeypatch.setattr(sys, "argv", [target, *words])
    monkeypatch.syspath_prepend(ROOT)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the module was imported before
            if target.endswith(".py"):
                runpy.run_path(str(ROOT / target), run_name="__main__")
            else:
                runpy.run_module(target, run_name="__main__", alter_sys=True)
    except Parsed:
        return seen[0]
    except SystemExit as error:
        pytest.fail(f"python {target} does not take {shlex.join(words)}: exit code {error.code}")
    finally:
        monkeypatch.undo()
    pytest.fail(f"{target} parses no command line")


def flags(args_class: type) -> set[str]:
    """Return the flags of a dataclass of arguments, or of those of a union."""
    classes = typing.get_args(args_class) or (args_class,)
    names = {field.name.replace("_", "-") for c in classes for field in dataclasses.fields(c)}
    return {f"--{name}" for name in names} | {f"--no-{name}" for name in names}


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= MAX_README_LINES


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_pictures_are_there(page):
    for link in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name(page)} links to {link}"
        if anchor:
            assert anchor in anchors(target), f"{name(page)} links to {link}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_markers_come_in_pairs(page):
    found = re.findall(r"<!-- (BEGIN|END) table (\S+) -->", page.read_text("utf-8"))
    begins, ends = found[::2], found[1::2]
    assert [kind for kind, _ in begins] == ["BEGIN"] * len(ends)
    assert [("END", table) for _, table in begins] == ends
    assert len(set(begins)) == len(begins)


def test_every_page_can_be_reached_from_the_readme():
    reached, left = set(), [ROOT / "README.md"]
    while left:
        page = left.pop()
        reached.add(page)
        links = (link.partition("#")[0] for link in LINK.findall(prose(page)))
        targets = {(page.parent / link).resolve() for link in links if link.endswith(".md")}
        left += targets - reached
    assert set(PAGES) <= reached


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_parse(page, monkeypatch):
    for command in commands(page):
        words = list(command)
        target = words.pop(0)
        if target == "-m":
            target = words.pop(0)
            assert importlib.util.find_spec(target), f"python -m {target}: no such module"
            if not (ROOT / target.split(".")[0]).is_dir():
                continue  # pytest and other modules that are not ours
        else:
            assert (ROOT / target).exists(), f"python {target}: no such script"
        if words != ["--help"]:
            call(target, words, monkeypatch)


@pytest.fixture(scope="module")
def all_flags() -> set[str]:
    """Return the flags of all scripts; a few must be given something to parse at all."""
    needed = {
        "goals.record": ["--llm", "x", "--store", "x"],
        "goals.store_cli": ["verify", "x"],
        "lab.evaluate": ["--run-dir", "x"],
        "benchmarks.scenes": ["--run-dirs", "x"],
    }
    with pytest.MonkeyPatch.context() as monkeypatch:
        return {
            flag
            for script in SCRIPTS
            for flag in flags(call(script, needed.get(script, []), monkeypatch))
        }


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_flags_exist(page, all_flags):
    spans = re.findall(r"`(--[^`\n]+)`", prose(page))
    unknown = [flag for span in spans for flag in FLAG.findall(span) if flag not in all_flags]
    assert not unknown, f"{name(page)} names flags that no script has: {', '.join(unknown)}"


@pytest.fixture(scope="module")
def corridor(tmp_path_factory):
    """Make the world of docs/worlds.md as a user does: a module beside the scripts."""
    blocks = FENCE.findall((ROOT / "docs" / "worlds.md").read_text("utf-8"))
    code = next(code for language, code in blocks if language == "python")
    folder = tmp_path_factory.mktemp("corridor")
    (folder / "corridor.py").write_text(code, "utf-8")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(folder)
        yield make_world(WorldArgs(env="corridor:Corridor"))
        sys.modules.pop("corridor", None)


def test_world_of_the_docs_can_be_played_to_its_end(corridor):
    world, step = corridor, jax.jit(corridor.step)
    state = jax.jit(world.reset)(jax.random.key(0))
    left, right, take, open_door = range(len(world.actions))
    for action in [left] * 5 + [take] + [right] * 5 + [open_door]:
        state, transition = step(jax.random.key(1), state, jnp.int32(action))
    assert world.captions[int(transition.caption)] == "open door"
    assert (transition.reward, transition.score) == (world.max_return, 2.0)
    assert transition.terminated and not transition.truncated and transition.achievements.all()
    assert int(state.timestep) == 12
    assert world.describe(np.asarray(world.scene(state))) == "see door, have key"


@pytest.mark.parametrize("name", ["ellm_ppo", "ellm_dqn", "baselines.ppo"])
def test_world_of_the_docs_suits_the_scripts_defaults(corridor, name):
    script = importlib.import_module(name)
    assert script.make_setup(script.Args(total_timesteps=65_536), corridor).world == corridor


def test_world_of_the_docs_has_the_shapes_of_the_contract(corridor):
    world = corridor
    state = world.reset(jax.random.key(0))
    transition = jax.eval_shape(world.step, jax.random.key(0), state, jnp.int32(0))[1]
    dtypes = {field: value.dtype.name for field, value in vars(transition).items()}
    assert dtypes == {
        **{"caption": "int32", "reward": "float32", "score": "float32"},
        **{"terminated": "bool", "truncated": "bool", "achievements": "bool"},
    }
    num_captions, num_words = len(world.captions), world.num_scene_words
    assert world.observe(state).shape == world.observation_shape
    assert world.oracle(state).shape == (num_captions,)
    assert world.scene(state).shape == (num_words,) and world.scene(state).dtype == jnp.uint32
    assert world.in_view_masks().shape == (num_captions, num_words)
    assert world.grounding_masks().shape == (num_captions, num_words)
    assert world.prompt_mask("full").shape == (num_words,)
    packed = world.pack_observation(world.observe(state))[None]
    np.testing.assert_array_equal(world.unpack_observation(packed), world.observe(state))
    assert world.captions[0] == "nothing" and set(world.held) <= set(world.needable)
    assert hash(world) == hash(make_world(WorldArgs(env="corridor:Corridor")))


def test_world_of_the_docs_refuses_options_it_does_not_have():
    with pytest.raises(UserError, match="--actions"):
        make_world(WorldArgs(env="corridor:Corridor", actions="base"))

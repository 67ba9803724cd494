"""The scripts are parallel: what no algorithm owns is the same text; equal seeds learn equally."""

import ast
import importlib
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.toy.world import ToyWorld
from tests.training import assert_equal_trees, make_args, open_script, train

ROOT = Path(__file__).resolve().parent.parent
ELLM = ["ellm_ppo.py", "ellm_dqn.py"]
BASELINES = sorted(f"baselines/{path.name}" for path in (ROOT / "baselines").glob("[!_]*.py"))
# Functions and classes that an ELLM script and its plain baseline share to the letter.
TWINS = {
    ("ellm_ppo.py", "baselines/ppo.py"): (
        *("make_optimizer", "empty_rollout"),
        *("generalised_advantages", "ppo_loss", "learn"),
        *("batch_size", "minibatch_size"),
    ),
    ("ellm_dqn.py", "baselines/dqn.py"): (
        *("make_optimizer", "empty_rollout"),
        *("exploration", "choose_actions", "sample_batch", "dqn_loss", "learn"),
        *("batch_size", "gradient_steps", "target_period", "buffer_steps"),
    ),
}


def read(script: str) -> str:
    return (ROOT / script).read_text(encoding="utf-8")


def split(source: str) -> tuple[list[str], dict[str, list[str]]]:
    """Return the lines outside of the marked regions, and those of each tag.

    Docstring, imports, blank lines and the groups of Args are left out.
    """
    tree = ast.parse(source)
    first = next(
        node for node in tree.body[1:] if not isinstance(node, ast.Import | ast.ImportFrom)
    )
    before = max(node.end_lineno for node in tree.body if node.lineno < first.lineno)
    shared, regions, tag = [], {}, None
    for line in source.split("\n")[before:]:
        words = line.split()
        if words[:2] == ["#", "BEGIN"]:
            assert tag is None and len(words) == 3, f"a region begins within a region: {line}"
            tag = words[2]
        elif words[:2] == ["#", "END"]:
            assert words[2:] == [tag], f"a region ends that did not begin: {line}"
            tag = None
        elif words and words[:2] != ["class", "Args(RunArgs,"]:  # what follows names groups
            (shared if tag is None else regions.setdefault(tag, [])).append(line)
    assert tag is None, f"the region {tag} does not end"
    return shared, regions


def differences(sources: list[str]) -> list[str]:
    """Return what differs between scripts that should be parallel, a line each."""
    first, *others = [split(source) for source in sources]
    found, seen = [], dict(first[1])
    for shared, regions in others:
        found += [f"{a!r} / {b!r}" for a, b in zip(first[0], shared, strict=False) if a != b][:1]
        found += [f"{len(first[0])} / {len(shared)} lines"] * (len(first[0]) != len(shared))
        for tag, lines in regions.items():
            found += [
                f"{tag}: {a!r} / {b!r}"
                for a, b in zip(seen.setdefault(tag, lines), lines, strict=False)
                if a != b
            ][:1]
            found += [f"{tag}: {len(seen[tag])} / {len(lines)} lines"] * (
                len(seen[tag]) != len(lines)
            )
    return found


def definition(source: str, name: str) -> str:
    nodes = [node for node in ast.walk(ast.parse(source)) if getattr(node, "name", None) == name]
    assert len(nodes) == 1, f"{name} is defined {len(nodes)} times"
    return ast.get_source_segment(source, nodes[0])


@pytest.mark.parametrize("scripts", [ELLM, BASELINES], ids=["ellm", "baselines"])
def test_scripts_differ_only_within_their_regions(scripts):
    assert len(scripts) > 1 and not differences([read(script) for script in scripts])


@pytest.mark.parametrize("scripts", TWINS, ids=["ppo", "dqn"])
def test_plain_baselines_share_their_learner_with_ellm(scripts):
    ellm, plain = map(read, scripts)
    for name in TWINS[scripts]:
        assert definition(ellm, name) == definition(plain, name), name


@pytest.mark.parametrize("scripts", [ELLM, BASELINES], ids=["ellm", "baselines"])
def test_one_changed_line_is_seen(scripts):
    sources = [read(script) for script in scripts]
    shared, regions = split(sources[-1])
    twins = {tag for source in sources[:-1] for tag in split(source)[1]}
    lines = [*shared, *(line for tag in regions if tag in twins for line in regions[tag])]
    for line in [line for line in lines if sources[-1].count(line + "\n") == 1][::40]:
        changed = sources[-1].replace(line + "\n", line + "  # changed\n")
        assert differences([*sources[:-1], changed]), line


@pytest.mark.parametrize("text", ["none", "caption", "facts"])
@pytest.mark.parametrize("learner", ["ppo", "dqn"])
def test_plain_baseline_learns_what_ellm_without_goals_learns(monkeypatch, tmp_path, learner, text):
    names = (f"ellm_{learner}", f"baselines.{learner}")
    ellm, plain = (importlib.import_module(name) for name in names)
    settings = {"text_observation": text, "total_timesteps": 4 * 8 * 3}
    world, goals = ToyWorld(), {"goal_source": "none"}
    _, a, a_lines = train(monkeypatch, world, tmp_path, "ellm", None, ellm, **goals, **settings)
    _, b, b_lines = train(monkeypatch, world, tmp_path, "plain", None, plain, **settings)
    assert_equal_trees(a.params, b.params)
    assert_equal_trees(a.opt_state, b.opt_state)
    assert a_lines == b_lines and len(a_lines) == 3
    setup, service = open_script(plain, make_args(plain, tmp_path, "start", **settings), world)
    start = jax.tree.leaves(plain.init_state(setup, service.tables).params)
    learned = jax.tree.leaves(b.params)
    assert not all(np.array_equal(x, y) for x, y in zip(start, learned, strict=True))

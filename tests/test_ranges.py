"""The ranges of numeric arguments: every one has its own, in one place, and is held to it."""

import dataclasses
import importlib
import math
from pathlib import Path
from typing import get_type_hints

import pytest

import ellm_dqn
import ellm_ppo
from lab.cli import parse
from lab.errors import UserError
from lab.ranges import find_ranges
from worlds.world import WorldArgs

ROOT = Path(__file__).resolve().parent.parent
ENTRIES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in ROOT.rglob("*.py")
    if "\n    run_cli(" in path.read_text("utf-8") and "tests" not in path.parts
)
OF_THE_WORLD = {field.name for field in dataclasses.fields(WorldArgs)}  # which refuses by name


def arguments(entry: str) -> list[type]:
    """Return the class of a script's arguments, or those of its commands."""
    module = importlib.import_module(entry)
    if hasattr(module, "Args"):
        return [module.Args]
    return [kind for kind in vars(module).values() if hasattr(kind, "run")]


def make(args_class: type, **given):
    """Make arguments, with something where a field has no default."""
    needed = [f.name for f in dataclasses.fields(args_class) if f.default is dataclasses.MISSING]
    return args_class(**{**dict.fromkeys(needed, "x"), **given})


def test_entries_are_found():
    assert {"ellm_ppo", "ellm_dqn", "lab.evaluate", "goals.record", "goals.store_cli"} < {*ENTRIES}
    assert len(ENTRIES) > 18 and all(arguments(entry) for entry in ENTRIES)


@pytest.mark.parametrize("entry", ENTRIES)
def test_every_number_has_a_range_and_is_held_to_it(entry):
    for args_class in arguments(entry):
        make(args_class)
        hints = get_type_hints(args_class, include_extras=True)
        for field in dataclasses.fields(args_class):
            if field.name in OF_THE_WORLD:
                continue
            for kind, allowed in find_ranges(hints[field.name]):
                flag = f"--{field.name.replace('_', '-')}"
                assert allowed is not None, f"{entry}: {flag} has no range"
                for wrong in (allowed.low - 1, allowed.high * 2 + 1, math.nan, math.inf):
                    given = (wrong,) if isinstance(field.default, tuple) else wrong
                    with pytest.raises(UserError, match=f"^{flag} "):
                        make(args_class, **{field.name: given})
                for right in map(kind, (allowed.low, allowed.high)):
                    given = (right,) if isinstance(field.default, tuple) else right
                    make(args_class, **{field.name: given})


@pytest.mark.parametrize("script", [ellm_ppo, ellm_dqn], ids=["ppo", "dqn"])
def test_presets_are_within_their_ranges(script):
    for preset, defaults in script.PRESETS.items():
        script.Args(preset=preset, **defaults)


@pytest.mark.parametrize(
    "words, said",
    [
        ("--seed 4294967296", "--seed 4294967296: give a whole number from 0 to 4294967295"),
        ("--seed 99999999999999999999", "--seed 99999999999999999999: give"),
        ("--seed -1", "--seed -1: give a whole number from 0"),
        ("--num-envs 0", "--num-envs 0: give a whole number from 1 to 2147483647"),
        ("--checkpoint-every 0", "--checkpoint-every 0: give"),
        ("--learning-rate -1", "--learning-rate -1.0: give a number from 0 to 1"),
        ("--learning-rate nan", "--learning-rate nan: give"),
        ("--vf-coef inf", r"--vf-coef inf: give a number from 0 to 1e\+30"),
        ("--hidden-size 0", "--hidden-size 0: give"),
        ("--preset gpu --num-steps 0", "--num-steps 0: give"),
    ],
)
def test_command_line_is_held_to_the_ranges(words, said):
    with pytest.raises(UserError, match=f"^{said}"):
        parse(ellm_ppo.Args, lambda args: ellm_ppo.PRESETS[args.preset], words.split())


def test_python_is_held_to_the_ranges():
    assert ellm_ppo.Args(seed=2**32 - 1).seed == 2**32 - 1
    for wrong in ({"seed": 2**32}, {"num_envs": 2.5}, {"total_timesteps": "many"}):
        with pytest.raises(UserError, match="^--"):
            ellm_ppo.Args(**wrong)

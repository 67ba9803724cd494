"""The command line: arguments, presets, exit codes."""

import subprocess
import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest

from lab.cli import parse, run_cli
from lab.errors import UserError
from lab.run import Run
from tests.helpers.processes import python


@dataclass(frozen=True)
class Args:
    """Arguments of a toy script."""

    how: str = "well"


@dataclass(frozen=True)
class RunArgs:
    """A group of arguments."""

    FREE: ClassVar[tuple[str, ...]] = ("seed",)
    seed: int = 1  # seed of everything random
    total_timesteps: int = 100
    """length of the training [env steps]"""


@dataclass(frozen=True)
class WorldArgs:
    """Another one, with a derived size."""

    env: str = "toy"  # world to live in

    @property
    def label(self) -> str:
        return f"the {self.env} world"


@dataclass(frozen=True)
class GroupedArgs(RunArgs, WorldArgs):
    """Train a toy."""

    preset: str = "cpu"  # defaults for a machine
    num_envs: int = 4  # worlds in step


PRESETS = {"cpu": {}, "gpu": {"num_envs": 64, "total_timesteps": 10_000}}


def grouped(*argv: str) -> GroupedArgs:
    """Parse a command line of grouped arguments."""
    return parse(GroupedArgs, lambda args: PRESETS[args.preset], argv)


def test_presets_change_defaults_in_any_group_and_what_is_given_holds():
    assert grouped() == GroupedArgs() == parse(GroupedArgs, argv=[])
    assert grouped("--seed", "7", "--env", "maze") == GroupedArgs(seed=7, env="maze")
    preset = GroupedArgs(preset="gpu", num_envs=64, total_timesteps=10_000)
    assert grouped("--preset", "gpu") == preset
    given = grouped("--total-timesteps", "100", "--preset", "gpu", "--env", "maze")  # the default
    assert given == GroupedArgs(preset="gpu", num_envs=64, total_timesteps=100, env="maze")
    assert given.label == "the maze world"


def test_help_of_all_groups_is_shown_flat(capsys):
    with pytest.raises(SystemExit):
        grouped("--help")
    shown = capsys.readouterr().out
    for part in (
        *("--seed", "--total-timesteps", "--env", "--num-envs", "Train a toy."),
        *("seed of everything", "length of the training", "world to live", "worlds in step"),
    ):
        assert part in shown
    assert "free" not in shown.lower()


def flood(args: Args) -> None:
    """Print more than any pipe holds."""
    for number in range(100_000):
        print("line", number)


def toy_main(args: Args) -> None:
    """End as told."""
    if args.how == "error":
        raise UserError("no such thing:\nfix it")
    if args.how == "interrupt":
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    "arguments, code, said",
    [
        ([], 0, ""),
        (["--how", "error"], 2, "error: no such thing: fix it\n"),
        (
            ["--how", "interrupt"],
            130,
            "to go on from the last checkpoint: python toy.py --how interrupt",
        ),
        (["--colour", "red"], 2, "--colour"),
    ],
)
def test_exit_codes(monkeypatch, capsys, arguments, code, said):
    monkeypatch.setattr(sys, "argv", ["toy.py", *arguments])
    left = 0
    try:
        run_cli(toy_main, Args)
    except SystemExit as exit_:
        left = exit_.code
    error = capsys.readouterr().err
    assert left == code and said in error and "Traceback" not in error


def test_interrupt_names_the_run_directory_chosen_for_the_user(monkeypatch, capsys, tmp_path):
    def main(args):
        with Run(tmp_path / "chosen", {}):
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["toy.py"])
    with pytest.raises(SystemExit, match="130"):
        run_cli(main, Args)
    assert f"python toy.py --run-dir {tmp_path / 'chosen'}" in capsys.readouterr().err


@dataclass(frozen=True)
class Habits:
    """Arguments as other programs take them."""

    total_timesteps: int = 5
    """a number"""
    shares: tuple[int, ...] = ()
    """several"""
    most: int | None = None
    """a number, or none"""
    film: bool = True
    """a switch"""
    anneal_lr: bool = True
    """another"""


@pytest.mark.parametrize("word", ["1000000", "1_000_000", "1e6", "1E6", "1000000.0"])
def test_whole_numbers_may_be_written_in_several_ways(word):
    words = ["--total-timesteps", word, "--shares", word, word, "--most", word]
    assert parse(Habits, argv=words) == Habits(1_000_000, (1_000_000,) * 2, 1_000_000)


@pytest.mark.parametrize("word", ["1.5", "1e-3", "nan", "inf", "many"])
def test_what_is_no_whole_number_is_refused(capsys, word):
    with pytest.raises(SystemExit, match="2"):
        parse(Habits, argv=["--total-timesteps", word])
    assert "--total-timesteps" in capsys.readouterr().err


@pytest.mark.parametrize("words, film", [("True", True), ("false", False), ("0", False)])
def test_switches_take_a_word(words, film):
    assert parse(Habits, argv=["--film", words]).film is film
    assert parse(Habits, argv=[f"--film={words}"]).film is film
    assert parse(Habits, argv=["--no-film", words]).film is not film
    assert parse(Habits, argv=["--film", words, "--anneal_lr", words]).anneal_lr is film
    assert parse(Habits, argv=["--shares", "0", "1", "--no-film"]) == Habits(5, (0, 1), film=False)


def test_output_that_nobody_reads_ends_without_a_word():
    code = (
        "from lab.cli import run_cli; from tests.test_cli import Args, flood; run_cli(flood, Args)"
    )
    process = python(code, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == "line 0\n"
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 1

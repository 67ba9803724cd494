"""From the command line to `main(args)` and back to an exit code."""

import codecs
import dataclasses
import errno
import io
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, get_args

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from lab.errors import LastStepError, UserError
from worlds import world_defaults

Preset = Callable[[Any], Mapping[str, Any]]  # from arguments to the defaults their preset changes
SWITCH_WORDS = {"true": True, "yes": True, "on": True, "1": True}
SWITCH_WORDS |= {"false": False, "no": False, "off": False, "0": False}
NUMBERS = ConstructorRegistry()
PLAIN = {"±": "+-", "…": "..."}  # for terminals that know only ASCII, or half of it
codecs.register_error("plain", lambda error: (_in_ascii(error), error.end))

# What errors say, whichever library raises them, when the machine is at fault, and what helps.
SPACE = "free some space; the same command with its --run-dir goes on from the last checkpoint"
PLACE = "give a path that can be written"
MEMORY = "give fewer --num-envs, a smaller --hidden-size or, with DQN, a smaller --buffer-size"
FAULTS = {os.strerror(code): SPACE for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)}
FAULTS |= {os.strerror(code): PLACE for code in (errno.EROFS, errno.EACCES, errno.EPERM)}
FAULTS |= {"Out of memory": MEMORY}


@NUMBERS.primitive_rule
def read_whole_numbers(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Return how an int is read: 1_000_000 and 1e6 are the same number."""
    if info.type is not int:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=lambda words: whole_number(words[0]),
        is_instance=lambda value: isinstance(value, int),
        str_from_instance=lambda value: [str(value)],
    )


def whole_number(word: str) -> int:
    """Return the number that a word writes as 1000000, 1_000_000 or 1e6; raises ValueError."""
    with suppress(ValueError):
        return int(word)
    number = float(word)
    if not number.is_integer():
        raise ValueError(f"{word} is no whole number")
    return int(number)


def read_switches(args_class: type, words: Sequence[str]) -> list[str]:
    """Return the words of a command line with --film False, or --film=False, as --no-film.

    --no-film False is --film.
    """
    classes = get_args(args_class) or (args_class,)  # of a union of commands
    names = [f.name for c in classes for f in dataclasses.fields(c) if f.type is bool]
    flags = {f"--{name}": f"--no-{name}" for name in names}
    flags |= {flag.replace("_", "-"): other.replace("_", "-") for flag, other in flags.items()}
    flags |= {other: flag for flag, other in flags.items()}
    read: list[str] = []
    for word in words:
        flag, _, value = word.partition("=")
        if flag not in flags and read:
            flag, value = read[-1], word
        if flag in flags and value.lower() in SWITCH_WORDS:
            if value == word:
                read.pop()
            word = flag if SWITCH_WORDS[value.lower()] else flags[flag]
        read.append(word)
    return read


def parse(args_class: type, preset: Preset | None = None, argv: Sequence[str] | None = None) -> Any:
    """Return the arguments of the command line over the defaults of their world and their preset.

    argv: the command line, by default the process's own. What is given there explicitly holds.
    """
    words = read_switches(args_class, sys.argv[1:] if argv is None else argv)
    args = tyro.cli(args_class, args=words, registry=NUMBERS)
    if preset is None:
        return args
    names = {field.name for field in dataclasses.fields(args_class)}
    of_world = {key: value for key, value in world_defaults(args).items() if key in names}
    defaults = of_world | preset(args)
    if not defaults:
        return args
    default = dataclasses.replace(args_class(), env=args.env, preset=args.preset, **defaults)
    return tyro.cli(args_class, args=words, default=default, registry=NUMBERS)


def _in_ascii(error: UnicodeEncodeError) -> str:
    """Return what to print for characters that the terminal's encoding does not have."""
    return "".join(PLAIN.get(letter, "?") for letter in error.object[error.start : error.end])


def explain(error: Exception) -> str | None:
    """Return one line for what the machine, not the program, did wrong; None for all else."""
    found = [fault for fault in FAULTS if fault in str(error)]
    if not found:
        return None
    path = f": {error.filename}" if getattr(error, "filename", None) else ""
    return f"{found[0]}{path}: {FAULTS[found[0]]}"


def run_cli(main: Callable[[Any], Any], args_class: type, preset: Preset | None = None) -> None:
    """Parse the command line into `args_class` and call `main(args)`.

    Exit codes: 0 done, 1 nobody reads the output any more, 2 the user's error or the machine's (one
    line on stderr, no traceback), 3 done but for a last step that was asked for (one line), 130
    interrupted by Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")
    try:
        main(parse(args_class, preset))
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has gone, as in --help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        told = isinstance(error, UserError | LastStepError)
        said = str(error) if told else explain(error)
        if said is None:
            raise
        sys.stdout.flush()
        print("error:", " ".join(said.split()), file=sys.stderr, flush=True)
        sys.exit(3 if isinstance(error, LastStepError) else 2)
    except KeyboardInterrupt as interrupt:
        sys.stdout.flush()
        command = ["python", *sys.argv]
        # The run's directory, when it was chosen for the user.
        for note in getattr(interrupt, "__notes__", []):
            command += [] if "--run-dir" in shlex.join(sys.argv) else note.split(" ", 1)
        command = shlex.join(command)
        said = f"interrupted; to go on from the last checkpoint: {command}"
        print(f"\n{said}", file=sys.stderr, flush=True)
        sys.exit(130)

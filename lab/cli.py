"""From the command line to `main(args)` and back to an exit code."""

import dataclasses
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tyro

from lab.errors import LastStepError, UserError

Preset = Callable[[Any], Mapping[str, Any]]  # from arguments to the defaults their preset changes


def parse(args_class: type, preset: Preset | None = None, argv: Sequence[str] | None = None) -> Any:
    """Return the arguments of the command line over the defaults of their preset.

    argv: the command line, by default the process's own. What is given there explicitly holds.
    """
    args = tyro.cli(args_class, args=argv)
    defaults = preset(args) if preset is not None else {}
    if not defaults:
        return args
    default = dataclasses.replace(args_class(), preset=args.preset, **defaults)
    return tyro.cli(args_class, args=argv, default=default)


def run_cli(main: Callable[[Any], Any], args_class: type, preset: Preset | None = None) -> None:
    """Parse the command line into `args_class` and call `main(args)`.

    Exit codes: 0 done, 2 the user's error (one line on stderr, no traceback), 3 done but for a last
    step that was asked for (one line), 130 interrupted by Ctrl-C.
    """
    try:
        main(parse(args_class, preset))
    except (UserError, LastStepError) as error:
        sys.stdout.flush()
        print("error:", " ".join(str(error).split()), file=sys.stderr, flush=True)
        sys.exit(2 if isinstance(error, UserError) else 3)
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

"""From the command line to `main(args)` and back to an exit code."""

import dataclasses
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from lab.errors import UserError


def parse(args_class: type, preset: Callable[[Any], dict[str, Any]] | None = None, argv: Sequence[str] | None = None) -> Any:
    """Return the arguments of the command line (argv, or the process's own) over the defaults of their preset."""
    args = tyro.cli(args_class, args=argv)
    if preset is None or not preset(args):
        return args
    return tyro.cli(args_class, args=argv, default=dataclasses.replace(args_class(), preset=args.preset, **preset(args)))


def run_cli(main: Callable[[Any], Any], args_class: type, preset: Callable[[Any], dict[str, Any]] | None = None) -> None:
    """Parse the command line into `args_class` and call `main(args)`.

    `preset` names, for the arguments given, the defaults that their preset changes; what is given explicitly holds.
    Exit codes: 0 done, 2 the user's error (one line on stderr, no traceback), 130 interrupted by Ctrl-C.
    """
    try:
        main(parse(args_class, preset))
    except UserError as error:
        sys.stdout.flush()
        print("error:", " ".join(str(error).split()), file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt as interrupt:
        sys.stdout.flush()
        command = ["python", *sys.argv]
        for note in getattr(interrupt, "__notes__", []):  # the run's directory, when it was chosen for the user
            command += [] if "--run-dir" in shlex.join(sys.argv) else note.split(" ", 1)
        command = shlex.join(command)
        print(f"\ninterrupted; to go on from the last checkpoint: {command}", file=sys.stderr, flush=True)
        sys.exit(130)

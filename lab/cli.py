"""From the command line to `main(args)` and back to an exit code."""

import shlex
import sys
from collections.abc import Callable
from typing import Any

import tyro

from lab.errors import UserError


def run_cli(main: Callable[[Any], Any], args_class: type) -> None:
    """Parse the command line into `args_class` and call `main(args)`.

    Exit codes: 0 done, 2 the user's error (one line on stderr, no traceback), 130 interrupted by Ctrl-C.
    """
    try:
        main(tyro.cli(args_class))
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

"""Where a figure comes from: the command, the commit and the machine that it names."""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"


def command_line(name: str) -> str:
    """Return the command of this process, the benchmark `name`; of far files only the name."""
    words = (Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:])
    return shlex.join(["python", "-m", f"benchmarks.{name}", *words])


def git_commit() -> str | None:
    """Return the commit that is checked out, None without one."""
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip() or None


def machine() -> str:
    """Return the number and kind of the machine's CPU cores."""
    return f"{os.cpu_count()} x {platform.machine()} CPU"


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those of the packages that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found

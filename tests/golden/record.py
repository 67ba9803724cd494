"""Record the figures again, after a change that is meant to change them.

    python -m tests.golden.record ellm_dqn/greedy ellm_ppo/none    these cases, which are kept

Say in the commit which figures changed and why. They repeat bit for bit on one kind of CPU with one
number of cores; elsewhere they agree up to rounding, which is what the tests ask for.
"""

import json
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import pytest  # noqa: E402

from tests.golden.cases import FIGURES, all_cases, read_figures, run_case  # noqa: E402

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers")


def main(words: Sequence[str]) -> None:
    """Run the cases that the words choose, and put their figures into the file."""
    names = [case.full_name for case in all_cases()]
    cases = read_figures() if FIGURES.exists() else {}
    for case in all_cases():
        if case.full_name in (words or cases):
            print(case.full_name, flush=True)
            with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
                cases[case.full_name] = run_case(patch, case, Path(folder))
            write_figures({name: cases[name] for name in names if name in cases})
            jax.clear_caches()


def write_figures(cases: dict[str, Any]) -> None:
    """Write the file, one line a case, so that a diff shows which cases changed."""
    lines = [
        f"{json.dumps(name)}:{json.dumps(cases[name], separators=(',', ':'))}" for name in cases
    ]
    machine = json.dumps(describe_machine())
    content = f'{{"machine":{machine},\n"cases":{{\n' + ",\n".join(lines) + "\n}}\n"
    FIGURES.write_text(content, encoding="utf-8")


def describe_machine() -> dict[str, Any]:
    """Return what the last bits depend on."""
    affinity = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {
        "cpu": name_cpu(),
        "cpu_count": os.cpu_count(),
        "affinity": affinity,
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
    }


def name_cpu() -> str:
    """Return the CPU's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main(sys.argv[1:])

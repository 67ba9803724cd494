"""Python processes in the repository, as tests start and kill them."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def python(code: str, *arguments: str, **options) -> subprocess.Popen:
    """Start a Python process on the CPU that can import the repository's modules."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment |= options.pop("env", {})
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **options)

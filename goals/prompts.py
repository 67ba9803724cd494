"""Prompt files, <world>_<form>_v<k>.txt, which are known by their bytes; see prompts/README.md."""

import hashlib
import os
import re
import string
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from lab.errors import UserError

PROMPTS = Path(__file__).resolve().parent.parent / "prompts"  # those of this repository
PARAGRAPH = re.compile(r"(?<=\n\n)(?=[^\n])")  # where one begins
HASH_DIGITS = 16


class Prompt(NamedTuple):
    """A prompt and the first 16 hex digits of the SHA-256 of its file's bytes."""

    template: string.Template
    hash: str


def load_prompt(path: str | os.PathLike, placeholders: Sequence[str] = ("scene",)) -> Prompt:
    """Read a prompt file; white space at its end is not part of the prompt.

    Raises UserError if there is no such file or its placeholders are not exactly those given, in
    alphabetical order.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        text = content.decode("utf-8").replace("\r\n", "\n").rstrip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        folder = path.parent if any(path.parent.glob("*_v*.txt")) else PROMPTS
        there = ", ".join(sorted(p.name for p in folder.glob("*_v*.txt")))
        raise UserError(
            f"prompt {path} cannot be read ({reason}); in {folder} there are {there}"
        ) from error
    template = string.Template(text)
    names = sorted(set(template.get_identifiers())) if template.is_valid() else None
    if names != list(placeholders):
        wanted = " and ".join(f"${name}" for name in placeholders)
        raise UserError(
            f"prompt {path} must have {wanted} and no other placeholder; write a dollar sign as $$"
        )
    return Prompt(template, hash_bytes(content))


def newest_version(prefix: Path, answered: Collection[str] = ()) -> Path:
    """Return the file <prefix>_v<k>.txt of the largest k, or where the first would be.

    answered: hashes of prompts that there are answers to; where some version is one of them, only
    those count: a later prompt does not make a recording useless.
    """
    versions = prompt_versions(prefix.parent)
    numbers = {k: path for (name, k), path in versions.items() if name == prefix.name}
    known = [k for k, path in numbers.items() if hash_bytes(path.read_bytes()) in answered]
    newest = max(known or numbers, default=1)
    return prefix.with_name(f"{prefix.name}_v{newest}.txt")


def newest_versions(
    prefix: Path, kinds: Iterable[str], answered: Collection[str] = ()
) -> dict[str, Path]:
    """Return the newest file <prefix>_<kind>_v<k>.txt of each kind, as `newest_version`."""
    return {
        kind: newest_version(prefix.with_name(f"{prefix.name}_{kind}"), answered) for kind in kinds
    }


def prompt_versions(folder: Path) -> dict[tuple[str, int], Path]:
    """Return the prompt files in a folder by name, as in "<world>_<form>", and version."""
    paths = sorted(folder.glob("*.txt"))
    named = [(re.fullmatch(r"(.+)_v(\d+)", path.stem), path) for path in paths]
    return {(name[1], int(name[2])): path for name, path in named if name}


def prompt_hashes(folder: Path = PROMPTS) -> dict[tuple[str, int], str]:
    """Return the hashes of the prompt files in a folder, by name and version."""
    versions = prompt_versions(folder).items()
    return {version: hash_bytes(path.read_bytes()) for version, path in versions}


def hash_bytes(content: bytes) -> str:
    """Return the first hex digits of the SHA-256 of what a prompt file or a question holds."""
    return hashlib.sha256(content).hexdigest()[:HASH_DIGITS]

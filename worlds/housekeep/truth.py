"""Where things belong, by tables that nobody here wrote. O objects, P places.

TWC is the table of TextWorld Commonsense (Murugesan et al., 2021) as the package textworld-express
carries it; the people's rankings are those of Housekeep (Kant et al., 2022), as an npz.
"""

import functools
import hashlib
import importlib.metadata
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lab.errors import UserError

PACKAGE, VERSION = "textworld-express", "1.1.0"
FILE = "textworld_express/twc_objects.folds.json"  # below site-packages
SHA256 = "261888d423668bdfcd81c49bba51d9f84b1d55c9aa12e1ca16fa6a7cf2469729"
REINSTALL = f"pip install --force-reinstall --no-deps {PACKAGE}=={VERSION}"
SPLITS = ("train", "valid", "test")  # 0, 1, 2
SHARES = (0.5, 0.25, 0.25)  # of a table without splits, as in TWC's
SEED = 0  # of the splits of a table without


class Truth(NamedTuple):
    """A table of objects and places.

    belongs: bool [O, P]; split: int8 [O], index into SPLITS; category: one for each object; rooms:
    one for each place, "" where the table does not say. Where it does, a place's name begins with
    its room's: "kitchen counter".
    """

    objects: tuple[str, ...]
    places: tuple[str, ...]
    belongs: np.ndarray
    split: np.ndarray
    category: tuple[str, ...]
    rooms: tuple[str, ...]


@functools.cache
def read_twc() -> Truth:
    """Read the table of TextWorld Commonsense; raises UserError without its package."""
    try:
        path = Path(importlib.metadata.distribution(PACKAGE).locate_file(FILE))
        content = path.read_bytes()
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"{PACKAGE} is not installed: pip install {PACKAGE}=={VERSION}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {REINSTALL}") from error
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise UserError(f"{path} is not that of version {VERSION}: {REINSTALL}")
    folds = json.loads(content)
    rows = [(split, name, row) for split in SPLITS for name, row in folds[split].items()]
    places = sorted({place for _, _, row in rows for place in row["locations"]})
    return Truth(
        tuple(name for _, name, _ in rows),
        tuple(places),
        np.array([[place in row["locations"] for place in places] for _, _, row in rows]),
        np.array([SPLITS.index(split) for split, _, _ in rows], np.int8),
        tuple(row["category"] for _, _, row in rows),
        ("",) * len(places),
    )


@functools.cache
def read_placements(path: str | os.PathLike) -> Truth:
    """Read people's rankings: an object belongs where most of them say so.

    An npz has ranks int8 [P, O, people] (above 0: it belongs there; below: it is out of place
    there; 0: implausible), objects [O] and room_receptacles [P], as in
    "living_room|coffee_table". Raises UserError for any other file.
    """
    try:
        # Opened here, for numpy leaves a broken file open.
        with Path(path).open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            ranks, objects, places = (
                file[name] for name in ("ranks", "objects", "room_receptacles")
            )
        if not all(isinstance(part, np.ndarray) for part in (ranks, objects, places)):
            raise ValueError("its parts are not arrays")
        named = [place.partition("|") for place in map(str, places.ravel())]
        if ranks.ndim != 3 or ranks.dtype.kind not in "iu" or not ranks.size:
            raise ValueError("ranks are not integers [places, objects, people]")
        if ranks.shape[:2] != (*places.shape, *objects.shape):
            raise ValueError("ranks do not fit the names")
        if objects.dtype.kind != "U" or places.dtype.kind != "U":
            raise ValueError("names are not text")
        names = [[_as_words(name) for name in part.tolist()] for part in (objects, places)]
        if any(len(set(part)) < len(part) for part in names):
            raise ValueError("a name stands there twice")
        if not all(name and name.isprintable() for name in (*names[0], *names[1])):
            raise ValueError("a name is blank or has characters that cannot be printed")
        if not all(_as_words(room) and _as_words(receptacle) for room, _, receptacle in named):
            raise ValueError("a place is not room|receptacle")
    except Exception as error:  # numpy, zipfile and zlib raise many kinds for broken files
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        if "allow_pickle" in str(why):
            why = "it holds Python objects, which could run code"
        said = " ".join(str(why).split())
        raise UserError(
            f"--placements {path} is no file of placements ({said}): give an npz with whole "
            "numbers ranks [places, objects, people], the texts objects, and room_receptacles as "
            "in kitchen|counter"
        ) from error
    count = len(objects)
    bounds = np.cumsum(SHARES)[:-1] * count
    split = np.searchsorted(bounds, np.arange(count), side="right").astype(np.int8)
    return Truth(
        tuple(map(_as_words, objects.tolist())),
        tuple(f"{_as_words(room)} {_as_words(receptacle)}" for room, _, receptacle in named),
        (2 * (ranks > 0).sum(2) > ranks.shape[2]).T,
        np.random.default_rng(SEED).permutation(split),
        ("object",) * count,
        tuple(_as_words(room) for room, _, _ in named),
    )


def _as_words(name: str) -> str:
    return name.replace("_", " ").replace("childs", "child's").strip()

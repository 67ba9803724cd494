"""A file of people's rankings for tests: six rooms, 36 places, sixty things, all of one mind."""

from pathlib import Path

import numpy as np

ROOMS = ("kitchen", "living_room", "bedroom", "bathroom", "childs_room", "home_office")
RECEPTACLES = ("table", "shelf", "carpet", "chair", "counter", "top_cabinet")


def save_rankings(path: Path) -> tuple[np.ndarray, list[str], list[str]]:
    """Write the file; return ranks int8 [P, O, people] and the names of objects and of places."""
    rng = np.random.default_rng(0)
    places = [f"{room}|{receptacle}" for room in ROOMS for receptacle in RECEPTACLES]
    objects = [f"thing_{number}" for number in range(60)]
    ranks = np.where(rng.random((len(places), 60, 1)) < 0.2, 1, -1).repeat(10, 2).astype(np.int8)
    np.savez(path, ranks=ranks, objects=np.array(objects), room_receptacles=np.array(places))
    return ranks, objects, places

"""How a model's scores become goals: the thresholds that a world's folder gives for it."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Thresholds of calibrated scores, in standard deviations.

    They are those of sensible goals, of needs, and of the closed form's goals; and, in worlds with
    pairs, above which a thing belongs in a place (None: in its best places), and below which it
    does not, where it is put in its best place alone.
    """

    sensible_threshold: float
    need_threshold: float
    closed_threshold: float
    pair_threshold: float | None = None
    wrong_threshold: float = 0.0


def find_recipe(recipes: Mapping[str, Mapping[str, float]], model: str) -> Recipe:
    """Return the recipe of a model by its identity, among a world's `recipes`.

    The longest key that the model's name begins with holds; "" is for what nobody has tuned.
    """
    model = model.lower().rpartition("/")[2]  # a hub id names the owner first
    return Recipe(**recipes[max(filter(model.startswith, recipes), key=len)])

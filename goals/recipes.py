"""How a model's scores become goals: the thresholds that were chosen for it on the dev scenes of benchmarks/scenes/."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Thresholds in standard deviations of calibrated scores: of sensible goals, of needs, and of the closed form's goals."""

    sensible_threshold: float
    need_threshold: float
    closed_threshold: float


DEFAULT = Recipe(sensible_threshold=0.67, need_threshold=1.38, closed_threshold=1.2)
# By the beginning of a model's name.
RECIPES = {"gemma-3-270m": Recipe(sensible_threshold=1.06, need_threshold=2.35, closed_threshold=0.4)}


def find_recipe(model: str) -> Recipe:
    """Return the recipe of a model by its identity; what nobody has tuned gets the one of Qwen2.5-Coder 1.5B."""
    model = model.lower().rpartition("/")[2]  # a hub id names the owner first
    return next((recipe for name, recipe in RECIPES.items() if model.startswith(name)), DEFAULT)

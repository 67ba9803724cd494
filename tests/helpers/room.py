"""A world with pairs: two things that belong on a shelf, on a hook or in a sink."""

import numpy as np

from tests.toy.world import ToyWorld
from worlds.world import PROMPTS, mask_of

THINGS, PLACES = ("cup", "hat", "soap", "sock"), ("shelf", "hook", "sink")


class Room(ToyWorld):
    """Two things, two more to compare with; facts "X in P", captions "pick up X" and "put X in P".

    What stands where it does not belong is to be picked up; what is in no place, to be put.
    """

    name, prompts = "housekeep", PROMPTS
    recipes = {"": dict(ToyWorld.recipes[""], pair_threshold=0.0)}
    things, places = THINGS, PLACES
    own = THINGS[:2]
    facts = tuple(f"{thing} in {place}" for thing in own for place in PLACES)
    facts += tuple(f"hold {thing}" for thing in own)
    captions = ("nothing", *(f"pick up {thing}" for thing in own))
    captions += tuple(f"put {thing} in {place}" for thing in own for place in PLACES)

    places_here = np.ones(len(PLACES), bool)

    def rules_of(self, wrong, right):
        sensible = np.ones(len(self.captions), bool)
        sensible[0] = False
        needs = np.zeros((len(self.captions), len(self.facts)), bool)
        alternatives = np.zeros((len(self.captions), 1, len(self.facts)), bool)
        for row, thing in enumerate(self.own):
            stands = [f"{thing} in {PLACES[place]}" for place in np.flatnonzero(wrong[row])]
            pick = self.captions.index(f"pick up {thing}")
            alternatives[pick, 0, [self.facts.index(fact) for fact in stands]] = True
            sensible[pick] = bool(stands)
            for place, is_home in zip(PLACES, right[row], strict=True):
                put = self.captions.index(f"put {thing} in {place}")
                sensible[put], needs[put, self.facts.index(f"hold {thing}")] = is_home, True
        return sensible, needs, alternatives

    def in_view_masks(self):
        return np.zeros((len(self.captions), self.num_scene_words), np.uint32)

    def prompt_mask(self, scope):
        return mask_of(self.facts, self.facts)

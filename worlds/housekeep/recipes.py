"""What each model's scores must reach; chosen on TextWorld Commonsense's validation objects.

pair_threshold by F1; wrong_threshold by what an agent would put right that did all it is told, in
houses of train and validation things.
"""

# Nothing but pairs is asked of a house: the thresholds of other forms stand where nobody set them.
_OTHER_FORMS = {"sensible_threshold": 0.0, "need_threshold": 0.0, "closed_threshold": 0.0}
# Models that nobody has tuned get Qwen2.5-Coder 1.5B's.
RECIPES = {
    "gemma-3-270m": {**_OTHER_FORMS, "pair_threshold": 0.7, "wrong_threshold": -0.3},
    "": {**_OTHER_FORMS, "pair_threshold": 0.75, "wrong_threshold": 0.0},
}

"""Train on the toy in a process of its own, to be killed: python -m tests.train_toy DIR NAME."""

import sys
from pathlib import Path

import pytest

from tests.helpers.table_model import TableModel
from tests.toy.world import ToyWorld
from tests.training import train

SETTINGS = {
    "goal_form": "open",
    "goal_conditioned": True,
    "total_timesteps": 4 * 8 * 60,
    "checkpoint_every": 7,
}

if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        train(
            patch,
            ToyWorld(),
            Path(sys.argv[1]),
            sys.argv[2],
            TableModel(),
            **SETTINGS,
            compilation_cache=True,
        )

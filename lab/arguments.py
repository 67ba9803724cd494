"""The arguments that every script has: how long, where to, and what is made of a run."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from lab.errors import UserError
from lab.ranges import Count, CountOrNone, Ranged, Seed, Share


@dataclass(frozen=True)
class RunArgs(Ranged):
    """A run; FREE: fields in which the command that resumes it may differ."""

    FREE: ClassVar[tuple[str, ...]] = (
        *("run_dir", "checkpoint_every", "evaluate_episodes", "film", "track"),
        "compilation_cache",
    )

    seed: Seed = 1  # seed of everything random
    run_dir: str | None = None
    """directory of the run, resumed if it has the same configuration; default: new, under runs/"""
    from_run: str | None = None
    """run to begin with the parameters of, its directory or the name of a shipped agent; its world
    and inputs must be the same"""
    fine_tune: Literal["all", "heads", "critic"] = "all"
    """which of these parameters learn on: all, those above the torso, or the value's alone (PPO)"""
    total_timesteps: Count = 1_500_000
    """length of the training [env steps], rounded down to updates"""
    exploring_starts: Share = 0.0
    """share of the training's episodes that begin in the midst of things; housekeep: 0.5"""
    checkpoint_every: Count = 100  # time between checkpoints [updates]; the last update has one
    evaluate_episodes: CountOrNone = 64  # episodes played after the training; 0: none
    evaluate_every: CountOrNone = 0
    """time between evaluations in held-out worlds during the training [env steps]; 0: none"""
    film: bool = True  # make film.gif of the first evaluation episode
    track: Literal["none", "tensorboard", "wandb"] = "none"  # also send the metrics there
    compilation_cache: bool = True  # keep compiled programs in ~/.cache/ellm for the next start

    @property
    def num_updates(self) -> int:
        """Updates of the whole run; raises UserError if there is not one.

        `batch_size`, env steps per update, is the script's.
        """
        if self.total_timesteps < self.batch_size:
            short = f"--total-timesteps {self.total_timesteps} is less than"
            raise UserError(f"{short} --num-envs x --num-steps, {self.batch_size}")
        return self.total_timesteps // self.batch_size

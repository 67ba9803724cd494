"""Evaluate a trained run: python -m lab.evaluate --run-dir runs/<name> --episodes 64 --film."""

import dataclasses
import importlib.util
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from goals.service import GoalService
from lab.checkpoint import Checkpoints
from lab.cli import run_cli
from lab.errors import UserError
from lab.film import film_frames, make_film
from lab.metrics import score_key, score_label
from lab.play import Policy, play
from lab.run import read_config, write_json
from lab.session import HELD_OUT, restore
from worlds import make_world

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Args:
    """Evaluate a run by the script that trained it.

    Writes evaluation.json, and film.gif if asked, into the run's directory.
    """

    run_dir: str
    """directory of the run"""
    episodes: int = 64
    """episodes to play"""
    seed: int = HELD_OUT
    """seed of the worlds and the policy; default: that of the run's own evaluations"""
    film: bool = False
    """also film the first episode"""


def load_script(name: str) -> ModuleType:
    """Import the script of this repository that a run names; any other is a UserError."""
    path = (ROOT / name).resolve()
    if ROOT not in path.parents or path.suffix != ".py" or not path.is_file():
        missing = f"the run was made by {name}, which is not in {ROOT}"
        raise UserError(f"{missing}: put the script back to evaluate its runs")
    module_name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, path)
        sys.modules[module_name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[module_name])
    return sys.modules[module_name]


def load_run(script: ModuleType, run_dir: str | Path) -> tuple[Policy, GoalService, Any]:
    """Return a run's policy, its service and the state of its last checkpoint.

    Arguments that the run did not know yet have their defaults.
    """
    recorded = read_config(run_dir)["arguments"]
    names = {field.name for field in dataclasses.fields(script.Args)}
    args = script.Args(**{name: value for name, value in recorded.items() if name in names})
    world, was = make_world(args), read_config(run_dir).get("world")
    if was not in (None, repr(world)):
        raise UserError(f"{run_dir} is of another world ({was}; here {world!r}): train anew")
    setup = script.make_setup(args, world)
    service = GoalService(world, args, seed=args.seed)
    service.prepare()
    with Checkpoints(Path(run_dir) / "checkpoints") as checkpoints:
        state, _ = restore(checkpoints, service, partial(script.init_state, setup))
    return Policy(setup, script.act), service, state


def main(args: Args) -> dict[str, Any]:
    """Evaluate, print the success rates, and return what evaluation.json holds."""
    if args.episodes < 1:
        raise UserError(f"--episodes {args.episodes}: at least one episode must be played")
    script = load_script(read_config(args.run_dir)["script"])
    jax.config.update("jax_numpy_rank_promotion", "raise")
    policy, service, state = load_run(script, args.run_dir)
    key = jax.random.key(args.seed)
    statistics, shown = play(policy, service, state.params, args.episodes, key, args.film)
    run_dir, world = Path(args.run_dir), policy.setup.world
    write_json(run_dir / "evaluation.json", {**dataclasses.asdict(args), **statistics})
    if args.film:
        make_film(film_frames(world, service.goals, shown), run_dir / "film.gif")
    service.close()
    for name, rate in sorted(statistics["success_rates"].items(), key=lambda item: -item[1]):
        print(f"{rate:7.1%}  {name}")
    score, words = statistics[score_key(world.score_name)], score_label(world.score_name)
    error = statistics[f"{world.score_name}_standard_error"]
    print(f"{score:.2f} ± {error:.2f} {words} per episode, {args.episodes} episodes")
    return statistics


if __name__ == "__main__":
    run_cli(main, Args)

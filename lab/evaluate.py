"""Play episodes with a trained run's policy: python -m lab.evaluate --run-dir runs/<name> --episodes 64 [--film]."""

import dataclasses
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

import jax

from lab.cli import run_cli
from lab.errors import UserError
from lab.film import film_frames, make_film
from lab.run import read_config, write_json

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Args:
    """Evaluate a run by the script that trained it; writes evaluation.json, and film.gif if asked, into the run."""

    run_dir: str
    """directory of the run"""
    episodes: int = 64
    """episodes to play"""
    seed: int = 0
    """seed of the worlds and the policy"""
    film: bool = False
    """also film the first episode"""


def load_script(name: str):
    """Import the script of this repository that a run names; raises UserError for any other file."""
    path = (ROOT / name).resolve()
    if ROOT not in path.parents or path.suffix != ".py" or not path.is_file():
        raise UserError(f"the run was made by {name}, which is not in {ROOT}: put the script back to evaluate its runs")
    module_name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, path)
        sys.modules[module_name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[module_name])
    return sys.modules[module_name]


def main(args: Args) -> dict:
    """Evaluate, print the success rates, and return what evaluation.json holds."""
    if args.episodes < 1:
        raise UserError(f"--episodes {args.episodes}: at least one episode must be played")
    script = load_script(read_config(args.run_dir)["script"])
    jax.config.update("jax_numpy_rank_promotion", "raise")
    setup, service, params = script.load_run(args.run_dir)
    statistics, shown = script.evaluate(setup, service, params, args.episodes, jax.random.key(args.seed))
    run_dir = Path(args.run_dir)
    write_json(run_dir / "evaluation.json", {**dataclasses.asdict(args), **statistics})
    if args.film:
        make_film(film_frames(setup.world, service.goals, shown), run_dir / "film.gif")
    service.close()
    for name, rate in sorted(statistics["success_rates"].items(), key=lambda item: -item[1]):
        print(f"{rate:7.1%}  {name}")
    error = statistics["achievements_standard_error"]
    print(f"{statistics['achievements_per_episode']:.2f} ± {error:.2f} achievements per episode, {args.episodes} episodes")
    return statistics


if __name__ == "__main__":
    run_cli(main, Args)

"""Evaluate a trained run: python -m lab.evaluate --run-dir runs/<name> --episodes 64 --film."""

import dataclasses
import importlib.util
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from goals.service import GoalService
from lab.checkpoint import Checkpoints
from lab.cli import run_cli
from lab.errors import LastStepError, UserError, one_line
from lab.film import film_frames, make_film
from lab.machine import set_up_jax
from lab.metrics import score_key, score_label
from lab.play import HELD_OUT, Policy, play
from lab.pretrained import find_run, is_shipped, load_parameters, restore_shipped
from lab.ranges import Count, Ranged, Seed
from lab.run import read_config, sha256, write_json
from worlds import make_world

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Args(Ranged):
    """Evaluate a run by the script that trained it: evaluation.json, and film.gif if asked."""

    run_dir: str
    """directory of the run, or the name of a shipped agent"""
    episodes: Count = 64
    """episodes to play"""
    seed: Seed = HELD_OUT
    """seed of the worlds and the policy; default: that of the run's own evaluations"""
    film: bool = False
    """also film the first episode"""
    out: str | None = None
    """directory to write into; default: the run's, or runs/NAME for a shipped agent"""
    store: str | None = None
    """file of answers and embeddings; default: the run's"""
    script: str | None = None
    """file to evaluate by; default: the one that trained the run"""


def find_script(run_dir: str | Path) -> Path:
    """Return the script that trained a run, unchanged: this repository's, else where it was.

    A script here that has changed since is taken, and that is said. Raises UserError where there is
    none, and for one elsewhere that has changed: only a file that the run knows by its hash, or the
    user by its name, is run.
    """
    config, folder = read_config(run_dir), Path(run_dir).resolve()
    if not {"script", "arguments"} <= config.keys():
        raise UserError(f"{run_dir} has no whole config.json: is it the directory of a run?")
    name, wanted = config["script"], config.get("script_sha256")
    ours, there = (ROOT / name).resolve(), Path(config.get("script_file", name))
    is_here = ROOT in ours.parents and folder not in ours.parents and ours.suffix == ".py"
    if is_here and wanted in (None, sha256(ours)):
        return ours
    is_there = there.is_absolute() and folder not in there.parents and there.suffix == ".py"
    if is_there and wanted and sha256(there) == wanted:
        return there
    if is_here and ours.is_file():
        print(f"{name} is not what it was when it trained {run_dir}", file=sys.stderr, flush=True)
        return ours
    changed = "has changed since" if there.is_file() else "is not there"
    raise UserError(f"{run_dir} was made by {there}, which {changed}: give --script FILE")


def load_script(path: Path) -> ModuleType:
    """Import a script of this repository, or of another folder, which may import from its own."""
    if not path.is_file() or path.suffix != ".py":
        raise UserError(f"--script {path} is no Python file: give the script that trained the run")
    is_ours = ROOT in path.resolve().parents
    parts = path.resolve().relative_to(ROOT).with_suffix("").parts if is_ours else (path.stem,)
    name = ".".join(parts) if is_ours else f"{path.stem}_of_{sha256(path)[:12]}"
    if name not in sys.modules:
        if not is_ours:
            sys.path.append(str(path.resolve().parent))
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    if not all(hasattr(sys.modules[name], part) for part in ("Args", "make_setup", "act")):
        raise UserError(f"{path} trains nothing: give --script FILE, the script of the run")
    return sys.modules[name]


def load_run(
    script: ModuleType, run_dir: str | Path, store: str | None = None
) -> tuple[Policy, GoalService, Any]:
    """Return a run's policy, its service and the parameters of its last checkpoint.

    Arguments that the run did not know yet have their defaults. Where the policy reads nothing of
    goals nobody is asked for any: a film shows those that the stores have.
    """
    config = read_config(run_dir)
    recorded = config["arguments"]
    names = {field.name for field in dataclasses.fields(script.Args)}
    args = script.Args(**{name: value for name, value in recorded.items() if name in names})
    args = dataclasses.replace(args, store=store or args.store, fine_tune="all")
    if getattr(args, "goal_source", None) == "llm" and not args.tracks_goals:
        llm = config["language_model"] if args.llm_url else args.llm
        offline = {"llm": llm, "llm_url": None, "resolve": "replay", "on_missing": "no-goals"}
        args = dataclasses.replace(args, **offline)
    world, was = make_world(args), config.get("world")
    if was not in (None, repr(world)):
        raise UserError(f"{run_dir} is of another world ({was}; here {world!r}): train anew")
    setup = script.make_setup(args, world)
    service = GoalService(world, args, seed=args.seed)
    with ExitStack() as stack:
        stack.callback(service.close)
        service.prepare()
        if is_shipped(Path(run_dir)):
            restore_shipped(service, Path(run_dir))
        else:
            with Checkpoints(Path(run_dir) / "checkpoints") as checkpoints:
                service.restore(checkpoints.host()["service"])
        state = jax.eval_shape(partial(script.init_state, setup), service.tables)
        params = load_parameters(Path(run_dir), state.params)
        stack.pop_all()
    return Policy(setup, script.act), service, params


def main(args: Args) -> dict[str, Any]:
    """Evaluate, print the success rates, and return what evaluation.json holds."""
    run_dir = find_run(args.run_dir, "--run-dir")
    read_config(run_dir)  # is it a run at all?
    out = Path(args.out or (Path("runs") / run_dir.name if is_shipped(run_dir) else run_dir))
    _check_writable(out)
    script = load_script(Path(args.script) if args.script else find_script(run_dir))
    set_up_jax()
    policy, service, params = load_run(script, run_dir, args.store)
    key = jax.random.key(args.seed)
    statistics, shown = play(policy, service, params, args.episodes, key, args.film)
    world = policy.setup.world
    write_json(out / "evaluation.json", {**dataclasses.asdict(args), **statistics})
    service.close()
    for name, rate in sorted(statistics["success_rates"].items(), key=lambda item: -item[1]):
        print(f"{rate:7.1%}  {name}")
    score, words = statistics[score_key(world.score_name)], score_label(world.score_name)
    error = statistics[f"{world.score_name}_standard_error"]
    print(f"{score:.2f} ± {error:.2f} {words} per episode, {args.episodes} episodes")
    print(f"{out}: evaluation.json{', film.gif' * args.film}", flush=True)
    if args.film:
        try:
            make_film(film_frames(world, service.goals, shown), out / "film.gif")
        except Exception as error:  # of any kind: the evaluation stands
            why = one_line(error)
            raise LastStepError(f"the film failed ({why}): the rest is in {out}") from error
    return statistics


def _check_writable(out: Path) -> None:
    """Raise UserError before anything is played if the evaluation cannot be kept."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {out} ({error.strerror}): give --out DIRECTORY") from None


if __name__ == "__main__":
    run_cli(main, Args)

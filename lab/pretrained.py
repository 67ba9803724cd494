"""Agents that ship with the repository, and parameters of any run: python -m lab.pretrained.

A shipped agent is a folder pretrained/NAME: config.json, which names the command that trained it,
its evaluation, and params.safetensors, in half precision and without anything that could run code.
With --evidence service.json.gz has what was counted, by which its rules are corrected.
Wherever a run is named (--from-run, --guide, --run-dir of lab.evaluate) its NAME will do.

    python -m lab.pretrained --run-dir runs/mine --name ellm-crafter     ship one more
"""

import gzip
import json
import re
import shlex
import zlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from goals.service import GoalService
from goals.sources import find_recorded
from lab.checkpoint import Checkpoints
from lab.cli import parse, run_cli
from lab.errors import UserError, one_line
from lab.ranges import Ranged
from lab.run import SUMMARY, read_config, read_json, write_json
from worlds.world import World

SHIPPED = Path(__file__).resolve().parent.parent / "pretrained"
PARAMETERS = "params.safetensors"
SERVICE = "service.json.gz"
KEPT = ("script", "language_model", "world", "score_name", "prompts", "vectors", "git_commit")
OF_THE_RUN = ("run_dir", "store", "track", "film")  # arguments that say nothing of the agent


def find_run(name: str | Path, flag: str) -> Path:
    """Return the folder of a run, or of the shipped agent of that name; flag: who names it.

    Raises UserError where there is neither.
    """
    if Path(name).is_dir():
        return Path(name)
    if (SHIPPED / str(name)).is_dir():
        return SHIPPED / str(name)
    known = sorted(path.name for path in SHIPPED.glob("*") if path.is_dir())
    shipped = f", or a shipped agent: {', '.join(known)}" if known else ""
    raise UserError(f"{flag} {name} is not there: give the directory of a run{shipped}")


def is_shipped(run_dir: Path) -> bool:
    """Return whether a folder holds parameters alone, instead of checkpoints."""
    return (run_dir / PARAMETERS).is_file()


def restore_shipped(service: GoalService, run_dir: Path) -> None:
    """Bring a service to what a shipped agent's had counted with --evidence.

    Raises UserError where that is damaged.
    """
    file = run_dir / SERVICE
    if not getattr(service.args, "evidence", False):
        return
    try:
        service.restore(json.loads(gzip.decompress(file.read_bytes())))
    except (OSError, EOFError, ValueError, KeyError, TypeError, zlib.error) as error:
        raise UserError(f"{file} is damaged ({one_line(error)}): fetch it anew") from None


def load_parameters(run_dir: Path, like: Any) -> Any:
    """Return a run's parameters, bit for bit; `like` has their structure, shapes and dtypes.

    Raises UserError where they do not fit, naming what differs, and where there are none, or they
    are damaged.
    """
    if not is_shipped(run_dir):
        if not (run_dir / "checkpoints").is_dir():
            raise UserError(f"{run_dir} has no checkpoints: give a run that has trained")
        with Checkpoints(run_dir / "checkpoints") as checkpoints:
            params = checkpoints.restore_part("params", like)
        # As arrays that are tied to no device: else the first update, whose other arrays are not
        # either, would be compiled twice.
        return jax.tree.map(jnp.asarray, jax.device_get(params))
    file = run_dir / PARAMETERS
    try:
        found = load_file(file)
    except (SafetensorError, OSError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"{file} is damaged ({said}): fetch it anew") from None
    wanted = {jax.tree_util.keystr(path): x for path, x in jax.tree.leaves_with_path(like)}
    for name in [*wanted, *found]:
        there, here = (x[name].shape if name in x else "nothing" for x in (found, wanted))
        if there != here:
            raise UserError(
                f"the parameters in {file} do not fit ({name}: {there} there, {here} here)"
            )
        if found[name].dtype != np.float16 or not np.isfinite(found[name]).all():
            raise UserError(f"{file} is damaged ({name} is not of finite float16): fetch it anew")
    leaves = [jnp.asarray(found[name], x.dtype) for name, x in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


@dataclass(frozen=True)
class Args(Ranged):
    """Ship the agent of a finished run."""

    run_dir: str
    """directory of the run"""
    name: str
    """what it is called from now on: <kind>-<world>"""
    out: Path = SHIPPED
    """folder of the shipped agents"""


def _check_ships(args: Any, world: World, run_dir: str) -> None:
    """Raise UserError where an agent needs what does not ship with it."""
    if args.asks:
        raise UserError(
            f"{run_dir} goes on asking, and an agent ships without answers: "
            "give a run of --goal-form rules or pairs"
        )
    asked = getattr(args, "goal_source", None) == "llm" and args.tracks_goals
    if asked and args.goal_form not in find_recorded(world, args.llm):
        raise UserError(f"the answers of {args.llm} do not ship: record them (goals.record) first")
    for name in ("prompt", "placements", "from_run", "guide", "llm", "sentence_encoder"):
        value = getattr(args, name, None)
        if value is not None and (Path(value).is_absolute() or Path(value).exists()):
            flag = f"--{name.replace('_', '-')} {value}"
            raise UserError(f"{run_dir} needs {flag}, a file that does not ship with it")


def main(args: Args) -> Path:
    """Write the folder of the agent, and return it."""
    from lab.evaluate import find_script, load_run, load_script  # which itself reads parameters

    config, folder = read_config(args.run_dir), args.out / args.name
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", args.name):
        raise UserError(f"--name {args.name}: give one of small letters, digits, - and .")
    if folder.exists():
        raise UserError(f"--name {args.name}: {folder} is there already, give another name")
    file = Path(args.run_dir) / SUMMARY
    if not file.is_file() or "evaluation" not in read_json(file):
        raise UserError(f"{args.run_dir} is not finished and evaluated: let it go on first")
    script = load_script(find_script(args.run_dir))
    policy, service, params = load_run(script, args.run_dir)
    counted = service.state()
    service.close()
    _check_ships(policy.setup.args, policy.setup.world, args.run_dir)
    names = [field.name for field in fields(script.Args) if field.name not in OF_THE_RUN]
    arguments = {name: x for name, x in config["arguments"].items() if name in names}
    # What decides the other arguments' defaults comes first.
    plain, first = script.Args(), ("env", "preset", "task")
    flags = [f"--{name}={x}" for name in first if (x := arguments[name]) != getattr(plain, name)]
    default = parse(script.Args, lambda args: script.PRESETS[args.preset], flags)
    for name, value in arguments.items():
        if value != getattr(default, name):
            flag = name.replace("_", "-")
            flags.append(f"--no-{flag}" if value is False else f"--{flag}")
            flags[-1] += "" if isinstance(value, bool) else f"={value}"
    arrays = {
        jax.tree_util.keystr(path): np.asarray(x, np.float16)
        for path, x in jax.tree.leaves_with_path(params)
    }
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise UserError(f"a parameter of {args.run_dir} is too large for half precision")
    folder.mkdir(parents=True)
    save_file(arrays, folder / PARAMETERS)
    record = {"command": shlex.join(["python", config["script"], *flags]), "arguments": arguments}
    record |= {name: config[name] for name in KEPT if name in config}
    write_json(folder / "config.json", record)
    write_json(folder / SUMMARY, {"evaluation": read_json(file)["evaluation"]})
    if counted["evidence"]:
        (folder / SERVICE).write_bytes(gzip.compress(json.dumps(counted).encode(), mtime=0))
    size = (folder / PARAMETERS).stat().st_size / 2**20
    print(f"{folder}: {size:.2f} MiB, trained by {record['command']}")
    return folder


if __name__ == "__main__":
    run_cli(main, Args)

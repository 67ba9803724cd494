"""Sample the scenes that agents really meet, to grade goals by: python benchmarks/scenes.py --run-dirs runs/a runs/b.

Whole episodes are played at random and by the policy of each run, in worlds no run was trained in. What is kept of each source: dev
and test scenes, drawn step by step until enough distinct ones are together, with the oracle's word on each; and from random play
alone, unlabelled scenes to calibrate on. The hash of what a compact prompt tells of a scene says which split it is for, so no two
splits share a compact scene. `load` reads the file back.

Axes: M scenes, W scene words, C captions.
"""

import json
import shlex
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import ellm_ppo  # noqa: E402
from goals.tables import hash_scenes  # noqa: E402
from lab.cli import run_cli  # noqa: E402
from lab.errors import UserError  # noqa: E402
from lab.run import read_config, read_json  # noqa: E402

SPLITS = ("calibration", "dev", "test")
LABELLED = SPLITS[1:]
RANDOM = "random"


@dataclass(frozen=True)
class Args:
    """Play, count the scenes, draw some of them and write them down."""

    run_dirs: tuple[Path, ...]
    """runs whose policies play, besides random play"""
    steps: int = 400_000
    """steps that each run's policy plays at least; random play is half as long [env steps]"""
    num_worlds: int = 256
    """episodes played at once"""
    seed: int = 1000
    """seed of the worlds, the policies and the draws"""
    scenes_per_split: int = 150
    """distinct dev scenes, and as many test scenes, of each source"""
    calibration_scenes: int = 256
    """distinct unlabelled scenes of random play"""
    out: Path = ROOT / "benchmarks" / "scenes" / "crafter.npz"
    """where the scenes go"""
    visited: Path | None = None
    """also write all compact scenes here, the most visited first: arrays scenes [M, W] and visits [M]"""


@dataclass(frozen=True)
class Visits:
    """The distinct scenes of a play: scenes uint32 [M, W], visits int64 [M], shares float32 [M, C].

    A share is the part of a scene's visits in which the oracle suggested the caption: it sees more than the scene tells.
    """

    scenes: np.ndarray
    visits: np.ndarray
    shares: np.ndarray

    def __getitem__(self, rows) -> "Visits":
        return Visits(self.scenes[rows], self.visits[rows], self.shares[rows])


@dataclass(frozen=True)
class Sample:
    """Scenes of one split: scenes uint32 [M, W], shares float32 [M, C] as in `Visits`, visits int64 [M], sources str [M].

    weights: float64 [M], of mean 1 in each source; a mean with these weights stands for all steps of the play.
    """

    scenes: np.ndarray
    shares: np.ndarray
    visits: np.ndarray
    weights: np.ndarray
    sources: np.ndarray

    def __getitem__(self, rows) -> "Sample":
        return Sample(self.scenes[rows], self.shares[rows], self.visits[rows], self.weights[rows], self.sources[rows])


@dataclass(frozen=True)
class SceneSets:
    """What `load` returns; calibration: uint32 [M, W], unlabelled; header: how the file was made."""

    dev: Sample
    test: Sample
    calibration: np.ndarray
    header: dict


@partial(jax.jit, static_argnums=0)
def watch(setup, tables, params, keys: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Play an episode for each key [N]; return scenes [T, N, W], the oracle's word [T, N, C], and which steps count [T, N]."""

    def step(play, key):
        seen = jax.vmap(setup.world.scene)(play.states), jax.vmap(setup.world.oracle)(play.states), ~play.over
        return ellm_ppo.play_step(setup, tables, params, key, play)[0], seen

    start = ellm_ppo.start_play(setup, tables, keys)
    return jax.lax.scan(step, start, jax.random.split(key, setup.world.max_episode_steps))[1]


def play(setup, tables, params, num_steps: int, num_worlds: int, key: jax.Array) -> Visits:
    """Play whole episodes until there are `num_steps` steps, and count."""
    total, parts = 0, []
    while not parts or total < num_steps:
        key, worlds_key, play_key = jax.random.split(key, 3)
        scenes, oracle, played = map(np.asarray, watch(setup, tables, params, jax.random.split(worlds_key, num_worlds), play_key))
        parts.append(count(scenes[played], oracle[played], np.ones(played.sum(), np.int64)))
        total += played.sum()
    return count(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("scenes", "shares", "visits")))


def count(scenes: np.ndarray, shares: np.ndarray, visits: np.ndarray) -> Visits:
    """Merge equal scenes."""
    distinct, places = np.unique(scenes, axis=0, return_inverse=True)
    total = np.bincount(places, visits)
    sums = np.stack([np.bincount(places, visits * column) for column in shares.T], axis=1)
    return Visits(distinct, total.astype(np.int64), (sums / total[:, None]).astype(np.float32))


def split_of(world, scenes: np.ndarray) -> np.ndarray:
    """Return the split of each scene [M, W] as an index into SPLITS, [M]."""
    return hash_scenes(scenes & world.prompt_mask("compact")) % len(SPLITS)


def draw(visits: np.ndarray, num: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw steps until `num` distinct scenes are together; return these rows and their weights, of mean 1.

    A weight is the scene's visits over its chance to be among them, so that means stand for all visits. All scenes are taken if
    there are no more than `num`.
    """
    share = visits / visits.sum()
    if len(visits) <= num:
        return np.arange(len(visits)), share * len(visits)
    drawn = rng.choice(len(visits), size=1_000 * num, p=share)
    firsts = np.sort(np.unique(drawn, return_index=True)[1])[:num]
    rows, draws = drawn[firsts], firsts[-1] + 1
    weights = share[rows] / -np.expm1(draws * np.log1p(-share[rows]))
    return rows, weights / weights.mean()


def load(path: Path, world) -> SceneSets:
    """Read a file of scenes; raises UserError if it is damaged or speaks of other captions or facts than the world's."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        header = json.loads(str(arrays["header"]))
        names, columns = np.array(list(header["sources"])), ("scenes", "shares", "visits", "weights", "sources")
        samples = {split: {column: arrays[f"{split}_{column}"] for column in columns} for split in LABELLED}
        dev, test = (Sample(**sample | {"sources": names[sample["sources"]]}) for sample in samples.values())
        sets = SceneSets(dev, test, arrays["calibration"], header)
    except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read ({error}): make it anew by benchmarks/scenes.py") from error
    if (header["captions"], header["facts"]) != (list(world.captions), list(world.facts)):
        raise UserError(f"{path} was made with other words than {world.name} has now: make it anew by benchmarks/scenes.py")
    return sets


def command_line(script: str) -> str:
    """Return the command of this process; of files elsewhere on the machine only the name."""
    words = (Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:])
    return shlex.join(["python", script, *words])


def git_commit() -> str | None:
    """Return the commit that is checked out, None without one."""
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip() or None


def draw_splits(world, plays: dict[str, Visits], args: Args, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw the scenes of all splits; return the arrays of the file."""
    part = plays[RANDOM][split_of(world, plays[RANDOM].scenes) == SPLITS.index("calibration")]
    calibration = part.scenes[draw(part.visits, args.calibration_scenes, rng)[0]]
    drawn: dict[str, list[np.ndarray]] = {}
    for number, play in enumerate(plays.values()):
        splits = split_of(world, play.scenes)
        for split in LABELLED:
            part = play[splits == SPLITS.index(split)]
            rows, weights = draw(part.visits, args.scenes_per_split, rng)
            columns = {
                "scenes": part.scenes[rows],
                "shares": part.shares[rows],
                "visits": part.visits[rows],
                "weights": weights,
                "sources": np.full(len(rows), number, np.uint8),
            }
            for column, values in columns.items():
                drawn.setdefault(f"{split}_{column}", []).append(values)
    return {"calibration": calibration} | {name: np.concatenate(parts) for name, parts in drawn.items()}


def most_visited(world, plays: dict[str, Visits]) -> dict[str, np.ndarray]:
    """Return the compact scenes of all plays and their visits, the most visited first."""
    scenes = np.concatenate([play.scenes for play in plays.values()]) & world.prompt_mask("compact")
    distinct, places = np.unique(scenes, axis=0, return_inverse=True)
    visits = np.bincount(places, np.concatenate([play.visits for play in plays.values()])).astype(np.int64)
    order = np.argsort(-visits, kind="stable")
    return {"scenes": distinct[order], "visits": visits[order]}


def save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays to a compressed file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)


def main(args: Args) -> None:
    """Play, draw and write."""
    jax.config.update("jax_numpy_rank_promotion", "raise")
    if not args.run_dirs:
        raise UserError("--run-dirs: name at least one run whose policy plays")
    rng, key = np.random.default_rng(args.seed), jax.random.key(args.seed)
    plays: dict[str, Visits] = {}
    sources = {RANDOM: {"policy": "all actions equally likely"}}
    for number, run_dir in enumerate(args.run_dirs):
        setup, service, params = ellm_ppo.load_run(run_dir)
        world, name = setup.world, run_dir.name
        if setup.must_know_scene:
            raise UserError(f"the policy of {run_dir} reads words of scenes: give a run whose policy reads none")
        if name in sources:
            raise UserError(f"two runs are called {name}: give runs of different names")
        config, summary = read_config(run_dir), read_json(run_dir / "summary.json")
        sources[name] = {field: config["arguments"][field] for field in ("goal_source", "captions", "seed", "total_timesteps")}
        sources[name] |= {"run_commit": config["git_commit"], "achievements_per_episode": summary["achievements_per_episode"]}
        if number == 0:  # A network of zeros acts at random.
            still = jax.tree.map(jnp.zeros_like, params)
            plays[RANDOM] = play(setup, service.tables, still, args.steps // 2, args.num_worlds, jax.random.fold_in(key, 0))
        plays[name] = play(setup, service.tables, params, args.steps, args.num_worlds, jax.random.fold_in(key, number + 1))
        service.close()
    for name, visits in plays.items():
        sources[name] |= {"steps": int(visits.visits.sum()), "distinct_scenes": len(visits.scenes)}
        print(f"{name}: {sources[name]['steps']:,} steps, {len(visits.scenes):,} scenes")
    header = {
        "command": command_line("benchmarks/scenes.py"),
        "git_commit": git_commit(),
        "seed": args.seed,
        "sources": sources,
        "captions": world.captions,
        "facts": world.facts,
    }
    save(args.out, {"header": np.array(json.dumps(header)), **draw_splits(world, plays, args, rng)})
    if args.visited:
        save(args.visited, most_visited(world, plays))


if __name__ == "__main__":
    run_cli(main, Args)

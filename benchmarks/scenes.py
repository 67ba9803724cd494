"""Sample the scenes that agents meet, to grade goals by.

    python -m benchmarks.scenes --run-dirs runs/a runs/b

Whole episodes are played at random and by the policy of each run, in worlds no run was trained in.
What is kept of each source: dev and test scenes, drawn step by step until enough distinct ones are
together, with the oracle's word on each; and from random play alone, unlabelled scenes to calibrate
on. The hash of what a compact prompt tells of a scene says which split it is for, so no two splits
share a compact scene. `load` reads the file back.

Axes: T steps, N worlds, M scenes, W scene words, C captions.
"""

import json
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.origin import ROOT, command_line, git_commit
from goals.service import GoalService
from goals.tables import GoalTables, hash_scenes
from lab.cli import run_cli
from lab.errors import UserError
from lab.evaluate import find_script, load_run, load_script
from lab.machine import set_up_jax
from lab.metrics import score_key
from lab.play import Moment, Policy, advance, begin
from lab.ranges import Count, Ranged, Seed
from lab.run import SUMMARY, read_config, read_json
from worlds.world import Transition, World

SPLITS = ("calibration", "dev", "test")
LABELLED = SPLITS[1:]
RANDOM = "random"
COLUMNS = ("scenes", "shares", "visits", "weights", "sources")


@dataclass(frozen=True)
class Args(Ranged):
    """Play, count the scenes, draw some of them and write them down."""

    run_dirs: tuple[Path, ...]
    """runs whose policies play, besides random play"""
    steps: Count = 400_000
    """steps that each run's policy plays at least; random play is half as long [env steps]"""
    num_worlds: Count = 256
    """episodes played at once"""
    seed: Seed = 1000
    """seed of the worlds, the policies and the draws"""
    scenes_per_split: Count = 150
    """distinct dev scenes, and as many test scenes, of each source"""
    calibration_scenes: Count = 256
    """distinct unlabelled scenes of random play"""
    out: Path | None = None
    """where the scenes go; default: benchmarks/scenes/<world>.npz"""
    visited: Path | None = None
    """also write all compact scenes here, the most visited first: scenes [M, W] and visits [M]"""


@dataclass(frozen=True)
class Visits:
    """The distinct scenes of a play: scenes uint32 [M, W], visits int64 [M], shares float32 [M, C].

    A share is the part of a scene's visits in which the oracle suggested the caption: it sees more
    than the scene tells.
    """

    scenes: np.ndarray
    visits: np.ndarray
    shares: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> "Visits":
        return Visits(self.scenes[rows], self.visits[rows], self.shares[rows])


@dataclass(frozen=True)
class Sample:
    """Scenes of one split: scenes uint32 [M, W], shares and visits as in `Visits`, sources str [M].

    weights: float64 [M], of mean 1 in each source; a mean with these weights stands for all steps
    of the play.
    """

    scenes: np.ndarray
    shares: np.ndarray
    visits: np.ndarray
    weights: np.ndarray
    sources: np.ndarray

    def __getitem__(self, rows: np.ndarray | slice) -> "Sample":
        return Sample(*(getattr(self, column)[rows] for column in COLUMNS))


@dataclass(frozen=True)
class SceneSets:
    """What `load` returns; calibration: uint32 [M, W], unlabelled; header: how it was made."""

    dev: Sample
    test: Sample
    calibration: np.ndarray
    header: dict[str, Any]


def act_at_random(
    setup: Any, tables: GoalTables, params: Any, key: jax.Array, moment: Moment
) -> tuple[Moment, Transition, dict[str, jax.Array]]:
    """Act in every world with all actions equally likely; the `act` of a `Policy`."""
    world, num_worlds = setup.world, len(moment.captions_so_far)
    action_key, world_key = jax.random.split(key)
    actions = jax.random.randint(action_key, (num_worlds,), 0, len(world.actions))
    keys = jax.random.split(world_key, num_worlds)
    states, transition = jax.vmap(world.step)(keys, moment.states, actions)
    return moment.replace(states=states), transition, {}


@partial(jax.jit, static_argnums=(0, 5))
def watch(
    policy: Policy,
    tables: GoalTables,
    params: Any,
    keys: jax.Array,
    key: jax.Array,
    num_goals: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Play an episode for each key [N].

    Returns scenes [T, N, W], the oracle's word [T, N, C], and which steps count [T, N].
    """
    world = policy.setup.world

    def step(episodes, key):
        states = episodes.moment.states
        seen = jax.vmap(world.scene)(states), jax.vmap(world.oracle)(states), ~episodes.over
        return advance(policy, tables, params, key, episodes)[0], seen

    episodes = begin(world, keys, num_goals)
    return jax.lax.scan(step, episodes, jax.random.split(key, world.max_episode_steps))[1]


def play(
    policy: Policy,
    service: GoalService,
    params: Any,
    num_steps: int,
    num_worlds: int,
    key: jax.Array,
) -> Visits:
    """Play whole episodes until there are `num_steps` steps, and count."""
    total, parts = 0, []
    while not parts or total < num_steps:
        key, worlds_key, play_key = jax.random.split(key, 3)
        keys = jax.random.split(worlds_key, num_worlds)
        seen = watch(policy, service.tables, params, keys, play_key, service.num_goals)
        scenes, oracle, played = map(np.asarray, seen)
        parts.append(count(scenes[played], oracle[played], np.ones(played.sum(), np.int64)))
        total += played.sum()
    names = ("scenes", "shares", "visits")
    return count(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def count(scenes: np.ndarray, shares: np.ndarray, visits: np.ndarray) -> Visits:
    """Merge equal scenes."""
    distinct, places = np.unique(scenes, axis=0, return_inverse=True)
    total = np.bincount(places, visits)
    sums = np.stack([np.bincount(places, visits * column) for column in shares.T], axis=1)
    return Visits(distinct, total.astype(np.int64), (sums / total[:, None]).astype(np.float32))


def split_of(world: World, scenes: np.ndarray) -> np.ndarray:
    """Return the split of each scene [M, W] as an index into SPLITS, [M]."""
    return hash_scenes(scenes & world.prompt_mask("compact")) % len(SPLITS)


def draw(visits: np.ndarray, num: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw steps until `num` distinct scenes are together; return rows, and weights of mean 1.

    A weight is the scene's visits over its chance to be among them, so that means stand for all
    visits. All scenes are taken if there are no more than `num`.
    """
    share = visits / visits.sum()
    if len(visits) <= num:
        return np.arange(len(visits)), share * len(visits)
    drawn = rng.choice(len(visits), size=1_000 * num, p=share)
    firsts = np.sort(np.unique(drawn, return_index=True)[1])[:num]
    rows, draws = drawn[firsts], firsts[-1] + 1
    weights = share[rows] / -np.expm1(draws * np.log1p(-share[rows]))
    return rows, weights / weights.mean()


def scenes_path(world: World) -> Path:
    """Return where the scenes of a world are."""
    return ROOT / "benchmarks" / "scenes" / f"{world.name}.npz"


def load(path: Path, world: World) -> SceneSets:
    """Read a file of scenes.

    Raises UserError if it is damaged or speaks of other captions or facts than the world's.
    """
    again = "make it anew by benchmarks.scenes"
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        header = json.loads(str(arrays["header"]))
        names = np.array(list(header["sources"]))
        samples = []
        for split in LABELLED:
            sample = {column: arrays[f"{split}_{column}"] for column in COLUMNS}
            samples.append(Sample(**sample | {"sources": names[sample["sources"]]}))
        sets = SceneSets(*samples, arrays["calibration"], header)
    except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read ({error}): {again}") from error
    if (header["captions"], header["facts"]) != (list(world.captions), list(world.facts)):
        raise UserError(f"{path} was made with other words than {world.name} has now: {again}")
    return sets


def draw_splits(
    world: World, plays: dict[str, Visits], args: Args, rng: np.random.Generator
) -> dict[str, np.ndarray]:
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
    return {"calibration": calibration} | {
        name: np.concatenate(parts) for name, parts in drawn.items()
    }


def most_visited(world: World, plays: dict[str, Visits]) -> dict[str, np.ndarray]:
    """Return the compact scenes of all plays and their visits, the most visited first."""
    scenes = np.concatenate([play.scenes for play in plays.values()]) & world.prompt_mask("compact")
    distinct, places = np.unique(scenes, axis=0, return_inverse=True)
    visits = np.bincount(places, np.concatenate([play.visits for play in plays.values()])).astype(
        np.int64
    )
    order = np.argsort(-visits, kind="stable")
    return {"scenes": distinct[order], "visits": visits[order]}


def save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays to a compressed file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)


def describe_run(run_dir: Path, world: World) -> dict[str, Any]:
    """Return what the file says of a run whose policy played."""
    config, summary = read_config(run_dir), read_json(run_dir / SUMMARY)
    fields = ("goal_source", "captions", "seed", "total_timesteps")
    score = score_key(world.score_name)
    return {
        **{field: config["arguments"].get(field) for field in fields},
        "run_commit": config["git_commit"],
        score: summary[score],
    }


def play_all(args: Args) -> tuple[World, dict[str, Visits], dict[str, dict[str, Any]]]:
    """Play at random and by each run's policy; return the world, the plays and their sources."""
    key, world = jax.random.key(args.seed), None
    plays: dict[str, Visits] = {}
    sources = {RANDOM: {"policy": "all actions equally likely"}}
    for number, run_dir in enumerate(args.run_dirs):
        if run_dir.name in sources:
            raise UserError(f"two runs are called {run_dir.name}: give runs of different names")
        policy, service, params = load_run(load_script(find_script(run_dir)), run_dir)
        setup, where = policy.setup, (service, params)
        world = world or setup.world
        if (setup.world.name, setup.world.facts) != (world.name, world.facts):
            raise UserError(f"{run_dir} lived in another world: give runs of one world")
        if setup.args.must_know_scene:
            needs = f"the policy of {run_dir} waits for answers or embeddings of each scene"
            raise UserError(f"{needs}: give a run whose policy does not")
        sources[run_dir.name] = describe_run(run_dir, world)
        if number == 0:
            at_random, steps = Policy(setup, act_at_random), args.steps // 2
            first_key = jax.random.fold_in(key, 0)
            plays[RANDOM] = play(at_random, *where, steps, args.num_worlds, first_key)
        play_key = jax.random.fold_in(key, number + 1)
        plays[run_dir.name] = play(policy, *where, args.steps, args.num_worlds, play_key)
        service.close()
    return world, plays, sources


def main(args: Args) -> None:
    """Play, draw and write."""
    set_up_jax()
    if not args.run_dirs:
        raise UserError("--run-dirs: name at least one run whose policy plays")
    world, plays, sources = play_all(args)
    for name, visits in plays.items():
        steps, num_scenes = int(visits.visits.sum()), len(visits.scenes)
        sources[name] |= {"steps": steps, "distinct_scenes": num_scenes}
        print(f"{name}: {steps:,} steps, {num_scenes:,} scenes")
    header = {
        "command": command_line("scenes"),
        "git_commit": git_commit(),
        "seed": args.seed,
        "sources": sources,
        "captions": world.captions,
        "facts": world.facts,
    }
    drawn = draw_splits(world, plays, args, np.random.default_rng(args.seed))
    save(args.out or scenes_path(world), {"header": np.array(json.dumps(header)), **drawn})
    if args.visited:
        save(args.visited, most_visited(world, plays))


if __name__ == "__main__":
    run_cli(main, Args)

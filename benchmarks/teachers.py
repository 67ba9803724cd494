"""Compare teachers: how good a model's rules are, before and after play, and what is learned.

    python -m benchmarks.teachers                          both shipped models, recorded answers
    python -m benchmarks.teachers --llms gemma3-270m my.gguf org/model --seeds 1 2 3
    python -m benchmarks.teachers --llms my.gguf --prompts mine/crafter_rules terse/crafter_rules
    python -m benchmarks.teachers --grade runs/a runs/b    grade finished runs, train nothing

A teacher is a model in one wording of the questions. Beside them stand the twin without a model,
which begins with no rules, and the oracle. A model without a recording is asked before anything is
trained; its answers are kept in the folder of the runs, so all seeds learn from the same. Each run
is a row of results/teachers/runs.jsonl; stopping and sharing the work are as in
benchmarks.pretraining. table.md and teachers.png beside it are of all rows that are there.

Rules are graded on the test scenes as by benchmarks.goal_quality: by visits, with the scene's
grounding. A run's rules are graded as the model gave them, and as its last checkpoint has them,
without doubt. No truth written by hand says which rules are right: a goal's rule is right if its
own F1, over all scenes, is at most `TOLERANCE` below that of the ceiling (what was right in most
visits of a scene). Gradable are the goals that the ceiling or the rules ever suggest; a rule for
what the ceiling never suggests is wrong. Axes: M scenes, C captions.
"""

import itertools
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from filelock import FileLock

from benchmarks import pretraining
from benchmarks.goal_quality import CEILING, f1_error, grade, references
from benchmarks.origin import RESULTS, ROOT, command_line, git_commit
from benchmarks.pretraining import EVIDENCE, GROUNDED, MAP, MILLION, ORACLE, PPO, ROWS, VERBS
from benchmarks.scenes import Sample, load, scenes_path
from benchmarks.statistics import rounded
from benchmarks.teachers_figures import NOTES, WHEN, draw, table
from goals import record
from goals.arguments import GoalArgs
from goals.model import GEMMA
from goals.service import GoalService
from goals.sources import MODEL_FILES, find_recorded
from goals.tables import GoalTables, suggest
from lab.checkpoint import Checkpoints
from lab.cli import run_cli
from lab.errors import UserError
from lab.ranges import Count, Ranged, Seed
from lab.run import read_config, read_json, write_json, write_text
from worlds import make_world
from worlds.world import World, WorldArgs

TOLERANCE = 0.05
SHOWN = 10  # wrong rules that are printed; grades.json has all
TWIN, TRUTH = "no model", "oracle"


@dataclass(frozen=True)
class Args(Ranged):
    """Ask each model, train on its rules what is missing, grade and compare."""

    llms: tuple[str, ...] = tuple(MODEL_FILES)
    """models, each as --llm of ellm_ppo.py"""
    prompts: tuple[str, ...] = ()
    """wordings, each as --prompt of ellm_ppo.py: folder/prefix of its files; default: the
    world's"""
    llm_url: str | None = None
    """OpenAI-compatible server to ask for the models"""
    llm_engine: Literal["auto", "llama.cpp", "transformers"] = "auto"
    """what computes .gguf files"""
    seeds: tuple[Seed, ...] = (1, 2, 3)
    """seeds of each teacher"""
    total_timesteps: Count = MILLION
    """length of a run [env steps]"""
    grade: tuple[Path, ...] = ()
    """finished --evidence runs to grade, instead of training"""
    env: str = WorldArgs().env
    """the world, which has a file of scenes"""
    scenes: Path | None = None
    """the scenes; default: benchmarks/scenes/<world>.npz"""
    runs: Path = ROOT / "runs" / "teachers"
    """where the runs' directories and the answers are"""
    results: Path = RESULTS / "teachers"
    """where runs.jsonl, the table and the picture are"""


# GRADE
def grade_rules(world: World, sample: Sample, suggested: np.ndarray) -> dict[str, Any]:
    """Return F1 with its error, and how many rules are right, of how many gradable ones.

    suggested: bool [M, C], what the rules suggest in the scenes; "wrong" are the other goals.
    """
    ceiling = references(world, sample)[CEILING]
    own, best = (_f1_by_goal(goals, sample) for goals in (suggested, ceiling))
    is_gradable = ceiling.any(0) | suggested.any(0)
    is_right = ceiling.any(0) & (own >= best - TOLERANCE)
    return {
        "f1": rounded(grade(suggested, sample.shares, sample.weights)["f1"]),
        "f1_error": rounded(f1_error(suggested, sample.shares, sample.weights)),
        "right": int(is_right.sum()),
        "gradable": int(is_gradable.sum()),
        "wrong": [world.captions[i] for i in np.flatnonzero(is_gradable & ~is_right)],
    }


def grade_run(world: World, sample: Sample, run_dir: Path) -> dict[str, Any]:
    """Return the grades of a run's rules "before" and "after" correction, and what was corrected.

    Nobody is asked. Raises UserError for a run without --evidence, and for one of another world.
    """
    service = _open_service(world, run_dir)
    try:
        service.prepare()
        before = _suggest(service, service.evaluation_tables, sample)
        with Checkpoints(run_dir / "checkpoints") as checkpoints:
            service.restore(checkpoints.host()["service"])
        after = _suggest(service, service.evaluation_tables, sample)
        corrected = service.metrics()["rules_corrected"]
    finally:
        service.close()
    grades = [grade_rules(world, sample, goals) for goals in (before, after)]
    ceiling = grade(references(world, sample)[CEILING], sample.shares, sample.weights)["f1"]
    return {
        "before": grades[0],
        "after": grades[1],
        "corrected": corrected,
        "ceiling": rounded(ceiling),
    }


def _f1_by_goal(suggested: np.ndarray, sample: Sample) -> np.ndarray:
    """Return the F1 of every caption, float [C]; 0 where it is neither suggested nor right."""
    parts = (suggested * sample.shares, suggested, sample.shares)
    right, given, wanted = (sample.weights @ part for part in parts)
    return 2 * right / np.maximum(given + wanted, 1e-9)


def _suggest(service: GoalService, tables: GoalTables, sample: Sample) -> np.ndarray:
    """Return what the tables suggest in the scenes, bool [M, C]."""
    scenes = jnp.asarray(sample.scenes)
    goals = suggest(service.args, service.world, tables, None, None, scenes)
    return np.asarray(goals)[:, : len(service.world.captions)]


def _open_service(world: World, run_dir: Path) -> GoalService:
    """Open the service of a run, by stores alone: those that have answers of the run's model."""
    config = read_config(run_dir)
    recorded, was = config.get("arguments", {}), config.get("world")
    if was != repr(world):
        raise UserError(f"{run_dir} is of another world ({was}; here {world!r}): give --env")
    if not recorded.get("evidence"):
        raise UserError(f"{run_dir} is no run with --evidence: its rules were not corrected")
    names = {field.name for field in fields(GoalArgs)}
    args = GoalArgs(**{name: value for name, value in recorded.items() if name in names})
    args = replace(args, llm_url=None, resolve="replay")
    service = GoalService(world, args, seed=recorded["seed"])
    if service.language_model != config.get("language_model"):  # recorded of another engine
        service.close()
        args = replace(args, llm=config["language_model"])
        service = GoalService(world, args, seed=recorded["seed"])
    return service


# ASK
class Teacher(NamedTuple):
    """A model in one wording; store: where its answers go, None if they are recorded."""

    name: str
    llm: str
    prompt: str | None
    store: Path | None

    @property
    def goal_args(self) -> dict[str, str]:
        """Return the arguments of a run that learns from its answers."""
        found = {"llm": self.llm, "resolve": "replay"}
        if self.store is not None:
            found |= {"llm": _near(self.store), "on_missing": "no-goals"}
        return found | ({"prompt": self.prompt} if self.prompt else {})


def find_teachers(args: Args, world: World) -> list[Teacher]:
    """Return a teacher for each model and wording; raises UserError for two of one name."""
    teachers, known = [], {_folder(name) for name in (TWIN, TRUTH)}
    for llm, prompt in itertools.product(args.llms, args.prompts or (None,)):
        path, store = Path(llm), None
        name = path.name if path.exists() else llm
        if llm.lower().endswith((".gguf", ".sqlite")):
            name = path.stem
        if prompt is not None:
            wording = Path(prompt).resolve()
            name, prompt = f"{name}, {wording.parent.name}/{wording.name}", _near(wording)
        if _folder(name) in known:
            raise UserError(f"--llms and --prompts: two teachers are called {name}: rename a file")
        known.add(_folder(name))
        if _is_asked(llm, prompt, args, world):
            store = args.runs / "answers" / f"{_folder(name)}.sqlite"
        teachers.append(Teacher(name, _near(path) if path.exists() else llm, prompt, store))
    return teachers


def _is_asked(llm: str, prompt: str | None, args: Args, world: World) -> bool:
    """Return whether a live model is asked, rather than a recording read."""
    if llm.endswith(".sqlite") or args.llm_url:
        return not llm.endswith(".sqlite")
    if llm in MODEL_FILES and llm != GEMMA:  # known by its recording alone
        return False
    return prompt is not None or "rules" not in find_recorded(world, llm)


def ask(teacher: Teacher, args: Args, world: World) -> dict[str, Any]:
    """Make sure that all questions have answers; return how many, and the minutes of asking."""
    minutes = None if teacher.store is None else _record(teacher, args)
    args.runs.mkdir(parents=True, exist_ok=True)
    seen = {"text_observation": "none", "goal_conditioned": False}
    goal_args = GoalArgs(**teacher.goal_args, **seen, store=str(args.runs / "store.sqlite"))
    service = GoalService(world, goal_args)
    try:
        service.prepare()
        return {"questions": service.usage.store_hits, "minutes": rounded(minutes)}
    finally:
        service.close()


def _record(teacher: Teacher, args: Args) -> float:
    """Ask a live model what its store lacks; return the minutes, those of earlier tries too."""
    facts = teacher.store.with_suffix(".json")
    facts.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{teacher.store}.lock"):
        known = read_json(facts) if facts.exists() else {"seconds": 0.0, "finished": False}
        if known["finished"]:
            return known["seconds"] / 60
        start = time.perf_counter()
        how = {"llm_url": args.llm_url, "llm_engine": args.llm_engine, "env": args.env}
        try:
            record.main(record.Args(teacher.llm, teacher.store, prompt=teacher.prompt, **how))
            known["finished"] = True
        finally:
            known["seconds"] += time.perf_counter() - start
            write_json(facts, known)
    return known["seconds"] / 60


def _folder(name: str) -> str:
    return "-".join(re.findall(r"[\w.]+", name))


def _near(path: Path) -> str:
    """Return a path as seen from here, where the trainings start; a far one as it is."""
    path = path.resolve()
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


# TRAIN
def make_methods(teachers: Sequence[Teacher], args: Args) -> dict[str, pretraining.Method]:
    """Return what is run, by name: the teachers, then the twin without a model, and the oracle.

    Raises UserError where rows of another length are there.
    """
    lengths = {row["total_timesteps"] for row in pretraining.read_rows(args.results)}
    if lengths - {args.total_timesteps}:
        there = f"{args.results / ROWS} has rows of {max(lengths):,} env steps"
        raise UserError(f"{there}: give that --total-timesteps, or other --runs and --results")
    sources = {
        teacher.name: tuple(
            word
            for name, value in teacher.goal_args.items()
            for word in (f"--{name.replace('_', '-')}", value)
        )
        for teacher in teachers
    }
    sources |= {TWIN: GROUNDED, TRUTH: ORACLE}
    where = () if args.env == WorldArgs().env else ("--env", args.env)
    return {
        name: pretraining.Method(
            "teachers",
            (PPO, *source, *VERBS, *MAP, *(() if name == TRUTH else EVIDENCE), *where),
            args.seeds,
            args.total_timesteps,
        )
        for name, source in sources.items()
    }


# REPORT
def grade_all(args: Args, world: World, sample: Sample) -> None:
    """Grade finished runs: print the figures, and write grades.json."""
    found = [{"run": path.name, **grade_run(world, sample, path)} for path in args.grade]
    for grades in found:
        said = f"{grades['corrected']} corrections, F1 of the ceiling {grades['ceiling']}"
        print(f"{grades['run']}: {said}")
        for when in WHEN:
            of, wrong = grades[when], ", ".join(grades[when]["wrong"][:SHOWN])
            more = ", ..." if len(of["wrong"]) > SHOWN else ""
            numbers = f"F1 {of['f1']:.3f} ± {of['f1_error']:.3f}"
            numbers += f", {of['right']} of {of['gradable']} rules right"
            print(f"  {when}: {numbers}; wrong: {wrong or 'none'}{more}")
    args.results.mkdir(parents=True, exist_ok=True)
    origin = {"command": command_line("teachers"), "git_commit": git_commit()}
    write_json(args.results / "grades.json", {**origin, "runs": found})


def main(args: Args) -> None:
    """Compare teachers, or grade runs; exits with 1 if a run failed."""
    jax.config.update("jax_platforms", "cpu")  # an accelerator is for the trainings
    world = make_world(WorldArgs(env=args.env))
    sample = load(args.scenes or scenes_path(world), world).test
    if args.grade:
        grade_all(args, world, sample)
        return
    teachers = find_teachers(args, world)
    methods = make_methods(teachers, args)
    runs = [(name, seed) for seed in args.seeds for name in methods]
    done = {(row["method"], row["seed"]) for row in pretraining.read_rows(args.results)}
    missing = {name for name, seed in runs if (name, seed) not in done}
    asked = {t.name: ask(t, args, world) for t in teachers if t.name in missing}

    def add(name: str, run_dir: Path) -> dict[str, Any]:
        grades = None if name == TRUTH else grade_run(world, sample, run_dir)
        return {"asked": asked.get(name), "grades": grades}

    try:
        pretraining.run_all(runs, args, methods, add)
    finally:
        rows = pretraining.read_rows(args.results)
        if rows:
            notes = NOTES.format(tolerance=TOLERANCE, steps=args.total_timesteps)
            write_text(args.results / "table.md", f"{table(rows)}\n{notes}")
            draw(rows, args.results / "teachers.png")


if __name__ == "__main__":
    run_cli(main, Args)

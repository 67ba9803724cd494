"""Grade a language model's judgement of where things belong against a table that people made.

    python -m benchmarks.judgement                    test objects, every store that ships
    python -m benchmarks.judgement --split valid      to choose thresholds by
    python -m benchmarks.judgement --stores mine.sqlite --placements ranks.npz

Nobody is asked: it reads recorded answers (`python -m goals.record --form pairs --things FILE`) and
says of how many objects each figure is. Things are judged as a house does it, some at a time beside
the world's 40 references, over whose scores they are centred. O objects, P places.

Every figure is over pairs of an object and a place.
- AUC: how often a right pair scores higher than a wrong one; ±: its standard error over the draw of
  the objects (bootstrap).
- accuracy, precision, recall, F1: of the pairs said to belong together, by the model's recipe. Most
  pairs are wrong, so that to say no to all is accurate.
- first two: share of objects one of whose two best places is right.
References that ask no model: the sentence similarity of thing and place, centred over both; and,
told where the train objects belong, which no model is, the share of them that belong in a place
(place prior), and how alike the thing is to one of them that does (alike). Their thresholds are the
best by F1 on valid objects.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.origin import RESULTS, command_line, git_commit, machine
from goals.arguments import GoalArgs
from goals.asking import Asker
from goals.pairs import PLACEHOLDERS, PairsForm
from goals.rules import centre, unit
from goals.sentence_encoder import SentenceEncoder, load_sentence_encoder
from goals.store import Store
from lab.cli import run_cli
from lab.errors import UserError
from lab.ranges import Count, Ranged
from lab.run import to_json, write_json
from worlds import make_world
from worlds.housekeep.houses import find_truth
from worlds.housekeep.truth import SPLITS, Truth
from worlds.housekeep.world import reference_things
from worlds.world import World, WorldArgs

RESAMPLES = 300
FIGURES = ("auc", "auc_error", "accuracy", "precision", "recall", "f1", "first_two")
Judge = Callable[[Sequence[str]], np.ndarray]  # things to scores [T, P]


@dataclass(frozen=True)
class Args(Ranged):
    """Grade recorded judgements of where things belong."""

    stores: tuple[Path, ...] = ()
    """recorded stores; default: all of the world that ship"""
    split: Literal["test", "valid"] = "test"
    """valid: to choose thresholds by; test: to report"""
    placements: Path | None = None
    """people's rankings, instead of TextWorld Commonsense"""
    group: Count = 10
    """so many things are judged at a time, as many as a house has"""
    sentence_encoder: str = GoalArgs.sentence_encoder
    """compares things and places, as a reference"""
    out: Path | None = None
    """the JSON; default: results/housekeep/judgement.json, with -people for people's rankings and
    -valid for valid objects"""


# ------------------------------------------------------------------------------------------ grading


def auc(scores: np.ndarray, right: np.ndarray) -> float:
    """Return how often a right pair scores above a wrong one, ties half; arrays [O, P]."""
    values, inverse = np.unique(scores, return_inverse=True)
    wins = np.bincount(inverse.ravel()[right.ravel()], minlength=len(values))
    losses = np.bincount(inverse.ravel()[~right.ravel()], minlength=len(values))
    below = np.cumsum(losses) - losses / 2
    pairs = wins.sum() * losses.sum()
    return float(wins @ below / pairs) if pairs else float("nan")


def grade(scores: np.ndarray, belongs: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """Return all FIGURES: scores float [O, P]; belongs, as said, and right bool [O, P]."""
    rng = np.random.default_rng(0)
    draws = rng.integers(len(scores), size=(RESAMPLES, len(scores)))
    hits, said, true = (float(part.sum()) for part in (belongs & right, belongs, right))
    best = np.argsort(-scores, axis=1, kind="stable")[:, :2]
    return {
        "auc": auc(scores, right),
        "auc_error": float(np.nanstd([auc(scores[draw], right[draw]) for draw in draws])),
        "accuracy": float((belongs == right).mean()),
        "precision": hits / said if said else float("nan"),
        "recall": hits / true if true else float("nan"),
        "f1": 2 * hits / (said + true) if said + true else float("nan"),
        "first_two": float(np.take_along_axis(right, best, 1).any(1).mean()),
    }


def best_threshold(scores: np.ndarray, right: np.ndarray) -> float:
    """Return the threshold above which pairs have the best F1, between two scores of [O, P]."""
    order = np.argsort(-scores, axis=None)
    values, hits = scores.ravel()[order], np.cumsum(right.ravel()[order])
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + right.sum())
    ends = np.flatnonzero(np.append(values[1:] < values[:-1], True))  # of runs of equal scores
    last = ends[np.argmax(f1[ends])]
    following = values[last + 1] if last + 1 < len(values) else values[last] - 1
    return float((values[last] + following) / 2)


# ------------------------------------------------------------------------------------------ judging


@dataclass(frozen=True)
class Bench:
    """What a judge is graded on."""

    world: World
    truth: Truth
    split: str
    group: int

    def objects(self, split: str) -> list[str]:
        """Return the objects of a split."""
        pairs = zip(self.truth.objects, self.truth.split, strict=True)
        return [name for name, number in pairs if SPLITS[number] == split]

    def right(self, things: Sequence[str]) -> np.ndarray:
        """Return where things belong, bool [len(things), P]."""
        return self.truth.belongs[[self.truth.objects.index(thing) for thing in things]]

    def judge(self, judge: Judge, things: Sequence[str]) -> np.ndarray:
        """Judge things, `group` at a time beside the references; return scores [len(things), P]."""
        references = reference_things(self.truth)
        groups = [things[i : i + self.group] for i in range(0, len(things), self.group)]
        return np.concatenate([judge([*group, *references])[: len(group)] for group in groups])

    def report(
        self, things: Sequence[str], scores: np.ndarray, belongs: np.ndarray
    ) -> dict[str, Any]:
        """Return the figures of things, and of each category of them."""
        right = self.right(things)
        of = [self.truth.category[self.truth.objects.index(thing)] for thing in things]
        parts = {name: np.array([other == name for other in of]) for name in sorted(set(of))}
        return {
            "num_objects": len(things),
            **grade(scores, belongs, right),
            "best_threshold": best_threshold(scores, right) if self.split == "valid" else None,
            "by_category": {
                name: {"num_objects": int(part.sum())}
                | grade(scores[part], belongs[part], right[part])
                for name, part in parts.items()
            },
        }


def grade_store(bench: Bench, path: Path) -> dict[str, Any]:
    """Return the figures of a store's models by "model, way of scoring", where it has answers."""
    figures = {}
    with Store(path, read_only=True) as store:
        for model, scoring in itertools.product(store.models(), PLACEHOLDERS):
            form = PairsForm(bench.world, model=model, scoring=scoring)
            answers = Asker(model, store, on_missing="no-goals").answers
            judge = partial(form.judge, answers)
            things = bench.objects(bench.split)
            is_known = ~np.isnan(judge(things)).any(1)
            known = [thing for thing, is_in in zip(things, is_known, strict=True) if is_in]
            if known:
                scores = bench.judge(judge, known)
                threshold = form.recipe.pair_threshold if scoring == "recipe" else 0.0
                told = {"model": model, "prompts": form.prompts, "threshold": threshold}
                figures[f"{model.partition('.gguf')[0]}, {scoring}"] = told | bench.report(
                    known, scores, form.choose(scores)
                )
    return figures


def grade_references(bench: Bench, encoder: SentenceEncoder) -> dict[str, Any]:
    """Return the figures of what asks no model."""
    train = bench.objects("train")
    right, known = bench.right(train), encoder.encode(train)
    places = encoder.encode(list(bench.truth.places))

    def compare(things: Sequence[str]) -> np.ndarray:
        return unit(centre((encoder.encode(list(things)) @ places.T).astype(np.float64)))

    def find_alike(things: Sequence[str]) -> np.ndarray:
        alike = encoder.encode(list(things)) @ known.T  # [T, train objects]
        return np.where(right.T[None], alike[:, None], -1.0).max(-1)

    judges = {
        "sentence similarity": compare,
        "place prior, told": lambda things: np.tile(right.mean(0), (len(things), 1)),
        "alike, told": find_alike,
    }
    figures = {}
    for name, judge in judges.items():
        valid, things = bench.objects("valid"), bench.objects(bench.split)
        threshold = best_threshold(bench.judge(judge, valid), bench.right(valid))
        scores = bench.judge(judge, things)
        figures[name] = {"threshold": threshold} | bench.report(things, scores, scores > threshold)
    return figures


# --------------------------------------------------------------------------------------------- main


def print_table(figures: Mapping[str, Any]) -> None:
    """Print the figures of `main`."""
    columns = ("AUC", "±", "accuracy", "P", "R", "F1", "first two", "objects")
    print(" " * 52 + "".join(f"{column:>10}" for column in columns))
    for name, row in figures.items():
        cells = "".join(f"{row[key]:10.3f}" for key in FIGURES)
        print(f"{name:52}{cells}{row['num_objects']:10}")
        if row["best_threshold"] is not None:
            print(f"{'':4}best threshold {row['best_threshold']:.2f}")


def main(args: Args) -> dict[str, Any]:
    """Grade, print and write; return what the JSON holds."""
    if args.out and args.out.is_dir():
        raise UserError(f"--out {args.out} is a folder: give the name of a file in it")
    world = make_world(WorldArgs(env="housekeep", placements=args.placements))
    bench = Bench(world, find_truth(args.placements), args.split, args.group)
    paths = args.stores or sorted(world.recorded.glob(f"{world.name}_pairs_*.sqlite"))
    models = {}
    for path in paths:
        models |= grade_store(bench, path)
    if not models:
        stores = ", ".join(map(str, paths)) or world.recorded
        raise UserError(
            f"{stores}: no answers about the {args.split} objects: "
            "record some with python -m goals.record --form pairs --things FILE"
        )
    references = grade_references(bench, load_sentence_encoder(args.sentence_encoder))
    print_table(references | models)
    results = {
        "world": world.name,
        "table": args.placements.name if args.placements else "TextWorld Commonsense",
        "split": args.split,
        "group": args.group,
        "command": command_line("judgement"),
        "git_commit": git_commit(),
        "machine": machine(),
        "references": references,
        "models": models,
    }
    kind = ("-people" if args.placements else "") + ("" if args.split == "test" else "-valid")
    out = args.out or RESULTS / world.name / f"judgement{kind}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, to_json(results))
    return results


if __name__ == "__main__":
    run_cli(main, Args)

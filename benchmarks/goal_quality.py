"""Grade the goals of a language model against the world's oracle, without training.

    python -m benchmarks.goal_quality --llm gemma3-270m       ask in all forms, grade on test scenes
    python -m benchmarks.goal_quality --llm model.gguf --forms open --split dev --prompt mine.txt
    python -m benchmarks.goal_quality --compare results/goal_quality/*.json   one picture of several

The scenes are those of benchmarks.scenes. What is graded are the goals that a run of ellm_ppo.py
with the same flags would get, under the names that they are given (a goal's aliases count apart),
beside rules that ask nobody. Prompts and thresholds are chosen on the dev scenes, figures are
reported on the test scenes.

Every figure is a sum over pairs of a scene and a caption. The oracle sees more of a state than its
scene tells, so a pair counts as right by a share: the part of the scene's visits in which the
oracle suggested the caption.
- precision: the right part of what is suggested; recall: the suggested part of what is right; F1:
  their harmonic mean.
- by visits: each scene weighs what it stands for among all steps played, every source of scenes the
  same in total; once: each scene of the sample weighs the same.
- ±: standard error of F1 over the draw of the scenes (bootstrap).
The paper's four classes of what is suggested, which sum to one:
- good: the oracle suggests it now;
- not now: the pair can happen in the game, but not in this state ("make wood pickaxe" far from a
  table);
- never: verb and noun are the world's, but no state allows the pair, be it against common sense
  ("drink tree") or only against the rules of this game ("place tree"), which the paper counts apart
  and by hand;
- no pair: the text is no caption of the world, by the similarity threshold. It can earn no reward,
  so precision and recall leave it out.
Axes: M scenes, W scene words, G goals, C captions.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_type_hints

import jax.numpy as jnp
import numpy as np

from benchmarks.origin import RESULTS, ROOT, command_line, git_commit, machine, versions
from benchmarks.scenes import Sample, load, scenes_path
from goals.arguments import GoalArgs
from goals.service import GoalService
from goals.tables import suggest
from lab.cli import run_cli
from lab.errors import UserError
from lab.plots import COLOURS, FAINT, GRID, INK, Axes, Figure, save_figure
from lab.ranges import Cosine, Count, Ranged
from lab.run import read_json, to_json, write_json
from worlds import make_world
from worlds.world import World, WorldArgs
from worlds.wrapper import WorldWrapper

Form = get_type_hints(GoalArgs)["goal_form"]
Report = Mapping[str, Any]  # what `report` returns
CLASSES = {"good": COLOURS[2], "not now": COLOURS[5], "never": COLOURS[1], "no pair": FAINT}
PACKAGES = ("jax", "numpy", "xllamacpp", "transformers", "torch")
RESAMPLES = 2_000
GROUNDED = "grounded"
CEILING = "right in most visits (ceiling)"


@dataclass(frozen=True)
class Args(Ranged):
    """Ask a language model for goals in scenes that agents meet, and grade the goals."""

    env: str = WorldArgs().env
    """the world, which has a file of scenes"""
    llm: str | None = None
    """gemma3-270m, a .gguf or recorded .sqlite file, the name of a recording, a hub id or folder"""
    forms: tuple[Form, ...] = ("rules", "open", "closed")
    """forms of asking; pairs too, where the world has them"""
    split: Literal["test", "dev"] = "test"
    """dev: to choose by; test: to report"""
    prompt: str | None = None
    """as --prompt of ellm_ppo.py; for one form only"""
    prompt_scope: Literal["full", "compact"] = "compact"
    """how much of the scene the prompt tells"""
    llm_engine: Literal["auto", "llama.cpp", "transformers"] = "auto"
    """what computes a .gguf file"""
    llm_url: str | None = None
    """OpenAI-compatible server to ask instead"""
    closed_scoring: Literal["likelihood", "yes-no"] = "likelihood"
    """as of ellm_ppo.py"""
    closed_calibration: Literal["scene", "goal"] = "scene"
    """as of ellm_ppo.py"""
    similarity_threshold: Cosine = 0.99
    """cosine above which a goal means a caption"""
    every: Count = 1
    """grade only every n-th scene"""
    scenes: Path | None = None
    """the scenes; default: benchmarks/scenes/<world>.npz"""
    store: Path = ROOT / "runs" / "quality.sqlite"
    """keeps the answers, so that a model is asked once"""
    compare: tuple[Path, ...] = ()
    """results to draw in one picture, instead of asking"""
    out: Path | None = None
    """path of the JSON and the PNG without ending; default: results/goal_quality/<model>, with -dev
    for dev scenes, of a world of your own <world>-<model>"""


# ------------------------------------------------------------------------------------------ grading


def grade(suggested: np.ndarray, shares: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """Return precision, recall, F1 and suggestions per scene.

    NaN where nothing is suggested, or nothing right. suggested: bool [M, C]; shares: float [M, C],
    how often each caption is right; weights: float [M].
    """
    right, given, wanted = (float(weights @ part) for part in _sums(suggested, shares))
    return {
        "precision": _ratio(right, given),
        "recall": _ratio(right, wanted),
        "f1": _ratio(2 * right, given + wanted),
        "goals_per_scene": given / float(weights.sum()),
    }


def f1_error(suggested: np.ndarray, shares: np.ndarray, weights: np.ndarray) -> float:
    """Return the standard error of F1 over the draw of the scenes, by bootstrap.

    Arguments as `grade`.
    """
    num_scenes, rng = len(weights), np.random.default_rng(0)
    draws = rng.multinomial(num_scenes, np.full(num_scenes, 1 / num_scenes), RESAMPLES)
    draws = draws * weights[None]
    right, given, wanted = (draws @ part for part in _sums(suggested, shares))
    return float(np.std(2 * right / np.maximum(given + wanted, 1e-9)))


def grade_goals(
    suggested: np.ndarray, shares: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return precision and recall of every caption, float [C].

    NaN where it is never suggested, or never right.
    """
    right, given, wanted = (weights @ part for part in (suggested * shares, suggested, shares))
    return _ratio(right, given), _ratio(right, wanted)


def classify(
    suggested: np.ndarray,
    no_pair: np.ndarray,
    shares: np.ndarray,
    weights: np.ndarray,
    possible: np.ndarray,
) -> dict[str, float]:
    """Return the share of each class among all that is suggested; NaN where nothing is.

    suggested, shares, weights as in `grade`; no_pair: int [M], goals that are no caption; possible:
    bool [C].
    """
    wrong = suggested * (1 - shares)
    parts = (suggested * shares, wrong * possible[None], wrong * ~possible[None])
    counts = [float(weights @ part.sum(1)) for part in parts] + [float(weights @ no_pair)]
    return {name: _ratio(count, sum(counts)) for name, count in zip(CLASSES, counts, strict=True)}


def _sums(suggested: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return per scene what is suggested and right, suggested, and right, float [M] each."""
    return (suggested * shares).sum(1), suggested.sum(1), shares.sum(1)


def _ratio(part: Any, whole: Any) -> Any:
    """Divide, NaN by zero; numbers or arrays."""
    nan = np.full(np.shape(whole), np.nan)
    ratio = np.divide(part, whole, out=nan, where=np.asarray(whole) > 0)
    return ratio if ratio.ndim else float(ratio)


# --------------------------------------------------------------------------------------- references


def references(world: World, sample: Sample) -> dict[str, np.ndarray]:
    """Return what asks no model: suggestions bool [M, C] by name.

    grounded: its thing is in view, held or to be made; in view: it is done to a thing in view. With
    "pairs given" they also know which pairs the game allows, which no model is told. The last one
    knows the answers: what was right in most visits of the scene; of a scene visited once that is
    more than the scene tells.
    """
    every = np.ones(sample.shares.shape, bool)
    every[:, 0] = False  # the caption "nothing" is no goal
    in_view = world.in_view_masks()
    plain = {
        "all goals": every,
        "grounded": every & _has_one_of(sample.scenes, world.grounding_masks()),
        "in view": every & _has_one_of(sample.scenes, in_view) & in_view.any(-1)[None],
    }
    possible = meaningful_captions(world)[None]
    given = {f"{name}, pairs given": goals & possible for name, goals in plain.items()}
    return plain | given | {CEILING: sample.shares > 0.5}


def meaningful_captions(world: World) -> np.ndarray:
    """Return which captions make sense as goals in some state, bool [C]."""
    return np.isin(world.captions, list(world.meaningful))


def _has_one_of(scenes: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return which of the masks [C, W] scenes [M, W] share a fact with, bool [M, C].

    A mask that asks for none counts.
    """
    return ((scenes[:, None] & masks[None]) != 0).any(-1) | ~masks.any(-1)[None]


# ------------------------------------------------------------------------------------------- asking


class Ungrounded(WorldWrapper):
    """A world that says of no goal what must be at hand: the model's word stands alone."""

    def grounding_masks(self) -> np.ndarray:
        """Return no condition for any caption, uint32 [C, W]."""
        return np.zeros_like(self.world.grounding_masks())

    def in_view_masks(self) -> np.ndarray:
        """Return no condition for any caption, uint32 [C, W]."""
        return np.zeros_like(self.world.in_view_masks())


@dataclass(frozen=True)
class Answer:
    """What a form suggests: captions bool [M, C]; no_pair int [M], goals that are none.

    facts: who was asked, how, at what cost.
    """

    captions: np.ndarray
    no_pair: np.ndarray
    facts: dict[str, Any]


def ask(args: Args, form: str, world: World, scenes: np.ndarray) -> Answer:
    """Suggest goals in the scenes [M, W] as a run would.

    Raises UserError for whatever cannot answer.
    """

    def on_progress(waiting: int) -> None:
        end = "" if waiting else "\n"
        print(f"\r{form}: {waiting} questions left   ", end=end, file=sys.stderr, flush=True)

    goal_args = make_goal_args(args, form)
    service = GoalService(world, goal_args, on_progress=on_progress)
    start = time.perf_counter()
    try:
        service.prepare()
        service.know(scenes)
        tables = service.tables
        goals = np.asarray(suggest(goal_args, world, tables, None, None, jnp.asarray(scenes)))
        # The tables' own similarity also has aliases, as which a goal is reached, too.
        vectors = np.asarray(tables.embeddings)
        means = vectors @ vectors[: len(world.captions)].T > args.similarity_threshold
        means[:, 0] = False  # the caption "nothing"
        facts = {
            "language_model": service.language_model,
            "prompts": service.prompts,
            "usage": dataclasses.asdict(service.usage),
            "seconds": time.perf_counter() - start,
        }
        return Answer(goals @ means, (goals & ~means.any(1)[None]).sum(1), facts)
    finally:
        service.close()


def make_goal_args(args: Args, form: str) -> GoalArgs:
    """Return the arguments of a run that would get these goals."""
    return GoalArgs(
        text_observation="none",
        goal_conditioned=False,
        goal_source="llm",
        goal_form=form,
        grounding=True,
        llm=args.llm,
        prompt=args.prompt,
        prompt_scope=args.prompt_scope,
        llm_engine=args.llm_engine,
        llm_url=args.llm_url,
        closed_scoring=args.closed_scoring,
        closed_calibration=args.closed_calibration,
        similarity_threshold=args.similarity_threshold,
        store=str(args.store),
    )


# ---------------------------------------------------------------------------------------- reporting


def report(
    world: World, sample: Sample, suggested: np.ndarray, no_pair: np.ndarray | None = None
) -> dict[str, Any]:
    """Return all figures of one way to suggest, as JSON values.

    suggested: bool [M, C]; no_pair: int [M], none by default.
    """
    possible, shares = meaningful_captions(world), sample.shares
    no_pair = np.zeros(len(suggested)) if no_pair is None else no_pair
    figures: dict[str, Any] = {}
    for name, weights in (("by_visits", sample.weights), ("once", np.ones(len(sample.weights)))):
        figures[name] = grade(suggested, shares, weights)
        figures[name]["f1_error"] = f1_error(suggested, shares, weights)
        figures[name]["classes"] = classify(suggested, no_pair, shares, weights, possible)
    figures["f1_by_source"] = {
        source: grade(*(x[sample.sources == source] for x in (suggested, shares, sample.weights)))[
            "f1"
        ]
        for source in dict.fromkeys(sample.sources.tolist())
    }
    precision, recall = grade_goals(suggested, shares, sample.weights)
    figures["goals"] = {
        caption: {"precision": precision[i], "recall": recall[i]}
        for i, caption in enumerate(world.captions)
        if not np.isnan([precision[i], recall[i]]).all()
    }
    return to_json(figures)


def print_table(results: Mapping[str, Any]) -> None:
    """Print the figures of `main`."""
    print(f"{results['model']}, {results['num_scenes']} {results['split']} scenes\n")
    print(f"{'':34}{'by visits':^30}{'once':^21}{'of the suggested, by visits':^33}")
    columns = ["P", "R", "F1", "±", "goals", "P", "R", "F1", *CLASSES]
    print(" " * 34 + "".join(f"{column:>{8 if column in CLASSES else 6}}" for column in columns))
    for name, row in {**results["references"], **results["forms"]}.items():
        visits, once = row["by_visits"], row["once"]
        numbers = [visits["precision"], visits["recall"], visits["f1"], visits["f1_error"]]
        cells = [*map(_cell, numbers), f"{visits['goals_per_scene']:6.1f}"]
        cells += [_cell(once[key]) for key in ("precision", "recall", "f1")]
        cells += [f"{_cell(visits['classes'][key]):>8}" for key in CLASSES]
        print(f"{name:34}{''.join(cells)}")


def _cell(number: float | None) -> str:
    """Return a number in six characters."""
    return f"{number:6.3f}" if number is not None else f"{'-':>6}"


class Row(NamedTuple):
    """A line of the picture; face: the colour inside its marks."""

    name: str
    report: Report
    colour: str
    face: str


def draw(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw precision and recall, F1 and the classes, of one model or of several."""
    first, forms = results[0], {}
    for result in results:
        prefix = f"{result['model']}: " if len(results) > 1 else ""
        forms |= {prefix + name: row for name, row in result["forms"].items()}
    reports = first["references"] | forms
    rows = [Row(name, row, *_style(name, list(forms))) for name, row in reports.items()]
    figure = Figure(figsize=(16.0, max(5.5, 1.8 + 0.34 * len(rows))), layout="constrained")
    plane, bars, stacks = figure.subplots(1, 3, width_ratios=(1.2, 1.0, 1.0))
    models = ", ".join(dict.fromkeys(result["model"] for result in results))
    where = f"{first['split']} scenes of {first.get('world', WorldArgs().env)}"
    caption = (
        f"{models}: goals in {first['num_scenes']} {where}, weighted by visits\n"
        "Grey: no model; white grey: told the pairs that the game allows, or the answers. "
        "Colour: the model; white: ungrounded."
    )
    figure.suptitle(caption, x=0.01, ha="left", fontsize=12, color=INK)
    _draw_plane(plane, rows)
    _draw_bars(bars, rows, first["references"]["grounded"]["by_visits"]["f1"])
    _draw_classes(stacks, rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, path)


def _style(name: str, forms: Sequence[str]) -> tuple[str, str]:
    """Return colour and face colour: grey for references, a colour for a form.

    The face is white for what has help, and for what is not grounded.
    """
    if name not in forms:
        return FAINT, "white" if "given" in name or name == CEILING else FAINT
    colour = COLOURS[forms.index(name) // 2 % len(COLOURS)]
    return colour, colour if name.endswith(GROUNDED) else "white"


def _draw_plane(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw each row at its recall and precision, over lines of equal F1."""
    recall = np.linspace(0.01, 1, 200)
    for f1 in np.arange(0.1, 1.0, 0.1):
        precision = f1 * recall / np.maximum(2 * recall - f1, 1e-9)
        shown = (2 * recall > f1) & (precision <= 1)
        axes.plot(recall[shown], precision[shown], color=GRID, linewidth=0.9, zorder=0)
        axes.text(1.04, f1 / (2 - f1), f"F1 {f1:.1f}", color=FAINT, fontsize=7.5, va="center")
    for number, row in enumerate(rows, 1):
        point = row.report["by_visits"]["recall"], row.report["by_visits"]["precision"]
        if None not in point:
            edge = {"edgecolors": row.colour, "linewidths": 1.6}
            axes.scatter(*point, s=60, color=row.face, **edge, zorder=2)
            aside = {"xytext": (6, 4), "textcoords": "offset points"}
            axes.annotate(str(number), point, **aside, fontsize=8.5, color=INK, zorder=3)
    axes.set(xlim=(0, 1.12), ylim=(0, 1.04), xlabel="recall", ylabel="precision")
    _tidy(axes, "precision and recall (numbers: the rows on the right)")


def _draw_bars(axes: Axes, rows: Sequence[Row], grounded: float) -> None:
    """Draw F1 with its error, beside that of `grounded`."""
    for place, row in enumerate(rows):
        f1, error = row.report["by_visits"]["f1"] or 0.0, row.report["by_visits"]["f1_error"]
        axes.barh(place, f1, color=row.face, edgecolor=row.colour, linewidth=1.4, height=0.66)
        axes.errorbar(f1, place, xerr=error, color=INK, linewidth=1.0)
        aside = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(f"{f1:.2f}", (f1 + error, place), **aside, fontsize=8.5, color=INK)
    axes.axvline(grounded, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
    labels = [f"{row.name}  {number}" for number, row in enumerate(rows, 1)]
    axes.set_yticks(range(len(rows)), labels)
    axes.set(xlim=(0, 1.1), ylim=(len(rows) - 0.4, -0.6))
    _tidy(axes, "F1, ± standard error; dashed: grounded")


def _draw_classes(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw what share of the suggested is of each class."""
    left = np.zeros(len(rows))
    for name, colour in CLASSES.items():
        widths = np.array([row.report["by_visits"]["classes"][name] or 0.0 for row in rows])
        axes.barh(range(len(rows)), widths, left=left, color=colour, height=0.66, label=name)
        left += widths
    axes.set_yticks(range(len(rows)), [str(number) for number in range(1, len(rows) + 1)])
    axes.set(xlim=(0, 1), ylim=(len(rows) - 0.4, -0.6))
    _tidy(axes, "share of what is suggested")
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.05), "ncols": len(CLASSES)}
    axes.legend(**place, frameon=False, fontsize=9, labelcolor=INK)


def _tidy(axes: Axes, title: str) -> None:
    """Give the axes a title and the look of all pictures."""
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=8.5)


# --------------------------------------------------------------------------------------------- main


def compare(args: Args) -> None:
    """Draw results in one picture; raises UserError if they are not of the same scenes."""
    results = [read_json(path) for path in args.compare]
    kinds = {
        (result["split"], result["num_scenes"], json.dumps(result["references"]))
        for result in results
    }
    if len(kinds) > 1:
        same = "measure them with the same --split and --every"
        raise UserError(f"--compare: the results are not of the same scenes: {same}")
    draw(results, Path(f"{args.out or RESULTS / 'goal_quality' / 'compare'}.png"))


def check(args: Args) -> None:
    """Raise UserError for arguments that do not say what to measure."""
    if args.llm is None:
        raise UserError("--llm: say whom to ask, such as gemma3-270m")
    if args.prompt and len(args.forms) > 1:
        forms = ", ".join(get_args(Form))
        raise UserError(f"--prompt is for one form: give --forms with it, one of {forms}")


def default_out(args: Args, world: World, model: str) -> Path:
    """Return the path without ending of what is written unless --out says where."""
    name = model if args.env == WorldArgs().env else f"{world.name}-{model}"
    return RESULTS / "goal_quality" / (name if args.split == "test" else f"{name}-{args.split}")


def main(args: Args) -> dict[str, Any]:
    """Ask, grade, print, write and draw; return what the JSON holds, or only draw (--compare)."""
    if args.compare:
        compare(args)
        return {}
    check(args)
    world = make_world(WorldArgs(env=args.env))
    path = args.scenes or scenes_path(world)
    sample = getattr(load(path, world), args.split)[:: args.every]
    is_file = args.llm.endswith((".gguf", ".sqlite"))
    model = Path(args.llm).stem if is_file else args.llm.replace("/", "-")
    plain = references(world, sample)
    results = {
        "model": model,
        "world": world.name,
        "split": args.split,
        "num_scenes": len(sample.scenes),
        "command": command_line("goal_quality"),
        "git_commit": git_commit(),
        "machine": machine(),
        "packages": versions(PACKAGES),
        "similarity_threshold": args.similarity_threshold,
        "prompt_scope": args.prompt_scope,
        "asked": {},
        "references": {name: report(world, sample, goals) for name, goals in plain.items()},
        "forms": {},
    }
    args.store.parent.mkdir(parents=True, exist_ok=True)
    for form in args.forms:
        for name, seen in ((f"{form}, alone", Ungrounded(world)), (f"{form}, {GROUNDED}", world)):
            answer = ask(args, form, seen, sample.scenes)
            results["asked"].setdefault(form, answer.facts)
            results["forms"][name] = report(world, sample, answer.captions, answer.no_pair)
    print_table(results)
    out = args.out or default_out(args, world, model)
    draw([results], Path(f"{out}.png"))
    write_json(Path(f"{out}.json"), results)
    return results


if __name__ == "__main__":
    run_cli(main, Args)

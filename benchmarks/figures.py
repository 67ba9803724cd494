"""Draw and tabulate the rows that benchmarks.pretraining writes: python -m benchmarks.figures.

Beside runs.jsonl it writes table.json, table.md and the pictures that have rows: curves.png,
dqn.png, standard.png, long.png, pixels.png, success_rates.png. In README.md and docs/ it rewrites
the tables that stand between `<!-- BEGIN table NAME -->` and `<!-- END table NAME -->`; that of
accelerators is made of results/accelerator*.json. Statistics as rliable has them (Agarwal et al.,
2021), by scipy: the unit is the seed; a point is the interquartile mean over seeds, an interval the
95% percentile bootstrap of it. `NOTES` says what that means with few seeds. S seeds, P points.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from benchmarks.downstream_figures import downstream_summary, downstream_table, draw_downstream
from benchmarks.origin import RESULTS, ROOT
from benchmarks.pretraining import BIN, HOUSES, IN_HOUSES, METHODS, ROWS, UNSEEN, Group, read_rows
from benchmarks.statistics import (
    difference_interval,
    format_ends,
    format_number,
    interval,
    iqm,
    markdown,
    probability_of_improvement,
    rounded,
)
from lab.cli import run_cli
from lab.errors import UserError
from lab.plots import (
    COLOURS,
    DASHES,
    FAINT,
    INK,
    SMOOTHING,
    Axes,
    Figure,
    finish_axes,
    save_figure,
    smooth,
)
from lab.run import read_json, write_json, write_text

POINTS = 100  # of a drawn curve

# The panels of curves.png.
SOURCES = (
    *("oracle", "ellm", "ellm-270m", "ellm-lists", "ellm-lists-270m", "game", "grounded"),
    *("novelty", "novelty-paper", "uniform", "rnd", "noveld", "apt", "random"),
)
INPUTS = (
    *("oracle", "oracle-blind", "ellm", "ellm-goals", "ellm-scene", "ellm-blind"),
    *("rnd", "rnd-blind", "apt", "apt-blind"),
)
# Numbers of colour and dashes: one look for a method in all pictures, one colour for a family.
STYLES = {
    **{"oracle": (6, 0), "game": (6, 1), "game-lr3e-4": (6, 2), "random": (6, 2)},
    **{"oracle-blind": (6, 3), "ellm": (0, 0), "ellm-270m": (0, 1), "ellm-game": (0, 2)},
    **{"ellm-lists": (5, 0), "ellm-lists-270m": (5, 1)},
    **{"ellm-goals": (4, 0), "ellm-scene": (4, 1), "ellm-blind": (4, 3)},
    **{"novelty": (2, 0), "novelty-paper": (2, 1), "uniform": (2, 2), "grounded": (2, 3)},
    **{"ellm-head": (0, 1), "ellm-evidence": (0, 2), "ellm-plain": (4, 0)},
    **{"grounded-evidence": (2, 3)},
    **{"oracle-verbs": (6, 1), "oracle-faced": (6, 2), "oracle-named": (6, 3)},
    **{"oracle-map": (1, 0), "oracle-paper": (6, 3)},
    **{"ellm-paper": (0, 3), "ellm-threshold": (5, 2)},
    **{"rnd": (1, 0), "noveld": (1, 1), "rnd-blind": (1, 2), "apt": (3, 0), "apt-blind": (3, 2)},
}
# What should hold, by the paper or by what we add to it: the first is better than the second.
CLAIMS = (
    ("oracle", "ellm"),
    ("oracle-blind", "ellm-blind"),
    *((reader, "ellm-blind") for reader in ("ellm", "ellm-goals", "ellm-scene")),
    *(("ellm", other) for other in ("game", "grounded", "novelty", "uniform", "rnd", "apt")),
    ("dqn-oracle", "dqn-ellm"),
    *(("dqn-ellm", other) for other in ("dqn-novelty", "dqn-rnd")),
    ("standard-oracle", "standard-ellm"),
    *(("standard-ellm", other) for other in ("standard-novelty", "standard-game")),
    ("standard-ellm-game", "standard-game"),
    *(("deep-oracle", other) for other in ("oracle", "deep-ellm")),
    *(("deep-ellm", other) for other in ("ellm", "deep-grounded-evidence", "deep-novelty")),
    ("deep-oracle-5m", "deep-ellm-5m"),
    *(("deep-ellm-5m", f"deep-{other}-5m") for other in ("ellm-plain", "grounded-evidence")),
)
# The rows of the README's table.
HEADLINE = {
    "oracle": "goals from the true prerequisites",
    "ellm": "goals of a 1.5B model (the default)",
    "ellm-blind": "the same goals; the policy reads neither goals nor scene",
    "ellm-lists": "lists of the 1.5B model for each scene, the paper's form",
    "game": "the game's own reward",
    "novelty": "any caption new in the episode",
    "rnd": "prediction error",
    "random": "nothing: random actions",
}
NOTES = (
    "A score is achievements per episode, of 22, mean over the episodes that ended in the last 5% "
    "of a run.",
    "The unit is the seed. IQM: interquartile mean over seeds; of three values it cuts none and is "
    "their mean.",
    "Interval: 95% percentile bootstrap over seeds. With three seeds it is exactly the range from "
    "the lowest to the highest of them, and covers the median of all seeds three times in four, "
    "not 95%; with one seed there is none.",
    "Evaluation: held-out episodes, played after training in fresh worlds, mean over seeds; its "
    "standard error is that of the episodes, given the trained policies, and says nothing of other "
    "seeds. Crafter score and percent of the largest reward are the evaluation's.",
    "Crafter score: exp(mean over 22 achievements of ln(1 + success rate in %)) - 1. That of the "
    "first million is over all training episodes of the first 1M env steps, as the public "
    "scoreboard counts; reward and percent of it are the evaluation's in our lines.",
    "P(X > Y): share of the pairs of one seed of each in which X is higher, ties by half. Between "
    "two equal methods with three seeds each it is 1 once in twenty times.",
)
NOT_RUN = "Not yet run."
HOUSE = r"^house\d-"  # of a method's name, which its panel's title has


class Published(NamedTuple):
    """A public result in the standard regime: reward of 22, percent of it, Crafter score in %."""

    agent: str
    source: str
    env_steps: str
    reward: float | None = None
    percent_of_max: float | None = None
    crafter_score: float | None = None


SCOREBOARD, CRAFTAX = "Crafter scoreboard", "Craftax-Classic, TWM paper"
PUBLISHED = (
    Published("human", SCOREBOARD, "", 14.3, None, 50.5),
    Published("DLLM", "DLLM paper", "5M", None, None, 38.1),
    Published("SPRING (a language model plays)", SCOREBOARD, "0", 12.3, None, 27.3),
    Published("DLLM", "DLLM paper", "1M", None, None, 26.4),
    Published("Achievement Distillation", SCOREBOARD, "1M", 12.6, None, 21.8),
    Published("Causal-aware LLMs", "Causal-aware LLMs paper", "1M", None, None, 18.9),
    Published("AdaRefiner", "AdaRefiner paper", "1M", None, None, 15.8),
    Published("PPO (ResNet)", SCOREBOARD, "1M", 10.3, None, 15.6),
    Published("DreamerV3", SCOREBOARD, "1M", 11.7, None, 14.5),
    Published("PPO", SCOREBOARD, "1M", 4.2, None, 4.6),
    Published("Rainbow", SCOREBOARD, "1M", 6.0, None, 4.3),
    Published("Plan2Explore, no reward", SCOREBOARD, "1M", 2.1, None, 2.1),
    Published("RND, no reward", SCOREBOARD, "1M", 0.7, None, 2.0),
    Published("random", SCOREBOARD, "0", 2.1, None, 1.6),
    Published("ELLM (139 actions, 400 steps)", SCOREBOARD, "5M", 6.0),
    Published("TWM", CRAFTAX, "1M", None, 69.7),
    Published("human", CRAFTAX, "", None, 65.0),
    Published("DreamerV3", CRAFTAX, "1M", None, 53.2),
)

Rows = Sequence[Mapping[str, Any]]  # of one method, one a seed
Methods = Mapping[str, Rows]


@dataclasses.dataclass(frozen=True)
class Args:
    """Redraw everything from the rows."""

    results: Path = RESULTS / "pretraining"
    """folder of runs.jsonl, and of what is written; beside it lies downstream/, the rows of
    benchmarks.downstream, if there are any"""
    pages: Path | None = None
    """folder of README.md and docs/ whose tables are rewritten; default: the repository's if the
    results are"""


# ------------------------------------------------------------------------------------------- tables


def by_method(rows: Rows) -> dict[str, list[Mapping[str, Any]]]:
    """Return each method's rows by seed, methods in the order of `METHODS`.

    Raises UserError for a method that is not there.
    """
    unknown = [row["method"] for row in rows if row["method"] not in METHODS]
    if unknown:
        raise UserError(f"{ROWS} has rows of {unknown[0]}, which is no method of the comparison")
    ordered = sorted(rows, key=lambda row: (list(METHODS).index(row["method"]), row["seed"]))
    grouped = itertools.groupby(ordered, key=lambda row: row["method"])
    return {name: list(group) for name, group in grouped}


def of_group(methods: Methods, *groups: Group) -> list[str]:
    """Return the names of the methods that belong to one of the groups."""
    return [name for name in methods if METHODS[name].group in groups]


def scores(rows: Rows) -> np.ndarray:
    """Return the final score of each seed, per episode, [S]."""
    return np.array([row["final"][score_of(row)] for row in rows])


def score_of(row: Mapping[str, Any]) -> str:
    """Return the name of a row's score; old rows, all of Crafter, do not say it."""
    return row.get("score", "achievements_per_episode")


def mean_of(rows: Rows, part: str, key: str) -> float | None:
    """Return the mean over seeds of a number under `part`, None where no row has it."""
    found = [row[part][key] for row in rows if row.get(part, {}).get(key) is not None]
    return rounded(np.mean(found)) if found else None


def summarise(name: str, rows: Rows) -> dict[str, Any]:
    """Return a method's line of the table; what its runs do not have is None."""
    final, played = scores(rows), [row["evaluation"] for row in rows if "evaluation" in row]
    errors = [episodes["achievements_standard_error"] for episodes in played]
    return {
        "method": name,
        "group": rows[0]["group"],
        "total_timesteps": rows[0]["total_timesteps"],
        "seeds": [row["seed"] for row in rows],
        "number_of_seeds": len(rows),
        "iqm": rounded(iqm(final)),
        "interval": rounded(interval(final)),
        "mean": rounded(final.mean()),
        "lowest": rounded(final.min()),
        "highest": rounded(final.max()),
        "evaluation": {
            "achievements_per_episode": mean_of(rows, "evaluation", "achievements_per_episode"),
            "standard_error": rounded(np.linalg.norm(errors) / len(errors)) if errors else None,
            "episode_return": mean_of(rows, "evaluation", "episode_return"),
            "percent_of_max": mean_of(rows, "evaluation", "percent_of_max"),
            "crafter_score": mean_of(rows, "evaluation", "crafter_score"),
        },
        "first_million": {"crafter_score": mean_of(rows, "first_million", "crafter_score")},
        "sps": rounded(np.mean([row["sps"] for row in rows])),
    }


def compare(methods: Methods) -> list[dict[str, Any]]:
    """Return what the rows say of each claim of which both methods have been run."""
    comparisons = []
    for better, worse in CLAIMS:
        if better in methods and worse in methods:
            x, y = scores(methods[better]), scores(methods[worse])
            comparison = {
                "claim": f"{better} > {worse}",
                "probability_of_improvement": rounded(probability_of_improvement(x, y)),
                "difference_of_means": rounded(x.mean() - y.mean()),
                "interval": rounded(difference_interval(x, y)),
            }
            comparisons.append(comparison)
    return comparisons


def method_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return lines of `summarise`, the best method first."""
    heads = ("method", "seeds", "IQM", "95% interval", "evaluation ± standard error")
    heads = (*heads, "Crafter score", "% of the largest reward", "steps/s")
    lines = []
    for row in sorted(rows, key=lambda row: -row["iqm"]):
        played = row["evaluation"]
        evaluation = ""
        if played["achievements_per_episode"] is not None:
            error = format_number(played["standard_error"], 2)
            evaluation = f"{played['achievements_per_episode']:.2f} ± {error}"
        cells = [row["method"], str(row["number_of_seeds"]), f"{row['iqm']:.2f}"]
        cells += [format_ends(row["interval"]), evaluation, format_number(played["crafter_score"])]
        lines.append([*cells, format_number(played["percent_of_max"]), f"{row['sps']:,.0f}"])
    return markdown(heads, lines) if lines else NOT_RUN


def headline_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the few lines that the README has, the best method first."""
    heads = ("method", "what rewards the agent", "achievements", "lowest to highest seed")
    chosen = [row for row in rows if row["method"] in HEADLINE]
    lines = [
        (f"`{row['method']}`", HEADLINE[row["method"]], f"{row['iqm']:.1f}", _range(row))
        for row in sorted(chosen, key=lambda row: -row["iqm"])
    ]
    return markdown(heads, lines) if lines else NOT_RUN


def standard_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return our lines in the standard regime among the published ones, by Crafter score."""
    heads = ("agent", "source", "env steps", "reward, of 22", "% of the largest reward")
    heads = (*heads, "Crafter score, first 1M", "Crafter score, evaluation")
    lines = []
    for row in rows:
        played, score = row["evaluation"], row["first_million"]["crafter_score"]
        source = f"ours, {row['number_of_seeds']} seed{'s' * (row['number_of_seeds'] > 1)}"
        numbers = (played["episode_return"], played["percent_of_max"], score)
        cells = [f"**{row['method']}**", source, f"{row['total_timesteps'] / 1e6:g}M"]
        cells += [*map(format_number, numbers), format_number(played["crafter_score"])]
        lines.append((score, played["percent_of_max"], cells))
    for row in PUBLISHED:
        numbers = (row.reward, row.percent_of_max, row.crafter_score)
        cells = [row.agent, row.source, row.env_steps, *map(format_number, numbers), ""]
        lines.append((row.crafter_score, row.percent_of_max, cells))
    lines.sort(key=lambda line: (-(line[0] or 0.0), -(line[1] or 0.0)))
    return markdown(heads, [cells for *_, cells in lines]) if rows else NOT_RUN


def houses_table(methods: Methods) -> str:
    """Return the success in each task, in episodes after the training, the best method first.

    Means over seeds. Over the tasks: the mean, and its interval over the seeds that all tasks have.
    """
    lines = []
    for name in IN_HOUSES:
        found = [_played(methods.get(f"house{task}-{name}", [])) for task in HOUSES]
        if any(found):
            means = [np.mean(list(played.values())) if played else None for played in found]
            seeds = sorted(set.intersection(*map(set, found)))
            by_seed = np.array([np.mean([played[seed] for played in found]) for seed in seeds])
            numbers = sorted({len(played) for played in found if played})
            cells = [f"`{name}`", " or ".join(map(str, numbers))]
            cells += [format_number(mean, 2) for mean in means]
            cells += [
                format_number(by_seed.mean(), 2) if seeds else "",
                format_ends(rounded(interval(by_seed))),
            ]
            lines.append((np.mean([mean for mean in means if mean is not None]), cells))
    heads = ("method", "seeds", *(f"task {task}" for task in HOUSES), "mean", "95% interval")
    lines.sort(key=lambda line: -line[0])
    return markdown(heads, [cells for _, cells in lines]) if lines else NOT_RUN


def unseen_table(methods: Methods) -> str:
    """Return the success in generated houses with held-out things: the unit is the house."""
    lines = []
    for name in IN_HOUSES:
        found = [_played(methods.get(f"unseen{n}-{name}", [])) for n in range(len(UNSEEN))]
        means = np.array([np.mean(list(played.values())) for played in found if played])
        if len(means):
            ends = format_ends(rounded(interval(means)))
            cells = [f"`{name}`", str(len(means)), format_number(means.mean(), 2), ends]
            cells.append(f"{means.min():.2f} to {means.max():.2f}")
            lines.append((means.mean(), cells))
    heads = ("method", "houses", "success", "95% interval", "lowest to highest")
    lines.sort(key=lambda line: -line[0])
    return markdown(heads, [cells for _, cells in lines]) if lines else NOT_RUN


def _played(rows: Rows) -> dict[int, float]:
    """Return the success of each seed in the episodes after its training."""
    return {row["seed"]: row["evaluation"]["success_per_episode"] for row in rows}


def claims_table(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """Return what `compare` found."""
    lines = [
        (
            row["claim"],
            f"{row['probability_of_improvement']:.2f}",
            f"{row['difference_of_means']:+.2f}",
            format_ends(row["interval"]),
        )
        for row in comparisons
    ]
    heads = ("claim", "P(X > Y)", "difference of means", "95% interval")
    return markdown(heads, lines) if lines else NOT_RUN


def accelerator_table(files: Iterable[Path]) -> str:
    """Return what benchmarks.accelerator measured, a line for each device and number of worlds."""
    heads = ("device", "worlds", "worlds alone", "plain craftax", "ELLM, PPO", "ELLM, DQN")
    heads = (*heads, "compiling, PPO / DQN", "peak memory")
    lines = []
    for result in map(read_json, sorted(files)):
        for number in sorted({row["num_envs"] for row in result["rows"]}):
            rows = {row["what"]: row for row in result["rows"] if row["num_envs"] == number}
            names = ("worlds", "craftax", "ppo", "dqn")
            speeds = [f"{rows[n]['steps_per_second']:,.0f}" if n in rows else "" for n in names]
            seconds = [
                f"{rows[n]['compile_seconds']:.0f} s" if n in rows else "" for n in names[2:]
            ]
            memory = max(row["peak_memory_bytes"] for row in rows.values()) / 2**30
            cells = [result["device"], f"{number:,}", *speeds, " / ".join(seconds)]
            lines.append([*cells, f"{memory:.1f} GiB"])
    return markdown(heads, lines) if lines else NOT_RUN


def all_tables(
    table: Mapping[str, Any], accelerators: Iterable[Path], houses: Methods, tasks: Rows = ()
) -> dict[str, str]:
    """Return every table that a page may ask for, by name."""
    groups = {group: [] for group in get_args(Group)}
    for row in table["methods"]:
        groups[row["group"]].append(row)
    tables = {group: method_table(rows) for group, rows in groups.items()}
    return tables | {
        "headline": headline_table(groups["ppo"]),
        "standard": standard_table(groups["standard"]),
        "claims": claims_table(table["comparisons"]),
        "accelerator": accelerator_table(accelerators),
        "housekeep": houses_table(houses),
        "unseen": unseen_table(houses),
        "downstream": downstream_table(tasks),
        "downstream-summary": downstream_summary(tasks),
    }


def table_page(table: Mapping[str, Any]) -> str:
    """Return table.md: a section for each group that has rows, the claims and the notes."""
    tables, parts = all_tables(table, (), {}), ["# Final results\n"]
    for group in get_args(Group):
        steps = [row["total_timesteps"] for row in table["methods"] if row["group"] == group]
        if steps:
            rows = [row for row in table["methods"] if row["group"] == group]
            parts.append(f"## {group}: {max(steps):,} env steps\n\n{method_table(rows)}\n")
        if steps and group == "standard":
            parts.append(f"### Beside published results\n\n{tables['standard']}\n")
    if table["comparisons"]:
        parts.append(f"## Claims\n\n{tables['claims']}\n")
    return "\n".join([*parts, *(f"- {note}" for note in table["notes"])]) + "\n"


def fill_tables(page: Path, tables: Mapping[str, str]) -> None:
    """Rewrite what stands between a page's marks; raises UserError for a mark that is wrong."""
    text = page.read_text(encoding="utf-8")
    marked = re.compile(r"(<!-- BEGIN table (\S+) -->\n).*?(<!-- END table \2 -->)", re.DOTALL)
    names = re.findall(r"<!-- BEGIN table (\S+) -->", text)
    whole = {name for _, name, _ in marked.findall(text)}
    wrong = [name for name in names if name not in tables or name not in whole]
    if wrong:
        raise UserError(f"{page}: the marks of table {wrong[0]} are wrong")
    filled = marked.sub(lambda match: f"{match[1]}{tables[match[2]]}\n{match[3]}", text)
    if filled != text:
        write_text(page, filled)


def _range(row: Mapping[str, Any]) -> str:
    """Return the lowest and the highest seed as they are read."""
    if row["number_of_seeds"] == 1:
        return "one seed"
    return f"{row['lowest']:.1f} to {row['highest']:.1f}"


# ----------------------------------------------------------------------------------------- pictures


def style(name: str) -> dict[str, Any]:
    """Return a method's colour and dashes.

    A DQN twin is dashed; a run of other length, observation or regime looks like the usual one.
    """
    base = re.sub(r"^(pixels|standard|deep|gpu|(house|unseen)\d)-", "", name).removesuffix("-5m")
    colour, dashes = STYLES[base.removeprefix("dqn-")]
    dashes = 1 if base.startswith("dqn-") else dashes
    return {"color": COLOURS[colour], "linestyle": DASHES[dashes]}


def smoothed_curves(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Return env steps [P] that all seeds share, and each seed's smoothed curve there, [S, P]."""
    series = []
    for row in rows:
        curve = row["curve"]
        points = zip(curve["env_steps"], curve[score_of(row)], strict=True)
        series.append(np.array([(step, value) for step, value in points if value is not None]))
    start, end = max(line[0, 0] for line in series), min(line[-1, 0] for line in series)
    at = np.linspace(start, end, POINTS)
    width = max(SMOOTHING * end, BIN)  # a narrower one would draw stairs
    curves = [smooth(*line.T, np.ones(len(line)), at, width) for line in series]
    return at, np.stack(curves)


def draw_curves(axes: Axes, methods: Methods, names: Iterable[str], title: str) -> None:
    """Draw a line and the band of its interval for each method; the legend goes by final score."""
    handles = []
    for name in names:
        steps, curves = smoothed_curves(methods[name])
        band = interval(curves)
        if band is not None:
            axes.fill_between(steps, *band, color=style(name)["color"], alpha=0.13, linewidth=0)
        (line,) = axes.plot(steps, iqm(curves), **style(name), linewidth=1.8)
        handles.append((float(iqm(scores(methods[name]))), name, line))
        score = score_of(methods[name][0])
    numbers = sorted({len(methods[name]) for _, name, _ in handles})
    seeds = "one seed"
    if numbers != [1]:
        seeds = f"IQM and 95% interval over {' or '.join(map(str, numbers))} seeds"
    finish_axes(axes, f"{title} ({seeds})")
    axes.set_ylabel(score.replace("_", " "), color=INK)
    handles.sort(key=lambda handle: -handle[0])
    digits = 1 if score == "achievements_per_episode" else 2
    axes.legend(
        [line for _, _, line in handles],
        [f"{value:.{digits}f}  {re.sub(HOUSE, '', name)}" for value, name, _ in handles],
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        frameon=False,
        fontsize=9.5,
        handlelength=3.2,
        labelcolor=INK,
        labelspacing=0.7,
    )


def picture(methods: Methods, panels: Mapping[str, Iterable[str]], path: Path) -> None:
    """Draw panels, title -> names, one below the other; nothing where no name has rows."""
    panels = {title: [n for n in names if n in methods] for title, names in panels.items()}
    panels = {title: names for title, names in panels.items() if names}
    if not panels:
        return
    figure = Figure(figsize=(9.5, 4.6 * len(panels)), layout="constrained")
    all_axes = figure.subplots(len(panels), squeeze=False)[:, 0]
    for axes, (title, names) in zip(all_axes, panels.items(), strict=True):
        draw_curves(axes, methods, names, title)
    save_figure(figure, path)


def success_rates(methods: Methods, path: Path) -> None:
    """Draw the share of episodes with each achievement, mean over seeds.

    The best methods are on top, the most frequent achievements on the left.
    """
    names = sorted(methods, key=lambda name: -iqm(scores(methods[name])))
    achievements = list(methods[names[0]][0]["final"]["success_rates"])
    rates = [
        [list(row["final"]["success_rates"].values()) for row in methods[name]] for name in names
    ]
    percents = 100 * np.array([np.mean(seeds, axis=0) for seeds in rates])
    order = np.argsort(-percents.mean(axis=0), kind="stable")
    percents = percents[:, order]
    figure = Figure(figsize=(12.5, 1.9 + 0.34 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(percents, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for (row, column), percent in np.ndenumerate(percents):
        colour = "white" if percent > 60 else INK if percent else FAINT
        text = "<1" if 0 < percent < 0.5 else f"{percent:.0f}"
        axes.text(column, row, text, ha="center", va="center", fontsize=9, color=colour)
    labels = [achievements[i] for i in order]
    axes.set_xticks(range(len(order)), labels, rotation=40, ha="left", rotation_mode="anchor")
    labels = [f"{name}  {iqm(scores(methods[name])):.1f}" for name in names]
    axes.set_yticks(range(len(names)), labels)
    sides = {"top": True, "bottom": False, "labeltop": True, "labelbottom": False}
    axes.tick_params(**sides, length=0, colors=INK, labelsize=9.5)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(
        "episodes with the achievement in the last 5% of the training, %; "
        "beside the methods: achievements per episode",
        color=INK,
    )
    save_figure(figure, path)


def draw_all(methods: Methods, folder: Path) -> None:
    """Draw all pictures that have rows."""
    curves = {"Where the reward comes from": SOURCES, "What the policy reads": INPUTS}
    picture(methods, curves, folder / "curves.png")
    dqn = of_group(methods, "dqn")
    twins = [name for learner in dqn for name in (learner, learner.removeprefix("dqn-"))]
    picture(methods, {"DQN beside PPO": twins}, folder / "dqn.png")
    for group, title in (
        ("standard", "The standard regime: 17 actions, 10,000 steps"),
        ("deep", "A policy that acts on the words of its goals, rules that learn"),
        ("deep-5m", "Acting on words, rules that learn: 128 worlds, 5M steps"),
        ("long", "Five times the steps"),
        ("gpu", "Fifty times the steps, on a GPU"),
        ("pixels", "From pixels"),
    ):
        picture(methods, {title: of_group(methods, group)}, folder / f"{group}.png")
    names = of_group(methods, "housekeep")
    houses = {
        f"Housekeep, task {task}": [name for name in names if name.startswith(f"house{task}-")]
        for task in HOUSES
    }
    picture(methods, houses, folder / "housekeep.png")
    shown = {name: methods[name] for name in of_group(methods, "ppo", "dqn", "standard", "long")}
    if shown:
        success_rates(shown, folder / "success_rates.png")


def main(args: Args) -> None:
    """Write the tables and the pictures; raises UserError where there are no rows."""
    methods = by_method(read_rows(args.results))
    if not methods:
        raise UserError(f"no rows in {args.results / ROWS}: run benchmarks.pretraining first")
    houses = of_group(methods, "housekeep")
    others = {name: rows for name, rows in methods.items() if name not in houses}
    table = {
        "notes": list(NOTES),
        "methods": [summarise(name, rows) for name, rows in others.items()],
        "comparisons": compare(methods),
    }
    write_json(args.results / "table.json", table)
    write_text(args.results / "table.md", table_page(table))
    draw_all(methods, args.results)
    pages = args.pages
    if pages is None and args.results.resolve() == RESULTS / "pretraining":
        pages = ROOT
    if pages is not None:
        accelerators = RESULTS.glob("accelerator*.json")
        downstream = args.results.parent / "downstream"
        tasks = read_rows(downstream)
        draw_downstream(tasks, downstream / "tasks.png")
        of_houses = {name: methods[name] for name in houses}
        tables = all_tables(table, accelerators, of_houses, tasks)
        for page in (pages / "README.md", *sorted((pages / "docs").glob("*.md"))):
            fill_tables(page, tables)


if __name__ == "__main__":
    run_cli(main, Args)

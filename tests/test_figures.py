"""Tables and pictures of the comparison: statistics by hand, whatever rows there are, pages."""

import json
import shutil
from itertools import combinations, product

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from benchmarks import figures
from benchmarks.pretraining import METHODS, append_row
from lab.errors import UserError
from lab.run import read_json, write_json
from worlds.crafter.words import ACHIEVEMENTS

PICTURES = {
    *("curves.png", "dqn.png", "standard.png", "long.png", "gpu.png", "pixels.png"),
    *("success_rates.png", "housekeep.png", "deep.png", "deep-5m.png"),
}

# ---- statistics


def test_interquartile_mean_by_hand():
    assert figures.iqm(np.array([0.0, 1.0, 2.0, 100.0])) == 1.5
    assert figures.iqm(np.array([1.0, 2.0, 6.0])) == 3.0  # nothing is cut of three


def test_interval_of_three_seeds_is_their_range():
    curves = np.array([[1.0, 5.0], [2.0, 4.0], [6.0, 4.5]])
    np.testing.assert_array_equal(figures.interval(curves), [[1.0, 4.0], [6.0, 5.0]])
    assert figures.interval(curves[:1]) is None


def test_interval_of_five_seeds_is_near_the_exact_one():
    values = np.array([1.0, 1.5, 2.5, 4.0, 7.0])
    exact = [stats.trim_mean(draw, 0.25) for draw in product(values, repeat=5)]
    near = np.percentile(exact, [2.5, 97.5])
    np.testing.assert_allclose(figures.interval(values), near, atol=0.15)
    assert figures.interval(values) == figures.interval(values)


def test_difference_of_means_by_hand():
    x, y = np.array([5.0, 6.0, 7.0]), np.array([1.0, 1.5])
    assert figures.probability_of_improvement(x, y) == 1.0
    ties = figures.probability_of_improvement(np.array([1.0, 2.0]), np.array([1.0, 3.0]))
    assert ties == (0.5 + 0 + 1 + 0) / 4
    means_x = [sum(draw) / 3 for draw in product(x, repeat=3)]
    differences = [a - b for a in means_x for b in (1.0, 1.25, 1.25, 1.5)]
    near = np.percentile(differences, [2.5, 97.5])
    np.testing.assert_allclose(figures.difference_interval(x, y), near, atol=0.1)
    assert figures.difference_interval(x, y[:1]) is None


# ---- tables and pictures


def synthetic_row(name, seed):
    """Return a row that looks like a run's; the score of "oracle" with seed 1 is 4.6."""
    method, score = METHODS[name], 3.0 + len(name) / 10 + seed
    is_house = method.group == "housekeep"
    key = "success_per_episode" if is_house else "achievements_per_episode"
    steps = list(range(20_000, method.total_timesteps + 1, 20_000))
    curve = [None if seed == 2 and step == 20_000 else score * step / steps[-1] for step in steps]
    row = {
        "method": name,
        "group": method.group,
        "seed": seed,
        "total_timesteps": method.total_timesteps,
        "sps": 100.0,
        "curve": {"env_steps": steps, key: curve},
        "final": {
            key: score,
            "success_rates": dict.fromkeys(ACHIEVEMENTS, score / 22),
        },
    }
    if name != "random":  # a run without evaluation
        row["evaluation"] = {
            key: score,
            "achievements_standard_error": 0.3,
            "episode_return": score - 1,
            "percent_of_max": 100 * (score - 1) / 22,
            "crafter_score": 10.0 + seed,
        }
        row["first_million"] = {"crafter_score": 5.0 + seed}
    return row | {"score": key} if is_house else row


def write_rows(folder, names, most_seeds):
    """Write rows of at most so many seeds of each method, of those with one seed just one."""
    folder.mkdir(exist_ok=True)
    rows = [
        synthetic_row(name, seed)
        for name in names
        for seed in range(1, 1 + (1 if len(METHODS[name].seeds) == 1 else most_seeds))
    ]
    (folder / "runs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def draw(folder, names, most_seeds):
    """Write rows and draw them; return the table and the names of the pictures."""
    write_rows(folder, names, most_seeds)
    figures.main(figures.Args(folder))
    return read_json(folder / "table.json"), {file.name for file in folder.glob("*.png")}


@pytest.mark.parametrize("most_seeds", [1, 3, 5])
def test_everything_is_drawn(tmp_path, most_seeds):
    table, pictures = draw(tmp_path, reversed(METHODS), most_seeds)
    assert pictures == PICTURES
    for picture in pictures:
        assert len(Image.open(tmp_path / picture).convert("L").getcolors()) > 50
    others = [name for name in METHODS if METHODS[name].group != "housekeep"]
    assert [row["method"] for row in table["methods"]] == others
    row, scores = table["methods"][0], [3.6 + seed for seed in range(1, most_seeds + 1)]
    assert row["seeds"] == list(range(1, most_seeds + 1)) and row["number_of_seeds"] == most_seeds
    assert row["iqm"] == row["mean"] == pytest.approx(np.mean(scores))
    assert (row["lowest"], row["highest"]) == (scores[0], scores[-1])
    assert (row["interval"] is None) == (most_seeds == 1)
    if most_seeds == 3:
        assert row["interval"] == [4.6, 6.6]
    played = row["evaluation"]
    assert played["achievements_per_episode"] == pytest.approx(np.mean(scores))
    assert played["standard_error"] == pytest.approx(0.3 / np.sqrt(most_seeds), abs=1e-4)
    assert played["crafter_score"] == 10 + (1 + most_seeds) / 2
    assert row["first_million"] == {"crafter_score": 5 + (1 + most_seeds) / 2}
    assert len(table["comparisons"]) == len(figures.CLAIMS)
    comparison = next(row for row in table["comparisons"] if row["claim"] == "oracle > ellm")
    assert comparison["difference_of_means"] == 0.2
    assert (comparison["interval"] is None) == (most_seeds == 1)
    lines = {
        1: "| oracle | 1 | 4.60 |  | 4.60 ± 0.30 | 11.0 | 16.4 | 100 |",
        3: "| oracle | 3 | 5.60 | 4.60 to 6.60 | 5.60 ± 0.17 | 12.0 | 20.9 | 100 |",
    }
    page = (tmp_path / "table.md").read_text()
    assert lines.get(most_seeds, "") in page
    assert "| random |" in page and page.count("## ") == 10


def test_only_what_has_rows_is_drawn(tmp_path):
    table, pictures = draw(tmp_path, ["rnd", "random"], 3)
    assert pictures == {"curves.png", "success_rates.png"} and not table["comparisons"]
    assert set(table["methods"][1]["evaluation"].values()) == {None}
    with pytest.raises(UserError, match="no rows"):
        figures.main(figures.Args(tmp_path / "empty"))
    append_row({"method": "rnd-text", "seed": 1}, tmp_path)
    with pytest.raises(UserError, match="rows of rnd-text"):
        figures.main(figures.Args(tmp_path))


def test_all_methods_have_a_look_and_panels_name_methods():
    looks = {name: figures.style(name) for name in METHODS}
    for panel in (figures.SOURCES, figures.INPUTS):
        assert len(panel) <= 14
        assert not any(looks[a] == looks[b] for a, b in combinations(panel, 2))
    named = {name for claim in figures.CLAIMS for name in claim} | set(figures.HEADLINE)
    assert named <= set(METHODS) and len(figures.HEADLINE) == 8


def test_our_rows_stand_among_the_published_ones(tmp_path, undrawn):
    write_rows(tmp_path, ["standard-ellm", "oracle"], 3)
    figures.main(figures.Args(tmp_path))
    table = read_json(tmp_path / "table.json")
    lines = figures.standard_table(
        [row for row in table["methods"] if row["group"] == "standard"]
    ).splitlines()
    ours = next(i for i, line in enumerate(lines) if "**standard-ellm**" in line)
    # Reward and percent of it are the evaluation's; 7.0 lies between DreamerV3 and PPO.
    cells = "| **standard-ellm** | ours, 3 seeds | 1M | 5.3 | 24.1 | 7.0 | 12.0 |"
    assert lines[ours] == cells
    assert lines[ours - 1].startswith("| DreamerV3 |") and lines[ours + 1].startswith("| PPO |")
    assert len(lines) == 2 + len(figures.PUBLISHED) + 1
    assert figures.standard_table([]) == "Not yet run."


# ---- pages

PAGE = """# Title
<!-- BEGIN table headline -->
old
<!-- END table headline -->
between
<!-- BEGIN table pixels -->
| old |
| --- |
<!-- END table pixels -->
"""


@pytest.fixture
def undrawn(monkeypatch):
    """Leave out the pictures."""
    monkeypatch.setattr(figures, "draw_all", lambda methods, folder: None)


def test_marked_tables_of_pages_are_rewritten(tmp_path, undrawn):
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(PAGE)
    (tmp_path / "docs" / "plain.md").write_text("no table\n")
    results = tmp_path / "results"
    write_rows(results, ["oracle", "rnd", "dqn-rnd"], 3)
    for _ in range(2):  # a second time nothing changes
        figures.main(figures.Args(results, tmp_path))
        assert (tmp_path / "README.md").read_text() == (
            "# Title\n<!-- BEGIN table headline -->\n"
            "| method | what rewards the agent | achievements | lowest to highest seed |\n"
            "| --- | --- | --- | --- |\n"
            "| `oracle` | goals from the true prerequisites | 5.6 | 4.6 to 6.6 |\n"
            "| `rnd` | prediction error | 5.3 | 4.3 to 6.3 |\n"
            "<!-- END table headline -->\nbetween\n"
            "<!-- BEGIN table pixels -->\nNot yet run.\n<!-- END table pixels -->\n"
        )
    assert (tmp_path / "docs" / "plain.md").read_text() == "no table\n"
    for wrong in (PAGE.replace("headline", "headlines"), PAGE.replace("END table pixels", "END")):
        (tmp_path / "README.md").write_text(wrong)
        with pytest.raises(UserError, match="README.md: the marks of table (headlines|pixels)"):
            figures.main(figures.Args(results, tmp_path))
        assert (tmp_path / "README.md").read_text() == wrong


def test_other_results_leave_the_repositorys_pages_alone(tmp_path, monkeypatch, undrawn):
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    monkeypatch.setattr(figures, "RESULTS", tmp_path / "results")
    (tmp_path / "README.md").write_text(PAGE)
    write_rows(tmp_path / "mine", ["oracle"], 1)
    figures.main(figures.Args(tmp_path / "mine"))
    assert (tmp_path / "README.md").read_text() == PAGE
    shutil.copytree(tmp_path / "mine", tmp_path / "results" / "pretraining")
    figures.main(figures.Args(tmp_path / "results" / "pretraining"))
    assert "| 4.6 | one seed |" in (tmp_path / "README.md").read_text()


def test_accelerators_are_tabulated(tmp_path):
    assert figures.accelerator_table([]) == "Not yet run."
    measured = {"compile_seconds": 12.4, "peak_memory_bytes": 3 * 2**29}
    rows = [
        {"what": what, "num_envs": 256, "steps_per_second": 1000.4 * number, **measured}
        for number, what in enumerate(("worlds", "craftax", "ppo"), start=1)
    ]
    rows.append({"what": "worlds", "num_envs": 1024, "steps_per_second": 9000.0, **measured})
    write_json(tmp_path / "accelerator.json", {"device": "gpu: X1", "rows": rows})
    lines = figures.accelerator_table(tmp_path.glob("accelerator*.json")).splitlines()
    assert lines[2:] == [
        "| gpu: X1 | 256 | 1,000 | 2,001 | 3,001 |  | 12 s /  | 1.5 GiB |",
        "| gpu: X1 | 1,024 | 9,000 |  |  |  |  /  | 1.5 GiB |",
    ]
    assert json.loads((tmp_path / "accelerator.json").read_text())["rows"] == rows


def test_houses_are_tabulated_by_task():
    """Scores are 3 + letters / 10 + seed: of house1-oracle (13 letters) 5.3 and 6.3."""
    assert figures.houses_table({}) == "Not yet run."
    names = (*(f"house{task}-ellm" for task in "1234"), "house1-oracle", "house3-oracle")
    methods = {name: [synthetic_row(name, seed) for seed in (1, 2)] for name in names}
    methods["house3-oracle"].pop()
    methods["house4-ellm"].pop()
    assert figures.houses_table(methods).splitlines()[2:] == [
        "| `oracle` | 1 or 2 | 5.80 |  | 5.30 |  |  |  |",
        "| `ellm` | 1 or 2 | 5.60 | 5.60 | 5.60 | 5.10 | 5.10 |  |",
    ]
    methods["house4-ellm"].append(synthetic_row("house4-ellm", 2))
    assert "| 5.60 | 5.10 to 6.10 |" in figures.houses_table(methods)


def test_houses_with_held_out_things_are_the_unit():
    assert figures.unseen_table({}) == "Not yet run."
    names = ("unseen0-ellm", "unseen3-ellm", "unseen1-novelty")
    methods = {name: [synthetic_row(name, 1)] for name in names}
    methods["unseen3-ellm"][0]["evaluation"]["success_per_episode"] = 6.2
    assert figures.unseen_table(methods).splitlines()[2:] == [
        "| `ellm` | 2 | 5.70 | 5.20 to 6.20 | 5.20 to 6.20 |",
        "| `novelty` | 1 | 5.50 |  | 5.50 to 5.50 |",
    ]

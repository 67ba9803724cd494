"""Goal quality: grading by hand, references, the scenes that are shipped, and both scripts end to end on a toy world."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import ellm_ppo
import goals.service
from benchmarks import goal_quality, scenes
from lab.errors import UserError
from tests.toy_world import FACTS, ToyWorld
from tests.training import PROMPT, TableModel, train
from worlds import make_world
from worlds.crafter import EFFECTS
from worlds.crafter import FACTS as CRAFTER_FACTS

SUGGESTED = np.array([[1, 1, 0], [1, 0, 0]], bool)
SHARES = np.array([[1.0, 0.5, 0.0], [0.0, 0.0, 1.0]])
WEIGHTS = np.array([1.0, 3.0])


def pack(facts, names):
    bits = sum(1 << facts.index(name) for name in names)
    return [bits >> shift & 0xFFFFFFFF for shift in range(0, len(facts), 32)]


def crafter_scenes(*scenes_):
    return np.array([pack(CRAFTER_FACTS, names) for names in scenes_], np.uint32)


def sample_of(packed, shares):
    ones = np.ones(len(packed))
    return scenes.Sample(packed, shares, ones, ones, np.full(len(packed), "random"))


def test_grades_by_hand():
    grades = goal_quality.grade(SUGGESTED, SHARES, np.ones(2))
    assert grades == pytest.approx(
        {"precision": 1.5 / 3, "recall": 1.5 / 2.5, "f1": 3 / 5.5, "goals_per_scene": 1.5}
    )
    # The second scene, three times as heavy, adds three wrong suggestions and misses three.
    grades = goal_quality.grade(SUGGESTED, SHARES, WEIGHTS)
    assert grades == pytest.approx(
        {"precision": 1.5 / 5, "recall": 1.5 / 4.5, "f1": 3 / 9.5, "goals_per_scene": 5 / 4}
    )


def test_nothing_suggested_has_no_precision():
    grades = goal_quality.grade(np.zeros_like(SUGGESTED), SHARES, WEIGHTS)
    assert np.isnan(grades["precision"]) and grades["recall"] == grades["f1"] == 0.0


def test_goals_are_graded_one_by_one():
    precision, recall = goal_quality.grade_goals(SUGGESTED, SHARES, WEIGHTS)
    np.testing.assert_allclose(precision, [0.25, 0.5, np.nan])
    np.testing.assert_allclose(recall, [1.0, 1.0, 0.0])


def test_classes_by_hand():
    possible = np.array([False, True, True])
    classes = goal_quality.classify(SUGGESTED, np.array([2, 1]), SHARES, WEIGHTS, possible)
    # Good 1 + 0.5, not now 0.5, never 3, no pair 2 + 3, of 10.
    assert classes == pytest.approx({"good": 0.15, "not now": 0.05, "never": 0.3, "no pair": 0.5})


def test_the_error_is_that_of_the_draw():
    suggested, shares = np.ones((400, 1), bool), np.repeat([[0.0], [1.0]], 200, axis=0)
    # F1 = 2p / (1 + p) has the slope 2 / (1 + p)^2; p is a mean of 400 coins.
    expected = 2 / 1.5**2 * 0.5 / np.sqrt(400)
    assert goal_quality.f1_error(suggested, shares, np.ones(400)) == pytest.approx(
        expected, rel=0.1
    )
    assert goal_quality.f1_error(suggested, np.ones((400, 1)), np.ones(400)) == pytest.approx(0.0)


def test_references_know_what_they_say_they_know():
    world = make_world("crafter")
    packed = crafter_scenes(["see cow", "have wood"], ["see tree", "have stone pickaxe", "sleepy"])
    shares = np.zeros((2, len(world.captions)))
    shares[0, world.captions.index("eat cow")] = 0.6
    shares[1, world.captions.index("sleep")] = 0.4
    found = goal_quality.references(world, sample_of(packed, shares))

    def goals(name, row):
        return {
            caption for caption, yes in zip(world.captions, found[name][row], strict=True) if yes
        }

    assert goals("all goals", 0) == set(world.captions[1:])
    makeable = {
        c
        for c in world.captions
        if c.startswith(("make ", "place "))
        and c.endswith(("pickaxe", "sword", "table", "furnace"))
    }
    cow = {f"{verb} cow" for verb in ("mine", "eat", "attack", "chop", "drink", "place", "make")}
    assert goals("grounded", 0) == makeable | cow | {"sleep"}
    assert goals("in view", 0) == cow - {"place cow", "make cow"}
    assert {"chop tree", "eat stone pickaxe"} < goals("in view", 1) and "sleep" not in goals(
        "in view", 1
    )
    assert goals("in view, pairs given", 0) == {"eat cow", "attack cow"}
    assert goals("in view, pairs given", 1) == {"chop tree"}
    assert goals("all goals, pairs given", 1) == set(EFFECTS)
    assert goals(goal_quality.CEILING, 0) == {"eat cow"} and not goals(goal_quality.CEILING, 1)


def test_weighted_draws_stand_for_all_steps():
    rng = np.random.default_rng(0)
    visits = rng.zipf(1.6, 400).clip(max=5_000)
    values = rng.random(400) + (visits > 3)
    means = []
    for _ in range(400):
        rows, weights = scenes.draw(visits, 60, rng)
        assert len(set(rows.tolist())) == 60 and weights.mean() == pytest.approx(1.0)
        means.append(np.average(values[rows], weights=weights))
    assert np.mean(means) == pytest.approx(np.average(values, weights=visits), abs=0.02)
    rows, weights = scenes.draw(np.array([1, 3]), 5, rng)
    assert rows.tolist() == [0, 1] and weights.tolist() == [0.5, 1.5]


def test_shipped_scenes_are_whole_and_their_splits_share_nothing():
    world, path = make_world("crafter"), goal_quality.Args().scenes
    sets = scenes.load(path, world)
    assert path.stat().st_size < 500_000 and len(sets.calibration) == 256
    compact = [
        set(map(bytes, part & world.prompt_mask("compact")))
        for part in (sets.dev.scenes, sets.test.scenes, sets.calibration)
    ]
    assert not (compact[0] & compact[1] or compact[0] & compact[2] or compact[1] & compact[2])
    never = ~goal_quality.possible_captions(world)
    for sample in (sets.dev, sets.test):
        assert ((sample.shares >= 0) & (sample.shares <= 1)).all() and not sample.shares[
            :, never
        ].any()
        for source in sets.header["sources"]:
            mine = sample.sources == source
            assert len(np.unique(sample.scenes[mine], axis=0)) == mine.sum() == 150
            assert sample.weights[mine].mean() == pytest.approx(1.0)


def test_scenes_that_do_not_fit_are_refused(tmp_path):
    path, world = tmp_path / "scenes.npz", make_world("crafter")
    path.write_bytes(b"torn")
    with pytest.raises(UserError, match="scenes.npz cannot be read"):
        scenes.load(path, world)
    with pytest.raises(UserError, match="other words than toy has"):
        world = ToyWorld()
        scenes.load(goal_quality.Args().scenes, world)


def test_equal_scenes_are_merged():
    packed = np.array([[1, 2], [3, 4], [1, 2]], np.uint32)
    merged = scenes.count(
        packed, np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]), np.array([3, 1, 1])
    )
    assert merged.scenes.tolist() == [[1, 2], [3, 4]] and merged.visits.tolist() == [4, 1]
    np.testing.assert_allclose(merged.shares, [[0.75, 0.0], [1.0, 1.0]])


def test_sampling_plays_a_run(tmp_path, monkeypatch):
    world = ToyWorld()
    train(monkeypatch, world, tmp_path, "oracle", goal_source="oracle", total_timesteps=64)
    out, visited = tmp_path / "scenes.npz", tmp_path / "visited.npz"
    args = scenes.Args(
        run_dirs=(tmp_path / "oracle",),
        steps=200,
        num_worlds=8,
        scenes_per_split=9,
        out=out,
        visited=visited,
    )
    scenes.main(args)
    sets = scenes.load(out, world)
    assert (
        sets.header["sources"]["oracle"]["steps"] >= 200
        and sets.header["sources"]["random"]["steps"] >= 100
    )
    packed = np.concatenate([sets.dev.scenes, sets.test.scenes])[:, 0]
    shares = np.concatenate([sets.dev.shares, sets.test.shares])
    assert set(np.concatenate([sets.dev.sources, sets.test.sources])) == {"oracle", "random"}
    # In the toy the scene tells all that its oracle sees.
    at = {fact: (packed >> FACTS.index(fact) & 1) == 1 for fact in FACTS}
    np.testing.assert_array_equal(shares[:, 1] == 1.0, at["see key"] & at["stand at 0"])
    np.testing.assert_array_equal(shares[:, 2] == 1.0, at["have key"] & at["see door"])
    assert set(np.unique(shares)) <= {0.0, 1.0} and not shares[:, [0, 3]].any()
    with np.load(visited) as file:
        visits = file["visits"]
        assert visits.sum() == sum(source["steps"] for source in sets.header["sources"].values())
        assert (np.diff(visits) <= 0).all() and (file["scenes"] < 8).all()
    with pytest.raises(UserError, match="two runs are called oracle"):
        scenes.main(
            scenes.Args(run_dirs=(tmp_path / "oracle",) * 2, steps=2, num_worlds=2, out=out)
        )


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Three scenes of the toy world and a model that answers from a table; return both and the arguments."""
    world, model = ToyWorld(), TableModel()
    monkeypatch.setattr(ellm_ppo, "make_args_world", lambda args: world)
    monkeypatch.setattr(goals.service, "load_language_model", lambda *args, **kwargs: model)
    monkeypatch.setitem(goal_quality.POSSIBLE, "toy", ("take key", "open door"))
    prompt = tmp_path / "toy_open_v1.txt"
    prompt.write_text(PROMPT, encoding="utf-8")
    names = (
        ["see key", "stand at 0"],
        ["have key", "stand at 1"],
        ["have key", "see door", "stand at 3"],
    )
    packed = np.array([pack(FACTS, facts) for facts in names], np.uint32)
    arrays = {
        "scenes": packed,
        "shares": np.array([[0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]], np.float32),
        "visits": np.ones(3, np.int64),
        "weights": np.ones(3),
        "sources": np.zeros(3, np.uint8),
    }
    header = {"sources": {"random": {}}, "captions": world.captions, "facts": world.facts}
    arrays = {
        f"{split}_{name}": values for split in scenes.LABELLED for name, values in arrays.items()
    }
    scenes.save(
        tmp_path / "toy.npz",
        {"header": np.array(json.dumps(header)), "calibration": packed, **arrays},
    )
    args = goal_quality.Args(
        llm="table",
        forms=("open",),
        prompt=str(prompt),
        scenes=tmp_path / "toy.npz",
        store=tmp_path / "store.sqlite",
        out=tmp_path / "results",
    )
    return args, model


def test_a_model_is_asked_once_and_graded_as_a_run_would_see_it(toy, tmp_path, capsys):
    args, model = toy
    results = goal_quality.main(args)
    assert len(model.prompts) == 3 and results["asked"]["open"]["usage"]["queries"] == 3
    alone, grounded = (
        results["forms"][f"open, {kind}"]["by_visits"] for kind in ("alone", "grounded")
    )
    # take key | open door, kick wall | open door, kick wall; and in every scene a song, which is no caption.
    assert (alone["precision"], alone["recall"]) == (pytest.approx(2 / 5), 1.0)
    assert alone["classes"] == pytest.approx(
        {"good": 2 / 8, "not now": 1 / 8, "never": 2 / 8, "no pair": 3 / 8}
    )
    # Far from the door there is none to open.
    assert (grounded["precision"], grounded["recall"]) == (pytest.approx(2 / 3), 1.0)
    assert results["forms"]["open, alone"]["goals"]["open door"] == {
        "precision": 0.5,
        "recall": 1.0,
    }
    assert results["references"]["grounded"]["by_visits"]["precision"] == pytest.approx(2 / 5)
    assert "open, grounded" in capsys.readouterr().out
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert (tmp_path / "results.png").stat().st_size > 10_000


def test_results_of_the_same_scenes_are_compared(toy, tmp_path):
    args, _ = toy
    goal_quality.main(args)
    goal_quality.main(goal_quality.dataclasses.replace(args, every=2, out=tmp_path / "fewer"))
    both = tmp_path / "both"
    goal_quality.main(goal_quality.Args(compare=(tmp_path / "results.json",) * 2, out=both))
    assert both.with_suffix(".png").stat().st_size > 10_000
    with pytest.raises(UserError, match="not of the same scenes"):
        goal_quality.main(
            goal_quality.Args(
                compare=(tmp_path / "results.json", tmp_path / "fewer.json"), out=both
            )
        )


def test_flags_that_say_nothing_are_refused(toy):
    args, _ = toy
    with pytest.raises(UserError, match="say whom to ask"):
        goal_quality.main(goal_quality.Args())
    with pytest.raises(UserError, match="--prompt is for one form"):
        goal_quality.main(goal_quality.dataclasses.replace(args, forms=("open", "rules")))
    with pytest.raises(UserError, match="--every 0"):
        goal_quality.main(goal_quality.dataclasses.replace(args, every=0))
    with pytest.raises(UserError, match="at least one run"):
        scenes.main(scenes.Args(run_dirs=()))


def test_what_runs_get_is_what_is_graded():
    args = goal_quality.run_args(goal_quality.Args(llm="x", prompt_scope="compact"), "open")
    assert (args.goal_source, args.goal_form, args.llm, args.prompt_scope) == (
        "llm",
        "open",
        "x",
        "compact",
    )
    world = make_world("crafter")
    alone = goal_quality.Ungrounded(world)
    assert (
        alone.captions is world.captions
        and not alone.grounding_masks().any()
        and not alone.in_view_masks().any()
    )
    assert world.grounding_masks().any() and jnp.any(world.in_view_masks())

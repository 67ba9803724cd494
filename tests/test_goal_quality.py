"""Goal quality: grades by hand, references, the scenes that ship, and all of it on a toy world."""

import dataclasses
import json

import numpy as np
import pytest

import ellm_ppo
import goals.sources
from benchmarks import goal_quality, llm_speed, scenes
from lab.errors import UserError
from tests.helpers.scripted_model import ScriptedModel
from tests.helpers.table_model import PROMPT, TableModel
from tests.toy.world import FACTS, ToyWorld
from worlds import make_world
from worlds.world import WorldArgs, mask_of

TOY = "tests.toy.world:ToyWorld"
TINY = {
    "num_envs": 4,
    "num_steps": 8,
    "num_minibatches": 2,
    "update_epochs": 1,
    "hidden_size": 16,
    "evaluate_episodes": 0,
}
SUGGESTED = np.array([[1, 1, 0], [1, 0, 0]], bool)
SHARES = np.array([[1.0, 0.5, 0.0], [0.0, 0.0, 1.0]])
WEIGHTS = np.array([1.0, 3.0])


@pytest.fixture(scope="module")
def crafter():
    return make_world(WorldArgs())


def sample_of(packed, shares):
    ones = np.ones(len(packed))
    return scenes.Sample(packed, shares, ones, ones, np.full(len(packed), "random"))


def test_grades_by_hand():
    grades = goal_quality.grade(SUGGESTED, SHARES, np.ones(2))
    expected = {"precision": 1.5 / 3, "recall": 1.5 / 2.5, "f1": 3 / 5.5, "goals_per_scene": 1.5}
    assert grades == pytest.approx(expected)
    # The second scene, three times as heavy, adds three wrong suggestions and misses three.
    grades = goal_quality.grade(SUGGESTED, SHARES, WEIGHTS)
    expected = {"precision": 1.5 / 5, "recall": 1.5 / 4.5, "f1": 3 / 9.5, "goals_per_scene": 5 / 4}
    assert grades == pytest.approx(expected)


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


def test_references_know_what_they_say_they_know(crafter):
    seen = (["see cow", "have wood"], ["see tree", "have stone pickaxe", "sleepy"])
    packed = np.stack([mask_of(crafter.facts, facts) for facts in seen])
    shares = np.zeros((2, len(crafter.captions)))
    shares[0, crafter.captions.index("eat cow")] = 0.6
    shares[1, crafter.captions.index("sleep")] = 0.4
    found = goal_quality.references(crafter, sample_of(packed, shares))

    def goals(name, row):
        return {crafter.captions[i] for i in np.flatnonzero(found[name][row])}

    assert goals("all goals", 0) == set(crafter.captions[1:])
    makeable = {
        caption
        for caption in crafter.captions
        if caption.startswith(("make ", "place "))
        and caption.endswith(("pickaxe", "sword", "table", "furnace"))
    }
    verbs = ("mine", "eat", "attack", "chop", "drink", "place", "make")
    cow = {f"{verb} cow" for verb in verbs}
    assert goals("grounded", 0) == makeable | cow | {"sleep"}
    assert goals("in view", 0) == cow - {"place cow", "make cow"}
    assert {"chop tree", "eat stone pickaxe"} < goals("in view", 1)
    assert "sleep" not in goals("in view", 1)
    assert goals("in view, pairs given", 0) == {"eat cow", "attack cow"}
    assert goals("in view, pairs given", 1) == {"chop tree"}
    assert goals("all goals, pairs given", 1) == crafter.meaningful
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


def test_shipped_scenes_are_whole_and_their_splits_share_nothing(crafter):
    path = scenes.scenes_path(crafter)
    sets = scenes.load(path, crafter)
    assert path.stat().st_size < 500_000 and len(sets.calibration) == 256
    parts = (sets.dev.scenes, sets.test.scenes, sets.calibration)
    compact = [set(map(bytes, part & crafter.prompt_mask("compact"))) for part in parts]
    assert not (compact[0] & compact[1] or compact[0] & compact[2] or compact[1] & compact[2])
    never = ~goal_quality.meaningful_captions(crafter)
    for sample in (sets.dev, sets.test):
        assert ((sample.shares >= 0) & (sample.shares <= 1)).all()
        assert not sample.shares[:, never].any()
        for source in sets.header["sources"]:
            mine = sample.sources == source
            assert len(np.unique(sample.scenes[mine], axis=0)) == mine.sum() == 150
            assert sample.weights[mine].mean() == pytest.approx(1.0)


def test_scenes_that_do_not_fit_are_refused(tmp_path, crafter):
    path = tmp_path / "scenes.npz"
    path.write_bytes(b"torn")
    with pytest.raises(UserError, match="scenes.npz cannot be read"):
        scenes.load(path, crafter)
    with pytest.raises(UserError, match="other words than toy has"):
        scenes.load(scenes.scenes_path(crafter), ToyWorld())


def test_equal_scenes_are_merged():
    packed = np.array([[1, 2], [3, 4], [1, 2]], np.uint32)
    merged = scenes.count(
        packed, np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]), np.array([3, 1, 1])
    )
    assert merged.scenes.tolist() == [[1, 2], [3, 4]] and merged.visits.tolist() == [4, 1]
    np.testing.assert_allclose(merged.shares, [[0.75, 0.0], [1.0, 1.0]])


def test_sampling_plays_a_run(tmp_path):
    run_dir, out, visited = tmp_path / "oracle", tmp_path / "scenes.npz", tmp_path / "visited.npz"
    where = {"run_dir": str(run_dir), "store": str(tmp_path / "store.sqlite")}
    run_args = ellm_ppo.Args(env=TOY, goal_source="oracle", total_timesteps=64, **TINY, **where)
    ellm_ppo.main(run_args)
    size = {"steps": 200, "num_worlds": 8, "scenes_per_split": 9}
    scenes.main(scenes.Args(run_dirs=(run_dir,), out=out, visited=visited, **size))
    sets = scenes.load(out, ToyWorld())
    sources = sets.header["sources"]
    assert sources["oracle"]["steps"] >= 200 and sources["random"]["steps"] >= 100
    assert (
        sources["oracle"]["goal_source"] == "oracle"
        and "doors_opened_per_episode" in (sources["oracle"])
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
        assert visits.sum() == sum(source["steps"] for source in sources.values())
        assert (np.diff(visits) <= 0).all() and (file["scenes"] < 8).all()
    with pytest.raises(UserError, match="two runs are called oracle"):
        args = scenes.Args(run_dirs=(run_dir, run_dir), steps=2, num_worlds=2, out=out)
        scenes.main(args)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Three scenes of the toy world, a model that answers from a table, and the arguments."""
    world, model = ToyWorld(), TableModel()
    monkeypatch.setattr(goals.sources, "load_language_model", lambda *args, **kwargs: model)
    prompt = tmp_path / "toy_open_v1.txt"
    prompt.write_text(PROMPT, encoding="utf-8")
    seen = (
        ["see key", "stand at 0"],
        ["have key", "stand at 1"],
        ["have key", "see door", "stand at 3"],
    )
    packed = np.stack([mask_of(FACTS, facts) for facts in seen])
    arrays = {
        "scenes": packed,
        "shares": np.array([[0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]], np.float32),
        "visits": np.ones(3, np.int64),
        "weights": np.ones(3),
        "sources": np.zeros(3, np.uint8),
    }
    header = {"sources": {"random": {}}, "captions": world.captions, "facts": world.facts}
    labelled = {
        f"{split}_{name}": values for split in scenes.LABELLED for name, values in arrays.items()
    }
    labelled |= {"header": np.array(json.dumps(header)), "calibration": packed}
    scenes.save(tmp_path / "toy.npz", labelled)
    args = goal_quality.Args(
        env=TOY,
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
    kinds = ("alone", "grounded")
    alone, grounded = (results["forms"][f"open, {kind}"]["by_visits"] for kind in kinds)
    # take key | open door, kick wall | open door, kick wall; and in every scene a song, which is no
    # caption.
    assert (alone["precision"], alone["recall"]) == (pytest.approx(2 / 5), 1.0)
    classes = {"good": 2 / 8, "not now": 1 / 8, "never": 2 / 8, "no pair": 3 / 8}
    assert alone["classes"] == pytest.approx(classes)
    # Far from the door there is none to open.
    assert (grounded["precision"], grounded["recall"]) == (pytest.approx(2 / 3), 1.0)
    goals = results["forms"]["open, alone"]["goals"]
    assert goals["open door"] == {"precision": 0.5, "recall": 1.0}
    assert results["references"]["grounded"]["by_visits"]["precision"] == pytest.approx(2 / 5)
    assert "open, grounded" in capsys.readouterr().out
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert (tmp_path / "results.png").stat().st_size > 10_000


def test_results_of_the_same_scenes_are_compared(toy, tmp_path):
    args, _ = toy
    goal_quality.main(args)
    goal_quality.main(dataclasses.replace(args, every=2, out=tmp_path / "fewer"))
    both = tmp_path / "both"
    goal_quality.main(goal_quality.Args(compare=(tmp_path / "results.json",) * 2, out=both))
    assert both.with_suffix(".png").stat().st_size > 10_000
    with pytest.raises(UserError, match="not of the same scenes"):
        files = (tmp_path / "results.json", tmp_path / "fewer.json")
        goal_quality.main(goal_quality.Args(compare=files, out=both))


def test_flags_that_say_nothing_are_refused(toy):
    args, _ = toy
    with pytest.raises(UserError, match="say whom to ask"):
        goal_quality.main(goal_quality.Args())
    with pytest.raises(UserError, match="--prompt is for one form"):
        goal_quality.main(dataclasses.replace(args, forms=("open", "rules")))
    with pytest.raises(UserError, match="--every 0"):
        goal_quality.main(dataclasses.replace(args, every=0))
    with pytest.raises(UserError, match="at least one run"):
        scenes.main(scenes.Args(run_dirs=()))


def test_what_runs_get_is_what_is_graded(crafter):
    args = goal_quality.make_goal_args(goal_quality.Args(llm="x"), "open")
    assert (args.goal_source, args.goal_form, args.llm) == ("llm", "open", "x")
    assert (args.grounding, args.prompt_scope) == (True, "compact")
    alone = goal_quality.Ungrounded(crafter)
    assert alone.captions is crafter.captions
    assert not alone.grounding_masks().any() and not alone.in_view_masks().any()
    assert crafter.grounding_masks().any() and crafter.in_view_masks().any()


def test_results_of_a_world_of_ones_own_have_its_name():
    args = goal_quality.Args()
    crafter = goal_quality.default_out(args, ToyWorld(), "m")
    assert crafter == goal_quality.RESULTS / "goal_quality" / "m"
    args = dataclasses.replace(args, env=TOY, split="dev")
    assert goal_quality.default_out(args, ToyWorld(), "m").name == "toy-m-dev"


def test_models_are_timed_in_all_forms(toy, tmp_path, monkeypatch, capsys):
    scorer, lister = ScriptedModel(), ScriptedModel(can_score=False)
    engines = {"transformers": scorer, "llama.cpp": lister}
    monkeypatch.setattr(llm_speed, "load_language_model", lambda llm, engine: engines[engine])
    args = llm_speed.Args(
        env=TOY,
        llms=("model.gguf",),
        batches=(1, 2),
        answers=2,
        rounds=2,
        scenes=toy[0].scenes,
        out=tmp_path / "speed.json",
    )
    result = llm_speed.main(args)
    rows = [(row["engine"], row["form"], row["batch"]) for row in result["answers_per_second"]]
    fast = [("transformers", batch) for batch in (1, 2)]
    for form in ("open", "closed", "yes-no"):
        expected = fast if form == "closed" else [("llama.cpp", 1), *fast]
        assert [(engine, batch) for engine, kind, batch in rows if kind == form] == expected
    assert all(
        row["median"] > 0 and len(row["rounds"]) == 2 for row in result["answers_per_second"]
    )
    assert json.loads((tmp_path / "speed.json").read_text()) == result
    assert capsys.readouterr().out.count("\n") == 1 + len(rows)

"""The PPO script: numbers by hand, plain-Python twins, probes, equal ways to one result."""

import ast
import dataclasses
import importlib.util
import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ellm_ppo
import goals.scene_tables
import goals.sources
from goals import rules
from goals.arguments import GoalArgs
from goals.service import GoalService
from goals.tables import grow_goals
from lab import evaluate
from lab.arguments import RunArgs
from lab.errors import UserError
from lab.film import film_frames
from lab.play import play
from lab.run import read_config, read_evaluations
from tests.helpers.table_model import PROMPT, Chatty, TableModel
from tests.helpers.tables import make_tables
from tests.toy.world import ProbeWorld, ToyWorld
from tests.training import (
    assert_equal_trees,
    count_programs,
    make_args,
    open_script,
    train,
    train_with_a_break,
)
from worlds import make_world
from worlds.world import WorldArgs

EXACT = {"rtol": 0, "atol": 0}


# Numbers by hand


def test_advantages_by_hand_tell_termination_from_truncation():
    rewards = jnp.asarray([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]])
    values = jnp.asarray([[0.5, 0.5], [1.0, 1.0], [1.5, 1.5]])
    next_values = jnp.asarray(
        [[1.0, 1.0], [8.0, 8.0], [2.0, 2.0]]
    )  # the second step ends both episodes
    done = jnp.asarray([[False, False], [True, True], [False, False]])
    terminated = done.at[1, 1].set(
        False
    )  # the second env was cut by the time limit: its last state is worth 8
    advantages = ellm_ppo.generalised_advantages(
        rewards, values, next_values, terminated, done, 0.5, 0.5
    )
    third = 4.0 + 0.5 * 2.0 - 1.5
    second = [2.0 - 1.0, 2.0 + 0.5 * 8.0 - 1.0]
    first = [1.0 + 0.5 * 1.0 - 0.5 + 0.25 * a for a in second]
    np.testing.assert_allclose(advantages, [first, second, [third, third]], rtol=1e-6)


def test_reward_by_hand_takes_the_best_new_goal_above_the_threshold():
    # Goals x captions; caption 0 is "nothing".
    similarity = jnp.asarray([[0, 1.0, 0.5], [0, 0.995, 0.2], [0, 0.98, 1.0]])
    tables = make_tables(similarity=similarity, names=jnp.eye(3, 3, dtype=bool))
    suggested = jnp.asarray([[1, 1, 1], [0, 1, 1], [1, 1, 0], [1, 1, 1], [0, 0, 1]], bool)
    achieved = jnp.asarray([[0, 0, 0], [0, 0, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]], bool)
    did, nothing = jnp.ones(5, jnp.int32), jnp.zeros(5, jnp.int32)
    rewards, after = ellm_ppo.reward_step(tables, 0.99, suggested, achieved, did)
    np.testing.assert_allclose(rewards, [1.0, 0.995, 0.995, 0.0, 0.0])
    # The second goal is named by the caption, the first only resembles it.
    assert after.tolist() == [[1, 1, 0], [0, 1, 0], [1, 1, 0], [1, 1, 1], [0, 0, 0]]
    rewards, after = ellm_ppo.reward_step(tables, 0.99, suggested, achieved, nothing)
    assert rewards.tolist() == [0.0] * 5 and after.tolist() == achieved.tolist()


def test_a_caption_that_reaches_no_suggested_goal_is_wrong():
    tables = make_tables(similarity=jnp.diag(jnp.asarray([0.0, 1.0, 1.0])), names=jnp.eye(3) > 0)
    suggested = jnp.asarray([[0, 1, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0]], bool)
    achieved = jnp.asarray([[0, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0]], bool)
    captions = jnp.asarray([1, 1, 2, 0])  # reached, reached before, not suggested, nothing
    rewards, _ = ellm_ppo.reward_step(tables, 0.99, suggested, achieved, captions, -0.1)
    np.testing.assert_allclose(rewards, [1.0, -0.1, -0.1, 0.0], rtol=1e-6)


def test_a_goal_and_its_aliases_are_reached_together_and_paid_once(tmp_path):
    world = make_world(WorldArgs())
    store = str(tmp_path / "store.sqlite")
    args = ellm_ppo.Args(goal_source="novelty", goal_conditioned=False, store=store)
    service = GoalService(world, args)
    service.prepare()
    names = ("attack cow", "eat cow", "place crafting table", "make crafting table", "chop tree")
    attack, eat, place, make, chop = map(world.captions.index, names)
    steps = [attack, eat, attack, make, place, chop, chop]
    suggested = jnp.ones((1, service.num_goals), bool)
    achieved, paid = jnp.zeros_like(suggested), []
    for caption in steps:
        caption = jnp.asarray([caption])
        rewards, achieved = ellm_ppo.reward_step(service.tables, 0.99, suggested, achieved, caption)
        paid.append(float(rewards[0]))
    assert paid == [1, 0, 0, 1, 0, 1, 0]
    assert achieved[0, jnp.asarray([attack, eat, place, make, chop])].all()
    # A goal is reached under its other name, too.
    only = jnp.zeros_like(suggested).at[0, eat].set(True)
    rewards, _ = ellm_ppo.reward_step(
        service.tables, 0.99, only, jnp.zeros_like(only), jnp.asarray([attack])
    )
    assert rewards.tolist() == [1.0]


def plain_rewards(similarity, suggested, captions, done, achieved, threshold):
    """Reward a rollout in plain Python; achieved is a list of sets, changed in place."""
    num_steps, num_envs = captions.shape
    rewards = np.zeros((num_steps, num_envs))
    for t in range(num_steps):
        for n in range(num_envs):
            matched = set(np.flatnonzero(similarity[:, captions[t, n]] > threshold))
            reached = matched & set(np.flatnonzero(suggested[t, n])) - achieved[n]
            if reached:
                rewards[t, n] = max(similarity[goal, captions[t, n]] for goal in reached)
                achieved[n] |= reached
            if done[t, n]:
                achieved[n].clear()
    return rewards


def test_rewards_of_a_rollout_equal_plain_python(setups):
    rng = np.random.default_rng(0)
    num_steps, num_envs, num_goals, num_captions = 30, 6, 32, 5
    similarity = rng.random((num_goals, num_captions)).astype(np.float32)
    suggested = rng.random((num_steps, num_envs, num_goals)) < 0.3
    captions = rng.integers(0, num_captions, (num_steps, num_envs))
    terminated, truncated = rng.random((2, num_steps, num_envs)) < 0.05
    achieved = rng.random((num_envs, num_goals)) < 0.2
    blank = jnp.zeros((num_steps, num_envs))
    rollout = ellm_ppo.Rollout(
        inputs=None,
        scenes=jnp.zeros((num_steps, num_envs, 1), jnp.uint32),
        suggested=ellm_ppo.pack_bits(jnp.asarray(suggested)),
        guides=None,
        actions=blank,
        log_probs=blank,
        values=blank,
        captions=jnp.asarray(captions),
        rewards=blank,
        terminated=jnp.asarray(terminated),
        truncated=jnp.asarray(truncated),
    )
    setup, _ = setups(goal_source="oracle", similarity_threshold=0.8)
    no_names = jnp.zeros((num_goals, num_captions), bool)
    tables = make_tables(similarity=jnp.asarray(similarity), names=no_names)
    rewards, at_end = ellm_ppo.ellm_rewards(setup, tables, rollout, jnp.asarray(achieved))
    sets = [set(np.flatnonzero(row)) for row in achieved]
    expected = plain_rewards(similarity, suggested, captions, terminated | truncated, sets, 0.8)
    np.testing.assert_allclose(rewards, expected, **EXACT)
    assert [set(np.flatnonzero(row)) for row in np.asarray(at_end)] == sets
    assert (expected > 0).mean() > 0.1


@pytest.fixture
def setups(tmp_path):
    blind = {"goal_conditioned": False, "text_observation": "none"}

    def make(world=None, **fields):
        fields = {**blind, "store": str(tmp_path / "store.sqlite"), **fields}
        args = ellm_ppo.Args(num_envs=4, num_steps=8, **fields)
        return open_script(ellm_ppo, args, world or ToyWorld())

    return make


# The learner


@pytest.mark.parametrize("kind", ["constant", "observation", "delayed", "action"])
def test_learner_answers_the_probe(monkeypatch, tmp_path, kind):
    world = ProbeWorld(kind=kind)
    fields = {
        "goal_source": "none",
        "num_envs": 16,
        "total_timesteps": 16 * 8 * 60,
        "learning_rate": 3e-3,
    }
    _, state, lines = train(
        monkeypatch,
        world,
        tmp_path,
        kind,
        gamma=0.5,
        gae_lambda=0.95,
        checkpoint_every=1000,
        **fields,
    )
    network = ellm_ppo.ActorCritic(2, 16)
    observations = jnp.asarray([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    inputs = ellm_ppo.PolicyInput(
        observations, jnp.zeros((4, 3), bool), *(jnp.zeros((4, 0)) for _ in range(4))
    )
    logits, values = network.apply(state.params, inputs, make_tables())
    if kind == "constant":
        np.testing.assert_allclose(values[:2], [1.0, 1.0], atol=0.1)
    elif kind == "observation":
        np.testing.assert_allclose(values[:2], [-1.0, 1.0], atol=0.15)
    elif kind == "delayed":
        first_step = values[:2]
        np.testing.assert_allclose(first_step, [0.5, 0.5], atol=0.15)
    else:
        assert jax.nn.softmax(logits)[0, 0] > 0.9 and jax.nn.softmax(logits)[1, 1] > 0.9
        assert lines[-1]["reward_per_step"] > 0.8


def test_learns_to_reach_suggested_goals_without_the_worlds_reward(monkeypatch, tmp_path):
    _, _, lines = train(
        monkeypatch, ToyWorld(), tmp_path, "learn", TableModel(), goal_form="open", num_envs=16,
        total_timesteps=16 * 8 * 200, learning_rate=3e-3, checkpoint_every=1000, hidden_size=64,
        ent_coef=0.03,
    )  # fmt: skip
    rates = [line["success_rates"] for line in lines if line["episodes"]]
    means = [rate["take key"] + rate["open door"] for rate in rates]
    assert np.mean(means[:10]) < 1.2 and np.mean(means[-20:]) > 1.7


# Ways that must lead to the same result


READING = [
    {},
    {"goal_conditioned": True},
    {"text_observation": "caption"},
    {"goal_conditioned": True, "text_observation": "facts"},
]


@pytest.mark.parametrize("fields", READING, ids=["blind", "goals", "text", "goals-facts"])
def test_cold_run_equals_warm_run_bit_for_bit_and_asks_nothing_twice(monkeypatch, tmp_path, fields):
    model = TableModel()
    settings = {"goal_form": "open", "total_timesteps": 4 * 8 * 6, **fields}
    cold, cold_state, cold_lines = train(
        monkeypatch, ToyWorld(), tmp_path, "cold", model, **settings
    )
    asked = len(model.prompts)
    assert asked == len(set(model.prompts)) == cold["queries"] > 3
    warm, warm_state, warm_lines = train(
        monkeypatch, ToyWorld(), tmp_path, "warm", model, **settings
    )
    assert warm["queries"] == 0 and len(model.prompts) == asked and warm["store_hits"] == asked
    assert_equal_trees(cold_state, warm_state)
    assert cold_lines == warm_lines


@pytest.mark.parametrize(
    "fields",
    [
        {"goal_source": "oracle"},
        {"goal_form": "open", "resolve": "async", "goal_conditioned": True},
    ],
    ids=["exact", "async"],
)
def test_collection_that_stops_at_unknown_scenes_equals_one_that_never_stops(
    monkeypatch, tmp_path, setups, fields
):
    """Compare with a run that knew everything beforehand; in async nobody waits for goals."""
    world, model = ToyWorld(), TableModel()
    monkeypatch.setattr(goals.sources, "load_language_model", lambda spec, **options: model)
    (tmp_path / "prompt.txt").write_text(PROMPT, encoding="utf-8")
    fields = {
        "text_observation": "caption",
        "seed": 3,
        "llm": "table",
        "prompt": str(tmp_path / "prompt.txt"),
        **fields,
    }
    rollouts = []
    for known_before in (False, True):
        setup, service = setups(world, **fields)
        if known_before:
            service.know(np.arange(1 << len(world.facts), dtype=np.uint32)[:, None])
        state = ellm_ppo.init_state(setup, service.tables)
        rollout, stops = ellm_ppo.empty_rollout(setup, service.tables, state), 0
        state, rollout, unknown = ellm_ppo.collect(setup, service.tables, state, rollout)
        while np.asarray(unknown.mask).any():
            service.know(np.asarray(unknown.scenes)[np.asarray(unknown.mask)])
            state, rollout = grow_goals((state, rollout), service.num_goals)
            state, rollout, unknown = ellm_ppo.collect(setup, service.tables, state, rollout)
            stops += 1
        assert (stops == 0) == known_before
        rollouts.append(rollout)
    assert_equal_trees(*rollouts)
    assert not model.prompts and not np.asarray(rollouts[0].inputs.goals).any()


def test_goal_conditioned_policy_reads_only_goals_not_yet_reached(setups):
    world = ToyWorld()
    setup, service = setups(world, goal_source="oracle", goal_conditioned=True)
    state = ellm_ppo.init_state(setup, service.tables)
    rollout = ellm_ppo.empty_rollout(setup, service.tables, state)
    rollout = jax.device_get(ellm_ppo.collect(setup, service.tables, state, rollout)[1])
    achieved = [set() for _ in range(4)]
    suggested = np.asarray(ellm_ppo.unpack_bits(rollout.suggested))
    read = np.asarray(ellm_ppo.unpack_bits(rollout.inputs.goals))
    for t in range(8):
        for n in range(4):
            left = [g for g in np.flatnonzero(suggested[t, n]) if g not in achieved[n]]
            assert np.flatnonzero(read[t, n]).tolist() == left
            if rollout.captions[t, n] in np.flatnonzero(suggested[t, n]):
                achieved[n].add(rollout.captions[t, n])
            if rollout.terminated[t, n] or rollout.truncated[t, n]:
                achieved[n].clear()
    assert suggested.any()


def test_room_for_goals_grows_without_a_trace(monkeypatch, tmp_path):
    settings = {"goal_form": "open", "goal_conditioned": True, "total_timesteps": 4 * 8 * 6}
    roomy, _, roomy_lines = train(monkeypatch, ToyWorld(), tmp_path, "roomy", Chatty(), **settings)
    monkeypatch.setattr(goals.scene_tables, "GOAL_CAPACITY", 32)
    settings["store"] = str(tmp_path / "other.sqlite")
    grown, state, grown_lines = train(
        monkeypatch, ToyWorld(), tmp_path, "grown", Chatty(), **settings
    )
    assert grown["goals"] == roomy["goals"] > 32 and state.achieved.shape[1] >= grown["goals"]
    assert grown["unparsed"] == roomy["unparsed"] > 0
    for a, b in zip(roomy_lines, grown_lines, strict=True):
        assert a["success_rates"] == b["success_rates"] and a["scenes"] == b["scenes"]
        np.testing.assert_allclose(a["value_loss"], b["value_loss"], rtol=1e-4)


class SilentModel(TableModel):
    """Has no answer where the key can be seen."""

    def answer(self, scene):
        return None if "see key" in scene else super().answer(scene)


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (TableModel, {}),
        (TableModel, {"goal_conditioned": True, "text_observation": "caption"}),
        (SilentModel, {}),
    ],
    ids=["blind", "reads", "silent"],
)
def test_resumed_run_ends_where_an_undisturbed_one_ends(monkeypatch, tmp_path, model, fields):
    settings = {"goal_form": "open", "total_timesteps": 4 * 8 * 6, "checkpoint_every": 3, **fields}
    _, whole, whole_lines = train(monkeypatch, ToyWorld(), tmp_path, "whole", model(), **settings)
    _, resumed, resumed_lines = train_with_a_break(
        monkeypatch, ToyWorld(), tmp_path, "killed", model(), **settings
    )
    assert_equal_trees(whole, resumed)
    assert whole_lines == resumed_lines and len(whole_lines) == 6
    assert any(line["steps_without_answer"] for line in whole_lines) == (model is SilentModel)


def test_evidence_drops_the_needs_that_play_refutes_and_no_others(monkeypatch, tmp_path):
    """In the toy keys are taken where no door is seen; it resumes and is evaluated so."""
    world = ToyWorld()
    needs = np.zeros((4, len(world.facts)), bool)
    for goal, fact in (("take key", "see door"), ("open door", "have key")):
        needs[world.captions.index(goal), world.facts.index(fact)] = True
    sensible, sets = np.asarray([False, True, True, True]), np.zeros((4, 0, len(world.facts)), bool)

    def prepare(form, answers):
        form.rules = rules.Rules(sensible, needs, sets)
        form.margins = np.zeros((4, len(world.facts)))

    monkeypatch.setattr(rules.RulesForm, "prepare", prepare)
    settings = {"goal_form": "rules", "prompt": None, "total_timesteps": 4 * 8 * 20}
    settings |= {"evidence": True, "doubt": 0.1, "checkpoint_every": 1}
    run = monkeypatch, world, tmp_path
    _, state, lines = train(*run, "evidence", TableModel(), **settings)
    said = [line for metrics in lines for line in metrics["corrections"]]
    assert any(line.startswith("take key: needs see door no longer") for line in said)
    assert not any("open door" in line for line in said)
    assert lines[-1]["rules_corrected"] == 1
    report = (tmp_path / "evidence" / "rules.txt").read_text()
    assert f"    now: needs nothing\n    {said[0].rpartition(':')[0]}: " in report
    _, service, _ = evaluate.load_run(ellm_ppo, tmp_path / "evidence")  # what an evaluation sees
    assert service.tables.needs[1, 0] == 0
    _, resumed, resumed_lines = train_with_a_break(*run, "broken", TableModel(), **settings)
    assert_equal_trees(state.params, resumed.params)
    assert lines == resumed_lines


def test_every_source_and_seed_leads_elsewhere(monkeypatch, tmp_path):
    runs = [(source, 1) for source in ("oracle", "novelty", "uniform", "grounded", "none")] + [
        ("none", 2)
    ]
    final = []
    for source, seed in runs:
        fields = {
            "goal_source": source,
            "seed": seed,
            "total_timesteps": 4 * 8 * 6,
            "uniform_goals": 1,
        }
        _, state, lines = train(monkeypatch, ToyWorld(), tmp_path, f"{source}{seed}", **fields)
        final.append(np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.params)]))
        assert len(lines) == 6 and np.isfinite(final[-1]).all()
    same = [
        (runs[i], runs[j])
        for i in range(len(runs))
        for j in range(i)
        if np.array_equal(final[i], final[j])
    ]
    assert not same


def test_novelty_of_the_paper_pays_each_action_once_successful_or_not(setups):
    setup, service = setups(goal_source="novelty-paper", extrinsic_coef=0.0)
    tables = service.tables
    assert service.goals[:4] == list(ToyWorld.actions)
    actions = jnp.asarray([[0, 1], [0, 2], [3, 1], [0, 0]])  # of two envs; the second ends at once
    blank, no = jnp.zeros((4, 2)), jnp.zeros((4, 2), bool)
    rollout = ellm_ppo.Rollout(
        inputs=None,
        log_probs=blank,
        values=blank,
        scenes=jnp.zeros((4, 2, 1), jnp.uint32),
        suggested=jnp.zeros((4, 2, 0), jnp.uint32),
        guides=None,
        actions=actions,
        captions=jnp.zeros((4, 2), jnp.int32),
        rewards=blank,
        terminated=no.at[1, 1].set(True),
        truncated=no,
    )
    achieved = jnp.zeros((2, service.num_goals), bool)
    rewards, _ = ellm_ppo.ellm_rewards(setup, tables, rollout, achieved)
    assert rewards.tolist() == [[1, 1], [0, 1], [1, 1], [0, 1]]


def test_the_games_reward_counts_beside_the_goals_as_often_as_asked(setups):
    runs = {}
    for coefficient in (0.0, 10.0):
        setup, service = setups(goal_source="oracle", extrinsic_coef=coefficient, seed=2)
        state = ellm_ppo.init_state(setup, service.tables)
        rollout = ellm_ppo.empty_rollout(setup, service.tables, state)
        state, rollout, _ = ellm_ppo.collect(setup, service.tables, state, rollout)
        rollout = rollout.replace(rewards=jnp.ones_like(rollout.rewards))
        _, metrics = ellm_ppo.update(setup, service.tables, state, rollout)
        runs[coefficient] = float(metrics["reward_per_step"])
    assert runs[10.0] == pytest.approx(runs[0.0] + 10.0)


def test_evaluations_during_the_training_change_nothing_and_are_resumed(monkeypatch, tmp_path):
    settings = {"goal_form": "open", "total_timesteps": 4 * 8 * 6, "checkpoint_every": 3}
    settings |= {"text_observation": "caption", "evaluate_episodes": 3}
    world, often = ToyWorld(), {"evaluate_every": 2 * 4 * 8}
    _, plain, plain_lines = train(monkeypatch, world, tmp_path, "plain", TableModel(), **settings)
    settings |= often
    _, state, lines = train(monkeypatch, world, tmp_path, "often", TableModel(), **settings)
    _, resumed, _ = train_with_a_break(
        monkeypatch, world, tmp_path, "killed", TableModel(), **settings
    )
    assert_equal_trees(plain.params, state.params)
    assert_equal_trees(state.params, resumed.params)
    assert [{**line, "scenes": 0} for line in lines] == [{**x, "scenes": 0} for x in plain_lines]
    evaluations = read_evaluations(tmp_path / "often")
    assert [line["env_steps"] for line in evaluations] == [0, 64, 128, 192]
    assert evaluations == read_evaluations(tmp_path / "killed")
    assert all(line["episodes"] == 3 and "toy_score" in line for line in evaluations)


def test_nothing_compiles_after_the_first_updates(monkeypatch, tmp_path):
    fields = {"goal_form": "open", "goal_conditioned": True, "total_timesteps": 4 * 8 * 8}
    counts = count_programs(monkeypatch, ToyWorld(), tmp_path, "run", TableModel(), **fields)
    assert counts[0] > 0 and counts[2:] == counts[1:2] * 6


def test_film_and_evaluation_show_what_happened(monkeypatch, tmp_path):
    world = ToyWorld()
    summary, _, _ = train(
        monkeypatch,
        world,
        tmp_path,
        "run",
        TableModel(),
        goal_form="open",
        total_timesteps=64,
        evaluate_episodes=3,
    )
    assert summary["evaluation"]["episodes"] == 3
    assert {p.name for p in (tmp_path / "run").iterdir()} >= {
        "config.json", "metrics.jsonl", "summary.json", "checkpoints", "film.gif", "curve.png"
    }  # fmt: skip
    policy, service, params = evaluate.load_run(ellm_ppo, tmp_path / "run")
    statistics, shown = play(policy, service, params, 3, jax.random.key(5))
    again, _ = play(policy, service, params, 3, jax.random.key(5))
    assert statistics == again
    frames = film_frames(world, service.goals, shown)
    assert 1 <= len(frames) <= world.max_episode_steps
    for frame in frames:
        suggested = {goal for goal, _ in frame.goals}
        assert frame.rewarded_goal is None or (
            frame.rewarded_goal in suggested and frame.reward > 0.99
        )
        assert ("see key" in frame.scene) != ("have key" in frame.scene)


# Input


def rooms(pattern: str) -> set[str]:
    """Return the names of all attributes that the files read."""
    root = Path(ellm_ppo.__file__).parent
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in root.glob(pattern)]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return {node.attr for node in nodes if isinstance(node.ctx, ast.Load)}


def test_every_argument_is_read():
    script = rooms("ellm_ppo.py")
    own = set(ellm_ppo.Args.__dict__["__annotations__"]) - {"FREE"}
    assert own <= script
    for group, room in (
        (RunArgs, "lab/*.py"),
        (WorldArgs, "worlds/**/*.py"),
        (GoalArgs, "goals/*.py"),
    ):
        fields = {field.name for field in dataclasses.fields(group)}
        assert fields <= script | rooms(room), group


@pytest.mark.parametrize("group", [ellm_ppo.Args, RunArgs, WorldArgs, *GoalArgs.__mro__[:2]])
def test_every_argument_is_explained(group):
    source = inspect.getsource(group)
    lines, body = source.split("\n"), ast.parse(source).body[0].body
    for node, after in zip(body, body[1:], strict=False):
        if isinstance(node, ast.AnnAssign) and node.target.id != "FREE":
            comment = "  # " in lines[node.lineno - 1]
            assert comment or isinstance(after, ast.Expr), node.target.id


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"env": "nowhere"}, "crafter"),
        ({"num_minibatches": 7}, "--num-minibatches 7"),
        ({"total_timesteps": 10}, "--total-timesteps 10"),
        ({"goal_form": "rules", "prompt": "folder/missing"}, "missing_phrases"),
        ({"goal_form": "rules", "evidence": True, "goal_source": "oracle"}, "--evidence"),
        ({"llm_budget": -1}, "--llm-budget -1"),
        ({"llm": "missing.gguf"}, "missing.gguf"),
        ({"llm": "missing.sqlite"}, "missing.sqlite"),
        ({"num_steps": 512, "num_envs": 1}, "--num-steps 512"),
    ],
)
def test_bad_input_is_one_clear_error_and_leaves_nothing(tmp_path, fields, message):
    fields = {"run_dir": str(tmp_path / "run"), "store": str(tmp_path / "store.sqlite"), **fields}
    with pytest.raises(UserError, match=message) as error:
        ellm_ppo.main(ellm_ppo.Args(**fields))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_run_directory_of_another_configuration_is_left_alone(monkeypatch, tmp_path):
    settings = {"goal_source": "oracle", "total_timesteps": 64}
    train(monkeypatch, ToyWorld(), tmp_path, "run", **settings)
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(UserError, match="gamma"):
        train(monkeypatch, ToyWorld(), tmp_path, "run", gamma=0.5, **settings)
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_replay_of_an_empty_store_is_an_error_or_counted(monkeypatch, tmp_path):
    settings = {"goal_form": "open", "total_timesteps": 64, "resolve": "replay"}
    with pytest.raises(UserError, match="no stored answer"):
        train(monkeypatch, ToyWorld(), tmp_path, "error", **settings)
    summary, _, _ = train(
        monkeypatch, ToyWorld(), tmp_path, "none", on_missing="no-goals", **settings
    )
    assert (
        summary["steps_without_answer"] == 1.0
        and summary["queries"] == 0
        and summary["unanswered"] > 0
    )
    train(
        monkeypatch, ToyWorld(), tmp_path, "ask", TableModel(), **{**settings, "resolve": "exact"}
    )
    summary, _, _ = train(monkeypatch, ToyWorld(), tmp_path, "replay", **settings)
    assert summary["steps_without_answer"] == 0.0 and summary["store_hits"] > 0


def test_a_copy_of_the_script_is_a_script(monkeypatch, tmp_path):
    copy = tmp_path / "my_idea.py"
    copy.write_bytes(Path(ellm_ppo.__file__).read_bytes())
    spec = importlib.util.spec_from_file_location("my_idea", copy)
    my_idea = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(my_idea)
    monkeypatch.setattr(my_idea, "make_world", lambda args: ToyWorld())
    my_idea.main(make_args(my_idea, tmp_path, "run", goal_source="oracle", total_timesteps=64))
    assert Path(read_config(tmp_path / "run")["script"]).name == "my_idea.py"

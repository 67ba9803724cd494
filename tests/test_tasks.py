"""Tasks: judges against plain Python, what is paid and when, and what the policy reads."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ellm_dqn
import ellm_ppo
from goals.service import GoalService
from lab.cli import parse
from lab.errors import UserError
from lab.evaluate import Args as EvaluateArgs
from lab.evaluate import main as evaluate
from lab.metrics import score_key
from lab.play import Policy, play
from lab.run import write_json
from lab.transfer import fine_tuning
from tests.toy.world import ToyWorld
from tests.training import (
    assert_equal_trees,
    count_programs,
    make_args,
    open_script,
    train,
    train_with_a_break,
)
from worlds import make_world
from worlds.crafter.tasks import TASKS
from worlds.tasks import InOrder, Task, TaskWorld, Times, evaluation_world, without_task
from worlds.world import WorldArgs

TOY = "tests.toy.world:ToyWorld"
SCRIPTS = {"ppo": ellm_ppo, "dqn": ellm_dqn}
OF_TASK = {"goal_source": "task", "goal_conditioned": True}
OF_TASK_ALONE = {**OF_TASK, "prompt": None, "llm": "qwen2.5-coder-1.5b"}


# JUDGES (those of Crafter: tests/test_crafter.py)
def test_judges_by_hand():
    world = ToyWorld()
    kicks, in_order = Times(("kick wall",), 2), InOrder(("take key", "open door"))
    memory, found = jnp.int32(0), []
    for effect in (3, 0, 3, 3, 2, 3):
        memory, success = kicks(world, memory, jnp.int32(effect), None, None)
        found.append(bool(success))
    assert found == [False, False, True, False, False, True]
    memory, found = jnp.int32(0), []
    for effect in (2, 1, 1, 3, 2, 2, 1, 2):
        memory, success = in_order(world, memory, jnp.int32(effect), None, None)
        found.append(bool(success))
    assert found == [False, False, False, False, True, False, False, True]


# WHAT IS PAID
LEFT, RIGHT, TAKE = 0, 1, 2


def play_toy(world, actions):
    """Take the actions from the left end; return rewards, scores, ends and goals read."""
    state = world.wrap(ToyWorld().reset(jax.random.key(0)).replace(position=jnp.int32(0)))
    found = []
    for action in actions:
        goals = [world.task_goals(state, in_parts) for in_parts in (False, True)]
        state, step = world.step(jax.random.key(0), state, jnp.int32(action))
        goals = [np.flatnonzero(goal).tolist() for goal in goals]
        found.append((float(step.reward), float(step.score), bool(step.terminated), *goals))
    return list(map(list, zip(*found, strict=True)))


def test_a_success_is_paid_once_or_each_time():
    actions = (LEFT, TAKE, LEFT, LEFT, RIGHT)
    once = make_world(WorldArgs(TOY, task="kick"))
    rewards, scores, ended, read, parts = play_toy(once, actions)
    assert rewards == [1, 0, 0, 0, 0] and scores == [1] * 5 and not any(ended)
    assert read == [[4], [], [], [], []], "nothing is read when nothing more can be earned"
    assert once.max_return == 1.0
    each = make_world(WorldArgs(TOY, task="kick", task_reward="each"))
    rewards, scores, ended, read, parts = play_toy(each, actions)
    assert rewards == [1, 0, 1, 1, 0] and scores == [1] * 5 and not any(ended)
    assert read == [[4]] * 5
    # The kick before the key counts as well; each success opens the kick alone anew.
    assert parts == [[1], [1], [3], [3], [3]]
    assert each.max_return == 12.0


def progress(task, happened):
    """Return the sub-goal that is next after each thing that happened in Crafter."""
    world = make_world(WorldArgs(task=task))
    step = jax.jit(world._progress)
    done, following = jnp.zeros(len(world.task.subgoals), bool), []
    for caption in happened:
        success = jnp.bool_(caption == "success")
        effect = jnp.int32(0 if success else world.captions.index(caption))
        done = step(done, effect, success)
        following.append(world.task.subgoals[int(done.argmin())])
    return following


def test_subgoals_count_whenever_they_happen_or_in_order():
    happened = ["chop tree", "eat cow", "chop tree", "chop tree", "place crafting table"]
    assert progress("make wood sword", happened) == [
        *("chop tree", "chop tree", "place crafting table", "place crafting table"),
        "make wood sword",  # for the third log counts as the one after the table
    ]
    happened = ["make crafting table", "chop tree", "chop tree"]
    expected = ["chop tree", "chop tree", "chop tree"]
    assert progress("make wood sword", happened) == expected, "under any of its names"
    in_order = ["chop tree", "chop grass", "chop tree", "place plant", "success"]
    expected = ["chop grass", "chop tree", "place plant", "chop grass", "chop grass"]
    assert progress("gardening", in_order) == expected


def test_the_sentence_has_a_number_of_its_own(tmp_path):
    """Even if a caption says the same, as "mine stone" does."""
    for task in ("mine stone", "make stone pickaxe"):
        args = make_args(ellm_ppo, tmp_path, "r", env="crafter", task=task, **OF_TASK_ALONE)
        world = make_world(args)
        service = GoalService(world, args)
        service.prepare()
        number = len(world.captions)
        assert service.goals[number] == world.task_sentence
        length = np.linalg.norm(service.tables.embeddings[number])
        np.testing.assert_allclose(length, 1.0, rtol=1e-5)
        again = GoalService(world, args)
        again.prepare()
        again.restore(service.state())
        assert again.goals == service.goals
        service.close()
        again.close()


def test_in_an_evaluation_success_ends_the_episode():
    world = evaluation_world(make_world(WorldArgs(TOY, task="kick", task_reward="each")))
    assert play_toy(world, (RIGHT, LEFT, LEFT))[2] == [False, False, True]
    stacked = make_world(WorldArgs(observation="frames", task="mine stone"))
    assert evaluation_world(stacked).world.ends and not stacked.world.ends
    assert evaluation_world(ToyWorld()) == ToyWorld()


def test_a_state_comes_back_without_its_task():
    bare = make_world(WorldArgs(observation="frames"))
    stacked = make_world(WorldArgs(observation="frames", task="mine stone"))
    key = jax.random.key(2)
    with_task, without = stacked.reset(key), bare.reset(key)
    assert_equal_trees(without_task(with_task), without)
    late = with_task.replace(timestep=jnp.int32(9))
    assert int(bare.bare(without_task(late)).timestep) == 9


@pytest.mark.parametrize("name", TASKS)
def test_the_tasks_of_crafter_are_whole(name):
    world = make_world(WorldArgs(task=name))
    assert isinstance(world, TaskWorld) and world.score_name == "success"
    assert f"sentence={TASKS[name].sentence!r}" in repr(world) and "0x" not in repr(world)
    assert world == make_world(WorldArgs(task=name)) and hash(world) == hash(world)
    assert set(TASKS[name].subgoals) <= world.meaningful


def test_a_task_makes_itself_the_goal_unless_another_is_given():
    preset = lambda args: ellm_ppo.PRESETS[args.preset]  # noqa: E731
    assert parse(ellm_ppo.Args, preset, ["--task", "mine stone"]).goal_source == "task"
    words = ["--task", "mine stone", "--goal-source", "llm"]
    assert parse(ellm_ppo.Args, preset, words).goal_source == "llm"
    assert parse(ellm_ppo.Args, preset, ["--env", "housekeep", "--task", "1"]).goal_source == "llm"


def test_a_tuned_agent_goes_on_reading_what_it_knows(tmp_path):
    preset = lambda args: ellm_ppo.PRESETS[args.preset] | fine_tuning(args)  # noqa: E731
    for source, expected in (("oracle", "oracle"), ("none", "task")):
        write_json(tmp_path / "config.json", {"arguments": {"goal_source": source}})
        words = ["--task", "mine stone", "--from-run", str(tmp_path)]
        args = parse(ellm_ppo.Args, preset, words)
        goals = (args.goal_coef, args.extrinsic_coef)
        assert args.goal_source == expected and args.learning_rate == 1e-4
        assert goals == ((0.1, 10.0) if source == "oracle" else (1.0, 0.0))
    write_json(tmp_path / "config.json", {"arguments": {"goal_source": "oracle"}})
    alone = parse(ellm_ppo.Args, preset, [*words, "--goal-source", "task"])
    assert (alone.goal_source, alone.goal_coef, alone.extrinsic_coef) == ("task", 1.0, 0.0)
    recorded = {"goal_source": "llm", "goal_head": "verbs", "goal_view": True, "hidden_size": 64}
    write_json(tmp_path / "config.json", {"arguments": recorded})
    shaped = parse(ellm_ppo.Args, preset, words)
    assert (shaped.goal_head, shaped.goal_view, shaped.hidden_size) == ("verbs", True, 64)
    assert parse(ellm_ppo.Args, preset, words[2:]).learning_rate == 1e-3, "without a task"


@pytest.mark.parametrize(
    "wrong, names",
    [
        ({"task": "mine gold"}, ("crafter", "--task 'mine gold'", *TASKS)),
        ({"task": "mine stone", "task_reward": "twice"}, ("--task-reward 'twice'", "once, each")),
        ({"task_reward": "each"}, ("--task-reward each", "--task")),
        ({"env": TOY, "task": "fly"}, ("--task 'fly'", "kick, leave")),
    ],
)
def test_what_is_no_task_is_refused_by_name(wrong, names):
    with pytest.raises(UserError) as caught:
        make_world(dataclasses.replace(WorldArgs(), **wrong))
    message = str(caught.value)
    assert "\n" not in message and all(name in message for name in names), message


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"goal_source": "task", "task": None}, "--goal-source task needs .* --task"),
        ({"extrinsic_coef": 1.0}, "--extrinsic-coef .* leave it out"),
        ({"goal_coef": 0.5}, "--goal-coef .* leave it out"),
        ({"goal_coef": 0.0}, "--goal-coef 0 .* give --extrinsic-coef 1"),
        ({"goal_source": "oracle", "task_goals": "parts"}, "--task-goals parts is of a task"),
        ({"approach_coef": 1.0}, "--goal-source task pays the task alone"),
        ({"goal_view": True}, "--goal-view and .* --task-goals parts"),
    ],
)
def test_what_does_not_go_with_a_task_is_refused(tmp_path, fields, said):
    args = make_args(ellm_ppo, tmp_path, "r", **{**OF_TASK, "task": "kick", **fields})
    with pytest.raises(UserError, match=f"^{said}"):
        open_script(ellm_ppo, args, make_world(args))


def test_a_task_that_its_world_does_not_know_is_refused():
    task = Task("fly to the moon", ("take key", "fly"), Times(("kick wall",)))
    with pytest.raises(UserError, match="'fly to the moon' of toy: 'fly' is no caption"):
        TaskWorld(ToyWorld(), task)
    typo = dataclasses.replace(task, subgoals=("take key",), judge=Times(("kick wal",)))
    with pytest.raises(UserError, match="'kick wal' is no caption"):
        TaskWorld(ToyWorld(), typo)
    with pytest.raises(UserError, match="no sub-goals"):
        TaskWorld(ToyWorld(), dataclasses.replace(task, subgoals=()))


# LEARNING
@pytest.fixture
def leave():
    """Return the toy whose door must be opened."""
    return make_world(WorldArgs(TOY, task="leave"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_task_is_learned_evaluated_and_watched(monkeypatch, tmp_path, leave, name):
    script = SCRIPTS[name]
    fields = {"task": "leave", "evaluate_episodes": 32, "evaluate_every": 4096, **OF_TASK}
    fields |= {"total_timesteps": 32768, "num_envs": 16, "hidden_size": 32}
    if name == "dqn":
        fields |= {"gamma": 0.9, "learning_starts": 512, "exploration_fraction": 0.5}
    run = monkeypatch, leave, tmp_path, "run"
    summary, state, _ = train(*run, script=script, **fields)
    assert summary[score_key("success")] > 0.6
    evaluated = [float(line) for line in read_scores(tmp_path / "run")]
    assert len(evaluated) == 9, "before the first update, too"
    assert evaluated[-1] > 0.6 > evaluated[0]
    args = EvaluateArgs(run_dir=str(tmp_path / "run"), episodes=32, film=True)
    again = evaluate(args)
    assert again["success_per_episode"] == summary["evaluation"]["success_per_episode"]
    assert (tmp_path / "run" / "film.gif").stat().st_size > 1000


def read_scores(run_dir):
    """Return the scores of a run's evaluations, in order."""
    lines = (run_dir / "evaluations.jsonl").read_text().splitlines()
    return [json.loads(line)["success_per_episode"] for line in lines]


def test_the_policy_reads_the_sentence_or_the_part(tmp_path, leave):
    for in_parts, expected in (("sentence", "open the door"), ("parts", "take key")):
        fields = {"task": "leave", "task_goals": in_parts, **OF_TASK}
        args = make_args(ellm_ppo, tmp_path, "r", **fields)
        setup, service = open_script(ellm_ppo, args, leave)
        state = ellm_ppo.init_state(setup, service.tables)
        inputs, _, suggested, _ = ellm_ppo.read(setup, service.tables, state.key, state.moment)
        assert {service.goals[goal] for goal in np.flatnonzero(suggested[0])} == {expected}
        assert inputs.goals.size and service.describe() == "the task: open the door"
        service.close()


def test_a_run_of_a_task_resumes_bit_for_bit(monkeypatch, tmp_path, leave):
    fields = {"task": "leave", "total_timesteps": 256, "checkpoint_every": 1, **OF_TASK}
    fields |= {"evaluate_episodes": 4, "evaluate_every": 64}
    run = monkeypatch, leave, tmp_path
    _, whole, lines = train(*run, "whole", **fields)
    _, broken, broken_lines = train_with_a_break(*run, "broken", **fields)
    assert_equal_trees(whole.params, broken.params)
    assert lines == broken_lines
    assert read_scores(tmp_path / "whole") == read_scores(tmp_path / "broken")


def test_nothing_is_compiled_after_the_first_update(monkeypatch, tmp_path, leave):
    fields = {"task": "leave", "total_timesteps": 256, **OF_TASK}
    counts = count_programs(monkeypatch, leave, tmp_path, "run", **fields)
    assert len(set(counts)) == 1 and len(counts) == 8


def test_goals_are_read_but_only_the_task_is_paid(monkeypatch, tmp_path):
    """As the task alone is paid: by hand, in the toy whose wall is easily kicked."""
    kick = make_world(WorldArgs(TOY, task="kick"))
    fields = {"task": "kick", "total_timesteps": 32, "goal_source": "oracle"}
    fields |= {"goal_conditioned": True, "extrinsic_coef": 0.5}
    paid = {}
    for goal_coef in (0.0, 1.0):
        args = make_args(ellm_ppo, tmp_path, "r", goal_coef=goal_coef, **fields)
        setup, service = open_script(ellm_ppo, args, kick)
        state = ellm_ppo.init_state(setup, service.tables)
        rollout = ellm_ppo.empty_rollout(setup, service.tables, state)
        state, rollout, _ = ellm_ppo.collect(setup, service.tables, state, rollout)
        goals, _ = ellm_ppo.ellm_rewards(setup, service.tables, rollout, state.achieved_before)
        expected = goal_coef * goals + 0.5 * rollout.rewards
        assert rollout.rewards.sum() > 0 and goals.sum() > 0
        _, metrics = ellm_ppo.update(setup, service.tables, state, rollout)
        paid[goal_coef] = float(metrics["reward_per_step"])
        np.testing.assert_allclose(paid[goal_coef], expected.mean(), rtol=1e-5)
        service.close()
    assert paid[1.0] > paid[0.0] > 0


def test_play_is_in_the_world_of_evaluations(tmp_path, leave):
    args = make_args(ellm_ppo, tmp_path, "r", task="leave", **OF_TASK)
    setup, service = open_script(ellm_ppo, args, leave)
    state = ellm_ppo.init_state(setup, service.tables)
    policy = Policy(setup, ellm_ppo.act)
    statistics, shown = play(policy, service, state.params, 8, jax.random.key(0))
    assert statistics["episode_length"] <= 12 and "success_per_episode" in statistics
    assert len(shown) == 12
    service.close()

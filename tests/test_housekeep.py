"""Housekeep: houses, rules and words, beside plain Python that was written from the same rules."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ellm_dqn
import ellm_ppo
from baselines import ppo
from benchmarks import solved_houses
from goals.arguments import GoalArgs
from goals.service import GoalService
from lab.cli import parse
from lab.errors import UserError
from lab.run import read_json
from tests.helpers.rankings import save_rankings
from tests.toy.world import ToyWorld
from worlds import make_world
from worlds.housekeep.agent import PlainHouse, plan
from worlds.housekeep.houses import (
    NUM_MISPLACED,
    NUM_OBJECTS,
    NUM_RECEPTACLES,
    find_house,
    find_truth,
    read_task,
)
from worlds.housekeep.places import PLACES, colours
from worlds.housekeep.truth import SPLITS
from worlds.housekeep.world import ACTIONS, DEFAULTS, FAR, GRAB, Housekeep, reference_things
from worlds.vector import VectorWorld
from worlds.world import WorldArgs

NUM_STEPS = 2_000
WANDERING, BUSY = (0.5, 0.1, 0.1, 0.12, 0.12, 0.06), (0.15, 0.05, 0.05, 0.05, 0.05, 0.65)
FIRST_OBJECTS = ["brush", "dirty strainer", "teapot", "plaid bed sheet"]
TASKS = ("1", "4", "valid:5", "test:0", "train:11")


@pytest.fixture(scope="module", params=TASKS)
def world(request):
    return Housekeep(request.param)


def true_facts(world, scene):
    bits = np.unpackbits(np.asarray(scene).astype("<u4").view(np.uint8), bitorder="little")
    return [fact for fact, bit in zip(world.facts, bits, strict=False) if bit]


@partial(jax.jit, static_argnums=0)
def play(world, actions):
    """Return what is after each of the actions [T], the time limit aside."""

    def step(state, action):
        after, transition = world.step(None, state, action)
        return after, (transition, after, world.scene(after), world.oracle(after))

    return jax.lax.scan(step, world.reset(None), actions)[1]


def busy_actions(house, seed):
    """Return random actions [T] int32 of one who mostly grabs what there is, and lets go of it."""
    rng, plain, actions = np.random.default_rng(seed), PlainHouse(house), []
    for _ in range(NUM_STEPS):
        can_act = plain.faced >= 0 and (plain.held >= 0 or plain.standing_in(plain.faced))
        chances = BUSY if can_act else WANDERING
        actions.append(int(rng.choice(len(ACTIONS), p=chances)))
        plain.step(actions[-1])
    return jnp.asarray(actions, jnp.int32)


# HOUSES
@pytest.mark.parametrize("task", [*TASKS, *(f"train:{number}" for number in range(20, 40))])
def test_a_house_is_as_the_paper_has_them(task):
    house = find_house(task)
    truth = find_truth()
    inside = np.bincount(house.start, minlength=len(house.receptacles))
    assert NUM_RECEPTACLES[0] <= len(house.receptacles) <= NUM_RECEPTACLES[1]
    assert NUM_OBJECTS[0] <= len(house.objects) <= NUM_OBJECTS[1]
    assert NUM_MISPLACED[0] <= house.misplaced.sum() <= NUM_MISPLACED[1]
    assert (inside <= house.capacity).all()
    assert len({receptacle.name for receptacle in house.receptacles}) == len(house.receptacles)
    levels = [(receptacle.cell, receptacle.level) for receptacle in house.receptacles]
    assert len(set(levels)) == len(levels), "two receptacles at one level of a cell"
    for thing, right in zip(house.objects, house.right, strict=True):
        row = truth.objects.index(thing)
        split = read_task(task)[0]
        assert SPLITS[truth.split[row]] == ("train" if split == "task" else split)
        places = [truth.places.index(receptacle.place) for receptacle in house.receptacles]
        np.testing.assert_array_equal(right, truth.belongs[row, places])
        assert right.any()


def test_everything_can_be_reached_and_seen(world):
    house = world.house
    assert set(range(len(house.receptacles))) <= set(house.faced.ravel())
    assert house.visible.any(0).all()
    y, x, heading = house.agent
    start = (y * house.solid.shape[1] + x) * 4 + heading
    reached, todo = {start}, [start]
    while todo:
        pose = todo.pop()
        for after in (house.forward[pose], *(pose - pose % 4 + turn for turn in range(4))):
            if int(after) not in reached:
                reached.add(int(after))
                todo.append(int(after))
    assert len(reached) == 4 * (~house.solid).sum()


def test_houses_differ_and_repeat():
    assert find_house("train:3") is find_house("train:3")
    houses = [find_house(task) for task in ("1", "2", "3", "4", "train:1", "valid:1", "test:1")]
    maps = {(house.solid.tobytes(), house.objects) for house in houses}
    assert len(maps) == len(houses)


def test_the_four_tasks_stay_what_they_are():
    """Figures of tasks are of these houses: whoever changes how they are drawn sees it here."""
    assert [find_house(str(number)).objects[0] for number in range(1, 5)] == FIRST_OBJECTS


def test_every_place_of_the_table_has_furniture():
    assert set(PLACES) == set(find_truth().places)
    assert len(set(colours(list(PLACES)).values())) == len(PLACES)


@pytest.mark.parametrize(
    "task", ["0", "5", "tests:1", "test:", "test:x", "test:-1", "test", "test:007", "test:٧"]
)
def test_an_unknown_task_is_one_line(task):
    with pytest.raises(UserError, match=f"no --task '{task}'; known: 1 to 4, or train:7, valid:7"):
        make_world(WorldArgs("housekeep", task=task))


def test_options_of_other_worlds_are_refused(tmp_path):
    with pytest.raises(UserError, match="housekeep has no option --game-rules"):
        make_world(WorldArgs("housekeep", game_rules="paper"))
    with pytest.raises(UserError, match="housekeep has no --observation 'frames'"):
        make_world(WorldArgs("housekeep", observation="frames"))
    with pytest.raises(UserError, match="is no file of placements"):
        make_world(WorldArgs("housekeep", placements=tmp_path / "none.npz"))
    with pytest.raises(UserError, match="crafter has no --task '1'"):
        make_world(WorldArgs("crafter", task="1"))


def test_a_house_of_peoples_rankings(tmp_path):
    """Rooms and receptacles are those of the file, and so is what belongs where."""
    path = tmp_path / "ranks.npz"
    ranks, names, places = save_rankings(path)
    world = Housekeep("test:1", placements=path)
    known = [" ".join(place.split("|")).replace("_", " ") for place in places]
    known = [place.replace("childs", "child's") for place in known]
    for thing, right in zip(world.house.objects, world.house.right, strict=True):
        row = names.index(thing.replace(" ", "_"))
        for receptacle, is_right in zip(world.house.receptacles, right, strict=True):
            column = known.index(receptacle.name)
            assert (ranks[column, row, 0] > 0) == is_right
            assert receptacle.name.startswith(world.house.rooms[receptacle.room])


def test_a_run_knows_its_placements_by_their_content(tmp_path):
    path, other = tmp_path / "ranks.npz", tmp_path / "other.npz"
    ranks, names, places = save_rankings(path)
    world = make_world(WorldArgs("housekeep", placements=path))
    assert repr(world) == repr(make_world(WorldArgs("housekeep", placements=str(path))))
    other.write_bytes(path.read_bytes())
    assert repr(world) == repr(make_world(WorldArgs("housekeep", placements=other)))
    np.savez(other, ranks=-ranks, objects=np.array(names), room_receptacles=np.array(places))
    assert repr(world) != repr(Housekeep("1", placements=other))
    assert repr(Housekeep()) == "Housekeep(task='1', observation='symbolic', placements=None)"


def test_a_table_with_too_little_says_what_a_house_needs(tmp_path):
    path = tmp_path / "ranks.npz"
    ranks, names, places = save_rankings(path)
    places = np.array([place.replace("kitchen", "garage") for place in places[:8]])
    np.savez(path, ranks=ranks[:8], objects=np.array(names), room_receptacles=places)
    with pytest.raises(UserError, match="^--placements has no house for --task") as caught:
        make_world(WorldArgs("housekeep", placements=path))
    assert "(there are 2 in living room)" in str(caught.value) and "30 things" in str(caught.value)


# RULES
def test_play_is_that_of_plain_python(world):
    actions = busy_actions(world.house, 0)
    transition, states, scenes, _ = jax.device_get(play(world, actions))
    house, plain = world.house, PlainHouse(world.house)
    wrong_at_first = house.misplaced.sum()
    for number, action in enumerate(np.asarray(actions)):
        was_tidy = plain.is_tidy
        caption = plain.step(int(action))
        state = jax.tree.map(lambda x, number=number: x[number], states)
        assert world.captions[transition.caption[number]] == caption
        assert (state.pose, state.level, state.held) == (plain.pose, plain.level, plain.held)
        assert state.place.tolist() == plain.place
        assert true_facts(world, scenes[number]) == plain.facts()
        gained = plain.score * len(house.objects) - (~house.misplaced).sum()
        np.testing.assert_allclose(transition.score[number], gained / wrong_at_first, atol=1e-6)
        assert transition.terminated[number] == plain.is_tidy or was_tidy
    assert (transition.caption > 0).sum() > 3, "hardly anything happened"


def test_a_thing_is_in_the_hand_or_in_one_receptacle_that_has_room(world):
    _, states, *_ = jax.device_get(play(world, busy_actions(world.house, 1)))
    house = world.house
    held = states.held[:, None] == np.arange(len(house.objects))
    np.testing.assert_array_equal(held, states.place == -1)
    for place in states.place:
        assert (
            np.bincount(place[place >= 0], minlength=len(house.receptacles)) <= house.capacity
        ).all()
    cells = states.pose // 4
    assert not house.solid.ravel()[cells].any(), "in a wall, or in furniture"


def test_only_what_is_faced_within_reach_moves(world):
    actions = np.asarray(busy_actions(world.house, 2))
    _, states, *_ = jax.device_get(play(world, actions))
    moved = (states.place[1:] != states.place[:-1]).any(1)
    faced = world.house.faced[states.pose[1:], states.level[1:]]
    assert moved.any()
    assert (actions[1:][moved] == GRAB).all() and (faced[moved] >= 0).all()
    changed = states.place[1:] != states.place[:-1]
    where = np.where(states.place[:-1] >= 0, states.place[:-1], states.place[1:])
    assert (where == faced[:, None])[changed].all()


def test_a_plan_of_the_oracle_agent_tidies_the_house(world):
    actions = jnp.asarray(plan(world.house), jnp.int32)
    transition, *_ = jax.device_get(play(world, actions))
    assert transition.terminated.tolist() == [False] * (len(actions) - 1) + [True]
    assert transition.score[-1] == 1.0 and transition.achievements[-1].all()
    assert transition.reward.sum() == world.max_return
    assert not transition.truncated.any()


def test_an_episode_begins_alike_whatever_the_key():
    world = Housekeep()
    first, second = (world.reset(jax.random.key(seed)) for seed in (0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert world == Housekeep() and hash(world) == hash(Housekeep()) and world != Housekeep("2")


# WORDS
def test_the_truth_as_rules_is_the_oracle(world):
    """What a model is asked is where things belong: told the truth, its goals are the oracle's."""
    truth = find_truth()
    rows = [truth.objects.index(thing) for thing in world.things]
    right = truth.belongs[rows]
    sensible, needs, alternatives = world.rules_of(~right, right)
    *_, scenes, oracle = jax.device_get(play(world, busy_actions(world.house, 3)))
    bits = np.stack([np.isin(world.facts, true_facts(world, scene)) for scene in scenes[::10]])
    has_all = (~needs[None] | bits[:, None]).all(-1)
    has_one = (alternatives[None] & bits[:, None, None]).any(-1) | ~alternatives.any(-1)[None]
    np.testing.assert_array_equal(sensible & has_all & has_one.all(-1), oracle[::10])
    assert oracle.any()
    assert {world.captions[i] for i in np.flatnonzero(sensible)} == world.meaningful


def test_what_belongs_everywhere_is_never_to_be_picked_up():
    world = Housekeep()
    everywhere = np.ones((len(world.things), len(world.places)), bool)
    sensible = world.rules_of(~everywhere, everywhere)[0]
    assert not sensible.any()


def test_references_are_things_of_the_train_split_of_all_categories():
    truth = find_truth()
    rows = [truth.objects.index(thing) for thing in reference_things(truth)]
    assert len(set(rows)) == 40 and not truth.split[rows].any()
    assert {truth.category[row] for row in rows} == set(truth.category)


def test_a_scene_in_words():
    world = Housekeep()
    state, names = world.reset(None), [r.name for r in world.house.receptacles]
    assert world.describe(np.asarray(world.scene(state))) == "Your hand is empty."
    state = state.replace(
        held=jnp.int32(0),
        first_in=jnp.full_like(state.first_in, -1).at[1].set(3),
        seen_receptacles=(jnp.arange(len(names)) == 3) | (jnp.arange(len(names)) == 5),
    )
    thing, other = world.house.objects[:2]
    said = f"You hold {thing}. At first there were {other} in {names[3]}."
    said += f" You have seen {names[3]}, {names[5]}."
    assert world.describe(np.asarray(world.scene(state))) == said


# GUIDANCE
def test_the_guide_leads_to_the_goals_of_an_untidy_house(world):
    """Whoever does what brings it nearer, grabs and releases where it says so, tidies a house."""
    house, act = world.house, jax.jit(lambda state, action: world.step(None, state, action))
    start, state = jnp.array(house.start), world.reset(None)
    state = state.replace(
        seen_receptacles=jnp.ones_like(state.seen_receptacles), seen_in=start, first_in=start
    )
    picks = slice(1, 1 + len(house.objects))

    @jax.jit
    def look(state):
        goals, numbers = world.oracle(state), np.arange(len(house.objects))
        is_right = jnp.array(house.right)[numbers, state.place] & (state.place >= 0)
        return world.guide(state, goals.at[picks].set(goals[picks] & ~is_right))

    num_receptacles, score = len(house.receptacles), 0.0
    for _ in range(world.max_episode_steps):
        guide = jax.device_get(look(state))
        grabs, releases, is_any = guide.view[num_receptacles : num_receptacles + 3]
        assert is_any and guide.found == num_receptacles + len(house.objects)
        if grabs or releases:
            assert guide.nearness == 1.0
            state, transition = act(state, GRAB)
            assert transition.caption > 0
            score = transition.score
        else:
            following = [act(state, action)[0] for action in range(GRAB)]
            nearness = [float(look(after).nearness) for after in following]
            assert max(nearness) == guide.nearness + 1 / FAR, "one action nearer"
            state = following[int(np.argmax(nearness))]
        if score == 1.0:
            return
    raise AssertionError("not tidy")


def test_the_guide_knows_no_more_than_was_seen():
    world = Housekeep()
    state, num_receptacles = world.reset(None), len(world.house.receptacles)
    nowhere, goals = jnp.full_like(state.seen_in, -1), jnp.ones(len(world.captions), bool)
    unseen = state.replace(seen_in=nowhere, first_in=nowhere)
    guide = world.guide(unseen, goals)
    assert not guide.view[:num_receptacles].any() and guide.nearness == 0
    assert guide.found == unseen.seen_receptacles.sum()
    nothing = world.guide(state, ~goals)
    assert not nothing.view.any() and nothing.nearness == 0
    # Whoever suggests all places, a view that stands still shows those seen.
    holding = unseen.replace(held=jnp.int32(0))
    marked = world.guide(holding, goals).view[:num_receptacles] > 0
    assert (marked == holding.seen_receptacles).all() and not marked.all()


def test_exploring_starts_are_sound_and_only_where_they_are_wanted():
    world, keys = Housekeep(), jax.random.split(jax.random.key(0), 200)
    states = jax.device_get(jax.vmap(world.reset_anywhere)(keys))
    cells, held = states.pose // 4, states.held >= 0
    assert not world.house.solid.ravel()[cells].any() and len(set(cells)) > 40
    assert 60 < held.sum() < 140 and 60 < states.seen_receptacles.all(1).sum() < 140
    np.testing.assert_array_equal((states.place == -1).sum(1), held)
    rows = np.flatnonzero(held)
    first_in = states.first_in[rows, states.held[rows]]
    stay = (states.place == world.house.start) | (states.place == -1)
    is_mixed = ~stay.all(1)
    assert 60 < is_mixed.sum() < 140
    stood = first_in == world.house.start[states.held[rows]]
    assert stood[~is_mixed[rows]].all() and not stood[is_mixed[rows]].all()
    assert all(len(set(place)) == len(place) for place in states.place)

    envs = VectorWorld(world, 200, 16, stagger=False, exploring_starts=0.5)
    begun = jax.device_get(envs.reset(jax.random.key(1)).states)
    as_ever = begun.pose == jax.device_get(world.reset(None).pose)
    assert 60 < as_ever.sum() < 140
    with pytest.raises(UserError, match="world toy has no --exploring-starts: give 0"):
        VectorWorld(ToyWorld(), 2, 16, exploring_starts=0.5)


# THE ORACLE AGENT
def test_generated_houses_are_tidied(tmp_path):
    """The whole thousand is a benchmark; here are some of each split."""
    out = tmp_path / "housekeep" / "solved.json"
    result = solved_houses.main(solved_houses.Args(houses=8, out=out))
    assert result["tidied"] == result["houses"] == 28 and not result["unsolved"]
    steps = result["steps"]
    assert 0 < steps["least"] <= steps["mean"] <= steps["most"] <= 1_000
    assert read_json(out) == result


# RUNS
def test_its_defaults_hold_in_every_script_unless_a_preset_or_the_user_says_otherwise():
    def given(script, *words):
        return parse(script.Args, lambda args: script.PRESETS[args.preset], words)

    args = given(ellm_ppo, "--env", "housekeep")
    assert (args.goal_form, args.wrong_reward, args.total_timesteps) == ("pairs", -0.1, 4_000_000)
    args = given(ellm_ppo, "--env", "housekeep", "--preset", "gpu", "--wrong-reward", "0")
    assert (args.wrong_reward, args.gamma, args.total_timesteps) == (0.0, 0.995, 50_000_000)
    assert (args.num_envs, args.hidden_size, args.approach_coef) == (1024, 512, 1.0)
    assert given(ppo, "--env", "housekeep").exploring_starts == 0.5
    assert given(ellm_dqn, "--env", "housekeep").goal_form == "pairs"
    assert given(ellm_ppo, "--env", "crafter") == ellm_ppo.Args()


@pytest.mark.parametrize(("source", "is_enough"), [("oracle", True), ("novelty", False)])
def test_one_right_place_is_enough_but_every_caption_is_new_once(tmp_path, source, is_enough):
    world = Housekeep("3")
    args = GoalArgs(goal_source=source, goal_conditioned=False, text_observation="none")
    service = GoalService(world, replace(args, store=str(tmp_path / "store.sqlite")))
    service.prepare()
    first, second = map(world.captions.index, world.once[0][:2])
    other = world.captions.index(world.once[1][0])
    suggested = jnp.isin(jnp.arange(service.num_goals), jnp.array([first, second, other]))[None]
    achieved, paid = jnp.zeros_like(suggested), []
    for caption in (second, first, other):
        rewards, achieved = ellm_ppo.reward_step(
            service.tables, 0.99, suggested, achieved, jnp.array([caption])
        )
        paid.append(float(rewards[0]))
    service.close()
    assert paid == [1, 0 if is_enough else 1, 1]


def test_the_default_command_trains_on_recorded_judgement(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Housekeep, "max_episode_steps", 60)
    args = ellm_ppo.Args(
        **DEFAULTS
        | {"total_timesteps": 4 * 8 * 3, "num_envs": 4, "num_minibatches": 2, "hidden_size": 16},
        env="housekeep",
        task="3",
        num_steps=8,
        evaluate_episodes=2,
        film=True,
        compilation_cache=False,
        run_dir=str(tmp_path / "run"),
        store=str(tmp_path / "store.sqlite"),
    )
    summary = ellm_ppo.main(args)
    assert summary["failed"] == {} and summary["queries"] == 0
    assert summary["evaluation"]["episode_length"] == 60
    assert "success_per_episode" in summary["evaluation"]
    assert (tmp_path / "run" / "film.gif").stat().st_size > 10_000
    assert "recorded answers of qwen2.5-coder-1.5b" in capsys.readouterr().out

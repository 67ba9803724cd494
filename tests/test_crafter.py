"""Words, step and pictures of the text Crafter, held against craftax and plain Python."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from craftax.craftax_classic import constants, game_logic
from craftax.craftax_classic.constants import load_all_textures, load_all_textures_given_size
from craftax.craftax_classic.renderer import make_craftax_pixel_renderer, render_craftax_symbolic

from worlds.crafter.step import STATIC, pack_state, spawn_mobs, unpack_state
from worlds.crafter.tasks import TASKS
from worlds.crafter.view import draw_pixels
from worlds.crafter.world import Crafter
from worlds.world import WorldArgs

N, T = 128, 80  # 10,240 states
BLOCKS = "- - grass water stone tree - path coal iron diamond crafting_table furnace - lava plant"
BLOCKS = [name.replace("_", " ") for name in [*BLOCKS.split(), "ripe_plant"]]
PASSABLE = {"grass", "path", "lava", "-"}
STEPS = {1: (0, -1), 2: (0, 1), 3: (-1, 0), 4: (1, 0)}
TOOLS = ["wood pickaxe", "stone pickaxe", "iron pickaxe", "wood sword", "stone sword", "iron sword"]
ITEMS = ["wood", "stone", "coal", "iron", "diamond", "sapling", *TOOLS]
REAL = [
    "eat plant, eat cow, attack zombie, attack skeleton, attack cow, chop tree, chop grass",
    "mine stone, mine coal, mine iron, mine diamond, drink water, place stone",
    "place crafting table, place furnace, place plant, make crafting table",
]
REAL = ", ".join(REAL).split(", ") + [f"make {tool}" for tool in TOOLS] + ["sleep"]

ATTEMPT = Crafter(spawn="craftax", game_rules="craftax")
EFFECT = Crafter(caption_regime="effect", game_rules="craftax")
BASE = Crafter(action_set="base")


def stage(key, state):
    """Put things where something can happen: half of the states are arranged, others left alone."""
    keys = iter(jax.random.split(key, 40))

    def chance(p):
        return jax.random.uniform(next(keys)) < p

    def draw(low, high, shape=()):
        return jax.random.randint(next(keys), shape, low, high)

    steps = jnp.array([[0, 0], [0, -1], [0, 1], [-1, 0], [1, 0]])
    position = jnp.where(chance(0.1), draw(0, 64, (2,)), state.player_position)
    position = jnp.where(chance(0.05), draw(0, 2, (2,)) * 63, position)
    ahead = jnp.clip(position + steps[state.player_direction], 0, 63)
    beside = jnp.clip(position + draw(-1, 2, (2,)), 0, 63)
    game_map = state.map.at[beside[0], beside[1]].set(draw(11, 13).astype(jnp.uint8))
    game_map = game_map.at[position[0], position[1] - 1].set(
        jnp.where(chance(0.5), 11, 12).astype(jnp.uint8)
    )
    game_map = game_map.at[ahead[0], ahead[1]].set(draw(2, 17).astype(jnp.uint8))
    game_map = game_map.at[position[0], position[1]].set(jnp.uint8(2))

    def put(mobs, p):
        here = (jnp.arange(mobs.mask.shape[0]) == 0) & chance(p)
        cell = jnp.where(chance(0.5), ahead, jnp.clip(ahead + draw(-4, 5, (2,)), 0, 63))
        return mobs.replace(
            position=jnp.where(here[:, None], cell[None], mobs.position),
            mask=mobs.mask | here,
            health=jnp.where(here, draw(1, 6), mobs.health),
            attack_cooldown=jnp.where(here, draw(0, 3), mobs.attack_cooldown),
        )

    zombies, cows, skeletons = (put(m, 0.15) for m in (state.zombies, state.cows, state.skeletons))
    mob_map = jnp.zeros((64, 64), bool)
    for mobs in (zombies, cows, skeletons):
        mob_map = mob_map.at[mobs.position[:, 0], mobs.position[:, 1]].max(mobs.mask)
    full = chance(0.2)
    counts = jnp.where(full, 9, draw(0, 5, (12,)) * draw(0, 2, (12,)))
    inventory = type(state.inventory)(*counts)
    arrow, plant = chance(0.3), game_map[ahead[0], ahead[1]] >= 15
    staged = state.replace(
        player_position=position,
        map=game_map,
        inventory=inventory,
        zombies=zombies,
        cows=cows,
        skeletons=skeletons,
        mob_map=pack_state(unpack_state(state).replace(mob_map=mob_map)).mob_map,
        arrows=state.arrows.replace(
            position=jnp.where(
                arrow, jnp.clip(beside[None] + draw(-1, 2, (3, 2)), 0, 63), state.arrows.position
            ),
            mask=state.arrows.mask | arrow,
        ),
        arrow_directions=jnp.where(arrow, steps[1 + draw(0, 4, (3,))], state.arrow_directions),
        growing_plants_positions=jnp.full((10, 2), 60).at[0].set(jnp.where(plant, ahead, 60)),
        growing_plants_age=jnp.where(
            chance(0.5), 595 + draw(0, 8, (10,)), state.growing_plants_age
        ),
        growing_plants_mask=state.growing_plants_mask.at[0].set(True) | chance(0.2),
        player_energy=draw(0, 10),
        player_food=draw(0, 10),
        player_drink=draw(0, 10),
        player_health=draw(1, 10),
        player_fatigue=draw(-11, 32).astype(jnp.float32),
        is_sleeping=chance(0.1),
    )
    arranged = jax.random.uniform(next(keys)) < 0.5
    state = jax.tree.map(lambda x, y: jnp.where(arranged, x, y), staged, state)
    return state.replace(player_hunger=jnp.float32(10), player_thirst=jnp.float32(10))


def choose(key, names, state):
    """Choose an action: a third at random, else one that means something."""
    keys = jax.random.split(key, 3)
    real = jnp.array([i for i, name in enumerate(names) if name in REAL or name.startswith("move")])
    some = real[jax.random.randint(keys[0], (), 0, len(real))]
    return jnp.where(
        jax.random.uniform(keys[1]) < 0.3, jax.random.randint(keys[2], (), 0, len(names)), some
    )


@pytest.fixture(scope="session")
def play():
    """10,240 steps: staged states and the steps of three worlds from them."""

    def step(key, state):
        stage_key, choose_key, base_key, key = jax.random.split(key, 4)
        state = stage(stage_key, state)
        action = choose(choose_key, ATTEMPT.actions, state)
        base_action = jax.random.randint(base_key, (), 0, 17)
        base_action = jnp.where(jax.random.uniform(base_key) < 0.3, 5, base_action)
        after, attempt = ATTEMPT.step(key, state, action)
        after_effect, effect = EFFECT.step(key, state, action)
        after_base, base = BASE.step(key, state, base_action)
        shape = (len(ATTEMPT.captions),)
        named = jax.random.bernoulli(jax.random.fold_in(key, 1), 0.1, shape).at[0].set(False)
        out = {
            "before": state,
            "action": action,
            "attempt": (after, attempt),
            "effect": (after_effect, effect),
            "base": (base_action, after_base, base),
            "key": key,
            "scene": ATTEMPT.scene(state),
            "oracle": ATTEMPT.oracle(state),
            "named": named,
            "guides": [world.guide(state, named) for world in (ATTEMPT, EFFECT, BASE)],
        }
        # A dead player's world goes on from where it was: the end is looked at, not lived on.
        state = jax.tree.map(lambda new, old: jnp.where(attempt.terminated, old, new), after, state)
        return state, out

    def run(key):
        reset_key, key = jax.random.split(key)
        states = jax.lax.map(ATTEMPT.reset, jax.random.split(reset_key, N), batch_size=16)
        keys = jax.random.split(key, T * N).reshape(T, N, -1)
        return jax.lax.scan(lambda s, k: jax.vmap(step)(k, s), states, keys)[1]

    out = jax.jit(run)(jax.random.PRNGKey(1))
    return jax.tree.map(lambda x: x.reshape(T * N, *x.shape[2:]), out)


@pytest.fixture(scope="session")
def raw(play):
    """The same on the host."""
    return jax.device_get(play)


def plain(states, i):
    """State i as plain Python."""

    def mobs(m):
        return [
            tuple(map(int, p)) for p, alive in zip(m.position[i], m.mask[i], strict=True) if alive
        ]

    row, column = map(int, states.player_position[i])
    dr, dc = STEPS[int(states.player_direction[i])]
    by_cell = {}
    for name, m in (
        ("zombie", states.zombies),
        ("skeleton", states.skeletons),
        ("cow", states.cows),
    ):
        for cell in mobs(m):
            by_cell.setdefault(cell, set()).add(name)
    return SimpleNamespace(
        map=states.map[i],
        at=(row, column),
        ahead=(row + dr, column + dc),
        mobs=by_cell,
        held={item: int(getattr(states.inventory, item.replace(" ", "_"))[i]) for item in ITEMS},
        asleep=bool(states.is_sleeping[i]),
        hunger=float(states.player_hunger[i]),
        thirst=float(states.player_thirst[i]),
        levels={
            "hungry": int(states.player_food[i]),
            "thirsty": int(states.player_drink[i]),
            "hurt": int(states.player_health[i]),
            "sleepy": int(states.player_energy[i]),
        },
    )


def block(s, cell):
    inside = 0 <= cell[0] < 64 and 0 <= cell[1] < 64
    return BLOCKS[s.map[cell]] if inside else "-"


def front(s):
    """Names of what is faced, a mob hiding its block."""
    return s.mobs.get(s.ahead) or {block(s, s.ahead)} - {"-"}


NAME_OF_DO = {"cow": "eat cow", "tree": "chop tree", "grass": "chop grass", "water": "drink water"}
NAME_OF_DO |= {"zombie": "attack zombie", "skeleton": "attack skeleton"}
NAME_OF_DO |= {"plant": "eat plant", "ripe plant": "eat plant"}
NAME_OF_DO |= {ore: f"mine {ore}" for ore in ("stone", "coal", "iron", "diamond")}


def done_to(s):
    """What the game's own DO is called."""
    things = ("zombie", "skeleton", "cow", *sorted(NAME_OF_DO))
    faced = [NAME_OF_DO[thing] for thing in things if thing in front(s)]
    return faced[0] if faced else "do nothing"


def sentence(s):
    seen = set()
    for row in range(s.at[0] - 3, s.at[0] + 4):
        for column in range(s.at[1] - 4, s.at[1] + 5):
            cell = (row, column)
            seen |= s.mobs.get(cell) or (set() if cell == s.at else {block(s, cell)})
    seen -= {"-"}
    text = "You see " + (", ".join(sorted(seen)) or "nothing") + "."
    if front(s):
        text += " You are facing " + ", ".join(sorted(front(s))) + "."
    if any(s.held.values()):
        text += " You have " + ", ".join(sorted(item for item, n in s.held.items() if n)) + "."
    if any(level < 5 for level in s.levels.values()):
        text += (
            " You feel "
            + ", ".join(sorted(word for word, level in s.levels.items() if level < 5))
            + "."
        )
    return text


def happened(before, pair, after):
    """Whether the pair really happened, from what changed."""
    verb, _, noun = pair.partition(" ")
    faced, then = front(before), block(after, before.ahead)
    less = {item: before.held[item] - after.held[item] for item in ITEMS}
    if pair == "sleep":
        return after.asleep
    if verb == "attack":
        return noun in {"zombie", "skeleton", "cow"} & faced
    if pair == "eat cow":
        return "cow" in faced and after.hunger <= 1
    if pair == "eat plant":
        return "ripe plant" in faced and after.hunger <= 1
    if pair == "drink water":
        return "water" in faced and after.thirst <= 1
    if pair == "chop tree":
        return "tree" in faced and then == "grass"
    if pair == "chop grass":
        return "grass" in faced and less["sapling"] < 0
    if verb == "mine" and noun in ("stone", "coal", "iron", "diamond"):
        return noun in faced and then == "path"
    if pair in ("place crafting table", "make crafting table"):
        return less["wood"] == 2
    if pair in ("place stone", "place furnace"):
        return less["stone"] == 1
    if pair == "place plant":
        return less["sapling"] == 1
    return verb == "make" and noun in TOOLS and less["wood"] == 1


def judge(before, name, after, regime):
    """The caption a transition deserves."""
    verb, _, noun = name.partition(" ")
    if before.asleep or verb in ("move", "do"):
        return "nothing"
    if regime == "attempt":
        faced = {"plant" if thing == "ripe plant" else thing for thing in front(before)}
        held = {"plant" if item == "sapling" else item for item, n in before.held.items() if n} - {
            "wood"
        }
        if noun in faced | held:
            return name
    return name if happened(before, name, after) else "nothing"


def test_vocabulary():
    assert len(ATTEMPT.actions) == 139 and len(BASE.actions) == 17
    assert ATTEMPT.actions[:6] == (
        "do nothing",
        "move left",
        "move right",
        "move up",
        "move down",
        "sleep",
    )
    assert len(ATTEMPT.captions) == 135 and ATTEMPT.captions[1] == "mine zombie"
    assert ATTEMPT.captions[0] == "nothing" and ATTEMPT.captions[-1] == "sleep"
    assert ATTEMPT.captions[-2] == "make iron sword" and ATTEMPT.captions[1 + 19] == "eat zombie"
    assert len(ATTEMPT.achievements) == 22 and ATTEMPT.achievements[:3] == (
        "collect wood",
        "place table",
        "eat cow",
    )
    assert len(set(ATTEMPT.facts)) == 48 and ATTEMPT.num_scene_words == 2
    assert Crafter().max_episode_steps == 400 and EFFECT.max_episode_steps == 10000


def test_describe_equals_the_plain_sentence(raw):
    said = set()
    for i in range(N * T):
        text = ATTEMPT.describe(raw["scene"][i])
        assert text == sentence(plain(raw["before"], i)), i
        said.add(text)
    assert len(said) > 5000
    everything = " ".join(said)
    for fact in ATTEMPT.facts:
        assert fact.split(" ", 1)[-1] in everything, fact


def test_captions_equal_the_plain_judge(raw):
    real, loose = set(), set()
    for i in range(N * T):
        before, name = plain(raw["before"], i), ATTEMPT.actions[raw["action"][i]]
        for regime, found in (("attempt", loose), ("effect", real)):
            states, transition = raw[regime]
            caption = ATTEMPT.captions[transition.caption[i]]
            assert caption == judge(before, name, plain(states, i), regime), (i, name, regime)
            found.add(caption)
    assert real == {"nothing", *REAL}, "every meaningful pair must really happen somewhere"
    assert "eat grass" in loose and len(loose) > 60


def test_base_captions_name_what_is_faced(raw):
    actions, states, transition = raw["base"]
    for i in range(0, N * T, 3):
        before, name = plain(raw["before"], i), BASE.actions[actions[i]]
        if name == "do":
            name = done_to(before)
        expected = judge(before, name, plain(states, i), "attempt")
        assert BASE.captions[transition.caption[i]] == expected, (i, name)


def without_ripeness(names):
    return {"plant" if name == "ripe plant" else name for name in names}


def comes_true(s, name, regime):
    """Whether an action would be what it is called, as far as one sees and holds."""
    verb, _, noun = name.partition(" ")
    if name in REAL and verb in ("place", "make", "sleep"):
        return True
    held = {"plant" if item == "sapling" else item for item, n in s.held.items() if n} - {"wood"}
    if regime == "attempt":
        return noun in without_ripeness(front(s)) | held
    return name in REAL and noun in without_ripeness(front(s))


def test_the_guide_shows_what_goals_name(raw):
    shown = 0
    for i in range(0, N * T, 7):
        before, captions = plain(raw["before"], i), np.array(ATTEMPT.captions)
        goals = set(captions[raw["named"][i]])
        sought = {
            goal.split(" ", 1)[1] for goal in goals if goal[:5] not in ("place", "make ", "sleep")
        }
        cells = np.zeros((7, 9), bool)
        for row, column in np.ndindex(7, 9):
            cell = before.at[0] + row - 3, before.at[1] + column - 4
            block_here = set() if cell == before.at else {block(before, cell)}
            cells[row, column] = without_ripeness(before.mobs.get(cell) or block_here) & sought
        for regime, guide in zip(("attempt", "effect"), raw["guides"], strict=False):
            acts = guide.acts[i]
            assert [name in goals for name in ATTEMPT.actions] == acts[:, 0].tolist()
            hand = [a in goals and comes_true(before, a, regime) for a in ATTEMPT.actions]
            assert hand == acts[:, 1].tolist(), (i, regime)
            assert (guide.view[i].reshape(7, 9) == cells).all()
            far = [abs(row - 3) + abs(column - 4) - 1 for row, column in np.argwhere(cells)]
            steps = 0 if any(hand) else min((max(steps, 1) for steps in far), default=16)
            assert guide.nearness[i] == 1 - steps / 16
        acts = dict(zip(BASE.actions, raw["guides"][2].acts[i], strict=True))
        is_named = bool(goals & set(NAME_OF_DO.values()))
        assert acts["do"].tolist() == [is_named, done_to(before) in goals]
        assert acts["place stone"].all() == ("place stone" in goals)
        shown += cells.sum()
    assert shown > 1_000


def test_what_the_guide_calls_at_hand_comes_true(raw):
    """Of the actions that place and make nothing: just those."""
    checked = 0
    for i, action in enumerate(raw["action"]):
        name = ATTEMPT.actions[action]
        if name.split(" ")[0] in ("place", "make", "sleep", "move", "do"):
            continue
        is_named, is_at_hand = raw["guides"][0].acts[i, action]
        caption = ATTEMPT.captions[raw["attempt"][1].caption[i]]
        if is_named and not raw["before"].is_sleeping[i]:
            checked += 1
            assert is_at_hand == (caption == name), (i, name)
    assert checked > 50


def test_wrong_pairs_play_nothing(raw):
    """A pair without meaning, or a DO whose thing is not faced, leaves the inventory alone."""
    states = raw["attempt"][0]
    checked = 0
    for i in range(N * T):
        name = ATTEMPT.actions[raw["action"][i]]
        before = plain(raw["before"], i)
        faced = {"plant" if thing == "ripe plant" else thing for thing in front(before)}
        named = name.split(" ", 1)[-1] in faced
        if name in REAL and (
            named or not name.startswith(("mine", "eat", "attack", "chop", "drink"))
        ):
            continue
        assert before.held == plain(states, i).held, (i, name)
        checked += 1
    assert checked > 2000


def test_step_equals_craftax_bit_for_bit(play):
    base = jnp.asarray(np.array([_base_action(name) for name in ATTEMPT.actions]))

    def compare(key, before, action, after, transition, do):
        played = jnp.where((base[action] == 5) & ~do, 0, base[action])
        expected, reward = game_logic.craftax_step(
            key, unpack_state(before), played, ATTEMPT.params, STATIC
        )
        differs = jax.tree.map(lambda x, y: (x != y).any(), expected, unpack_state(after))
        return differs, reward != transition.reward

    after, transition = play["attempt"]
    wrong = jax.jit(
        lambda *batch: jax.tree.map(
            lambda x: x.sum(), jax.lax.map(lambda one: compare(*one), batch, batch_size=512)
        )
    )(play["key"], play["before"], play["action"], after, transition, _do_is_played(play))
    wrong = {
        jax.tree_util.keystr(path): int(n) for path, n in jax.tree_util.tree_leaves_with_path(wrong)
    }
    assert not any(wrong.values()), {name: n for name, n in wrong.items() if n}


def _base_action(name):
    if name in ("sleep", *MOVE_ACTIONS):
        return MOVE_ACTIONS.get(name, 6)
    if name not in REAL:
        return 0
    if name.startswith("place") or name == "make crafting table":
        return {"stone": 7, "table": 8, "furnace": 9, "plant": 10}[name.split()[-1]]
    return 11 + TOOLS.index(name[5:]) if name.startswith("make") else 5


MOVE_ACTIONS = {"do nothing": 0, "move left": 1, "move right": 2, "move up": 3, "move down": 4}


def _do_is_played(play):
    """For each step whether the pair's thing is faced, bool [T * N], in plain Python."""
    raw = jax.device_get(play)
    faced = []
    for i in range(N * T):
        things = {"plant" if x == "ripe plant" else x for x in front(plain(raw["before"], i))}
        faced.append(ATTEMPT.actions[raw["action"][i]].split(" ", 1)[-1] in things)
    return jnp.asarray(np.array(faced))


def test_observations_equal_craftax(play):
    states = play["before"]
    ours = jax.jit(lambda s: jax.lax.map(ATTEMPT.observe, s, batch_size=512))(states)
    craftax = jax.jit(
        lambda s: jax.lax.map(lambda x: render_craftax_symbolic(unpack_state(x)), s, batch_size=512)
    )
    assert ours.dtype == jnp.float32 and ours.shape[1:] == ATTEMPT.observation_shape
    np.testing.assert_array_equal(ours, craftax(states))


def test_pixels_equal_craftax(play):
    world = Crafter(observation="pixels")
    states = jax.tree.map(lambda x: x[::80], play["before"])
    render = make_craftax_pixel_renderer(7)
    with jax.numpy_rank_promotion("allow"):
        expected = jax.jit(jax.vmap(lambda s: render(unpack_state(s))))(states)
    ours = np.asarray(jax.jit(jax.vmap(world.observe))(states))
    assert ours.dtype == np.uint8 and ours.shape[1:] == world.observation_shape == (63, 63, 3)
    assert np.abs(ours - np.clip(np.asarray(expected), 0, 255)).max() <= 0.5001


def test_pictures_need_no_cache_in_the_folder_of_craftax(play, monkeypatch, tmp_path):
    """craftax is installed where nothing can be written, or another process is writing there."""
    torn = tmp_path / "torn.pbz2"
    torn.write_bytes(b"BZh9")
    monkeypatch.setattr(constants, "TEXTURE_CACHE_FILE", str(torn))
    constants.load_all_textures.cache_clear()
    with pytest.raises((EOFError, OSError)):
        make_craftax_pixel_renderer(16)
    state = jax.tree.map(lambda x: x[-1], play["before"])
    picture = jax.jit(draw_pixels, static_argnums=1)(state, 5)  # a size that no other test has made
    assert picture.shape == (45, 45, 3) and int(picture.max()) > 0
    assert torn.read_bytes() == b"BZh9" and list(tmp_path.iterdir()) == [torn]


def _crowd(key, state):
    """Put many mobs and arrows around the player, at any time of the day, and let him be dead."""
    keys = iter(jax.random.split(key, 20))

    def scatter(mobs):
        away = jax.random.randint(next(keys), mobs.position.shape, -5, 6)
        mask = jax.random.bernoulli(next(keys), 0.7, mobs.mask.shape)
        return mobs.replace(position=state.player_position[None] + away, mask=mask)

    groups = ("zombies", "cows", "skeletons", "arrows")
    steps = jnp.array([[0, -1], [0, 1], [-1, 0], [1, 0]])
    return state.replace(
        **{name: scatter(getattr(state, name)) for name in groups},
        arrow_directions=steps[jax.random.randint(next(keys), (3,), 0, 4)],
        light_level=jax.random.uniform(next(keys)),
        player_health=jax.random.randint(next(keys), (), -13, 10),
        is_sleeping=jax.random.bernoulli(next(keys), 0.3),
    )


def test_frames_are_craftax_pictures_in_grey(play):
    world = Crafter(observation="frames")
    states = jax.tree.map(lambda x: x[::40], play["before"])
    states = jax.vmap(_crowd)(jax.random.split(jax.random.PRNGKey(3), N * T // 40), states)
    load_all_textures()[9] = load_all_textures_given_size(9)
    render = make_craftax_pixel_renderer(9)
    with jax.numpy_rank_promotion("allow"):
        expected = jax.jit(
            lambda s: jax.lax.map(lambda x: render(unpack_state(x)), s, batch_size=32)
        )(states)
    ours = np.asarray(jax.jit(jax.vmap(world.observe))(states))
    assert ours.dtype == np.uint8 and ours.shape[1:] == world.observation_shape == (84, 84)
    inside = ours[:, 1:82, 1:82]
    assert np.abs(inside - np.asarray(expected) @ np.array([0.299, 0.587, 0.114])).max() <= 0.5001
    assert ours.sum() == inside.sum() > 0, "a black border"
    night = np.asarray(states.light_level) < 0.5
    assert 0.2 < night.mean() < 0.8 and (np.asarray(states.player_health) < 0).any()


def _same_bits(a, b):
    """Whether two arrays are the same bit for bit: -0.0 is not 0.0, NaN is NaN."""
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("observation", ["symbolic", "pixels", "frames"])
def test_packed_observations_come_back_bit_for_bit(play, observation):
    world = Crafter(observation=observation)
    states = jax.tree.map(lambda x: x[::160], play["before"])
    observed = jax.jit(jax.vmap(world.observe))(states)
    if observation == "symbolic":
        odd = jnp.array([-0.0, jnp.nan, jnp.inf, 1e-40, -7.5])
        observed = observed.at[::2, -5:].set(jnp.broadcast_to(odd, (len(observed[::2]), 5)))
    for leading in ((64,), (4, 16), (2, 1, 32)):
        batch = observed.reshape(*leading, *observed.shape[1:])
        packed = jax.jit(world.pack_observation)(batch)
        if observation == "symbolic":
            assert packed.dtype == jnp.uint32 and packed.shape == (*leading, 64)
        window = jnp.expand_dims(packed, len(leading))
        assert world.history == window.shape[len(leading)] == 1
        assert _same_bits(jax.jit(world.unpack_observation)(window), batch)
    assert _same_bits(
        world.unpack_observation(world.pack_observation(observed[0])[None]), observed[0]
    )


def test_pack_and_unpack_are_inverse(play):
    states = jax.tree.map(lambda x: x[:64], play["attempt"][0])
    again = jax.vmap(lambda s: pack_state(unpack_state(s)))(states)
    assert all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), states, again)))


def _spawn_map(seed):
    """A world of grass, path and stone, the player in the middle, at the border, in a corner."""
    rng = np.random.default_rng(seed)
    state = EFFECT.reset(jax.random.PRNGKey(seed))
    position = [(32, 32), (2, 40), (63, 0)][seed % 3]
    share = [(0.5, 0.3, 0.2), (0.2, 0.6, 0.2), (0.3, 0.3, 0.4)][seed % 3]
    game_map = rng.choice([2, 4, 7], (64, 64), p=share).astype(np.uint8)
    mobs = rng.random((64, 64)) < 0.1
    state = state.replace(map=jnp.asarray(game_map), player_position=jnp.array(position, jnp.int32))
    return pack_state(unpack_state(state).replace(mob_map=jnp.asarray(mobs)))


def test_spawn_has_the_distribution_of_craftax():
    draws = 4000
    sure = EFFECT.params.replace(
        spawn_cow_chance=2.0, spawn_zombie_base_chance=2.0, spawn_skeleton_chance=2.0
    )

    def cells(state):
        return jnp.stack(
            [
                m.position[0, 0] * 64 + m.position[0, 1]
                for m in (state.cows, state.zombies, state.skeletons)
            ]
        )

    keys = jax.random.split(jax.random.PRNGKey(5), draws)
    ours = jax.jit(
        lambda s: jax.lax.map(lambda k: cells(spawn_mobs(k, s, sure)), keys, batch_size=500)
    )
    craftax = jax.jit(
        lambda s: jax.lax.map(
            lambda k: cells(game_logic.spawn_mobs(s, k, sure, STATIC)), keys, batch_size=500
        )
    )
    for seed in range(3):
        state = _spawn_map(seed)
        mine, theirs = np.asarray(ours(state)), np.asarray(craftax(unpack_state(state)))
        for kind in range(3):
            a, b = (np.bincount(x[:, kind], minlength=4096) for x in (mine, theirs))
            used = a + b > 0
            chi2 = ((a - b)[used] ** 2 / (a + b)[used]).sum()
            freedom = used.sum() - 1
            assert freedom > 5, "the map must offer a choice"
            assert abs(chi2 - freedom) < 5 * np.sqrt(2 * freedom), (seed, kind, chi2, freedom)


def test_spawn_has_the_chances_of_craftax():
    draws = 20000
    state = _spawn_map(0).replace(light_level=jnp.float32(0.3))
    keys = jax.random.split(jax.random.PRNGKey(6), draws)

    def count(state):
        return jnp.stack([m.mask.sum() for m in (state.cows, state.zombies, state.skeletons)])

    got = jax.lax.map(
        lambda k: count(spawn_mobs(k, state, EFFECT.params)), keys, batch_size=500
    ).mean(0)
    expected = np.array([0.1, 0.02 + 0.1 * 0.7**2, 0.05])
    assert np.abs(np.asarray(got) - expected).max() < 5 * np.sqrt(0.1 / draws)


def test_no_room_no_spawn():
    full = _spawn_map(0)
    full = full.replace(map=jnp.full((64, 64), 4, jnp.uint8))
    sure = EFFECT.params.replace(spawn_cow_chance=2.0)
    after = jax.jit(lambda state: spawn_mobs(jax.random.PRNGKey(0), state, sure))(full)
    assert not after.cows.mask.any() and (after.mob_map == full.mob_map).all()


def _clearing(**inventory):
    """A player in the middle of sand, facing up."""
    state = ATTEMPT.reset(jax.random.PRNGKey(0))
    state = state.replace(map=jnp.full((64, 64), 13, jnp.uint8))
    return state.replace(
        inventory=state.inventory.replace(**{k: jnp.int32(v) for k, v in inventory.items()})
    )


_oracle = jax.jit(ATTEMPT.oracle)


def _sensible(state):
    return {ATTEMPT.captions[i] for i in np.nonzero(np.asarray(_oracle(state)))[0]}


def test_oracle_by_hand():
    def put(state, name, row=-2, column=3):
        return state.replace(
            map=state.map.at[32 + row, 32 + column].set(jnp.uint8(BLOCKS.index(name)))
        )

    assert _sensible(_clearing()) == set()
    assert _sensible(put(_clearing(), "tree")) == {"chop tree"}
    assert _sensible(put(_clearing(), "tree", row=-4)) == set()
    assert _sensible(put(_clearing(), "plant")) == set()
    assert _sensible(put(_clearing(), "ripe plant")) == {"eat plant"}
    assert _sensible(put(_clearing(sapling=1), "grass")) == {"chop grass", "place plant"}
    assert _sensible(_clearing(wood=1)) == set()
    assert _sensible(_clearing(wood=2)) == {"place crafting table", "make crafting table"}
    assert _sensible(_clearing(stone=1)) == {"place stone", "place furnace"}
    assert _sensible(put(_clearing(wood_pickaxe=1), "iron")) == set()
    assert _sensible(put(_clearing(stone_pickaxe=1), "iron")) == {"mine iron"}
    tools = {"make wood pickaxe", "make wood sword"}
    assert _sensible(put(_clearing(wood=1), "crafting table")) == tools
    rich = put(_clearing(wood=1, stone=1, coal=1, iron=1), "crafting table")
    stone_tools = tools | {"make stone pickaxe", "make stone sword", "place stone", "place furnace"}
    assert _sensible(rich) == stone_tools
    assert _sensible(put(rich, "furnace", row=2)) == stone_tools | {
        "make iron pickaxe",
        "make iron sword",
    }
    tired = _clearing().replace(player_energy=jnp.int32(8))
    assert _sensible(tired) == {"sleep"}
    assert _sensible(tired.replace(is_sleeping=jnp.array(True))) == set()
    cow = _clearing()
    cow = cow.replace(
        cows=cow.cows.replace(
            position=jnp.array([[32, 33], [0, 0], [0, 0]]), mask=jnp.array([True, False, False])
        )
    )
    assert _sensible(cow) == {"eat cow", "attack cow"}


def test_sleep_is_an_attempt_below_9_energy_only():
    world, key = Crafter(), jax.random.key(0)
    sleep, step = jnp.int32(world.actions.index("sleep")), jax.jit(world.step)
    captions = []
    for energy in (9, 8, 0):
        state = _clearing().replace(player_energy=jnp.int32(energy))
        captions.append(world.captions[int(step(key, state, sleep)[1].caption)])
    assert captions == ["nothing", "sleep", "sleep"]


@pytest.mark.parametrize("below", [1, 5, 9])
def test_what_is_felt_is_told_below_the_value_that_is_asked_for(below):
    world = Crafter.from_args(WorldArgs(needs_below=below))
    for food in (below - 1, below):
        state = _clearing().replace(player_food=jnp.int32(food), player_drink=jnp.int32(9))
        told = world.describe(np.asarray(world.scene(state)))
        assert ("hungry" in told) == (food < below) and "thirsty" not in told


def test_what_really_happens_is_what_the_oracle_allows(raw):
    """What has an effect was sensible before (a table next to the player is in view)."""
    transition = raw["effect"][1]
    for i in np.nonzero(transition.caption)[0]:
        before = plain(raw["before"], i)
        if any(max(abs(r - before.at[0]), abs(c - before.at[1])) < 2 for r, c in before.mobs):
            continue  # a mob may have been staged on the very table
        assert raw["oracle"][i, transition.caption[i]], ATTEMPT.captions[transition.caption[i]]


def test_the_oracle_allows_each_pair_that_means_something(raw):
    allowed = {ATTEMPT.captions[i] for i in np.flatnonzero(raw["oracle"].any(0))}
    assert allowed == ATTEMPT.meaningful


def test_death_and_time_limit_are_told_apart():
    world = BASE
    step = jax.jit(world.step)
    state = _clearing()
    last = state.replace(timestep=jnp.int32(399))
    lava = last.replace(map=last.map.at[31, 32].set(jnp.uint8(14)))
    for start, action, ends in (
        (state, 0, (False, False)),
        (last, 0, (False, True)),
        (lava, 3, (True, False)),
        (lava.replace(timestep=jnp.int32(5)), 3, (True, False)),
    ):
        _, transition = step(jax.random.PRNGKey(0), start, action)
        assert (bool(transition.terminated), bool(transition.truncated)) == ends
    assert float(transition.reward) == pytest.approx(-0.9)


def test_masks():
    def facts(mask):
        return {f for i, f in enumerate(ATTEMPT.facts) if mask[i // 32] >> (i % 32) & 1}

    full, compact = facts(ATTEMPT.prompt_mask("full")), facts(ATTEMPT.prompt_mask("compact"))
    assert set(ATTEMPT.facts) - full == {"hungry", "thirsty", "hurt"}
    assert full - compact == {f for f in full if f.startswith("facing")} | {
        "see grass",
        "see path",
        "see lava",
    }
    caption = {c: i for i, c in enumerate(ATTEMPT.captions)}
    view, ground = ATTEMPT.in_view_masks(), ATTEMPT.grounding_masks()
    assert view.shape == ground.shape == (135, 2) and view.dtype == ground.dtype == np.uint32
    assert facts(view[caption["eat plant"]]) == {"see plant", "see ripe plant"}
    assert facts(view[caption["mine stone"]]) == {"see stone"}
    assert facts(view[caption["eat iron sword"]]) == {"have iron sword"}
    for free in ("nothing", "sleep", "place stone", "make wood pickaxe"):
        assert facts(view[caption[free]]) == set()
    assert facts(ground[caption["place stone"]]) == {"see stone", "have stone"}
    assert facts(ground[caption["place plant"]]) == {"see plant", "see ripe plant", "have sapling"}
    assert facts(ground[caption["chop iron sword"]]) == {"have iron sword"}
    for free in ("nothing", "sleep", "place furnace", "make crafting table", "make iron sword"):
        assert facts(ground[caption[free]]) == set()


def test_what_asking_needs():
    things = ["zombie", "skeleton", "cow", "tree", "stone", "coal", "iron", "diamond", "water"]
    things += ["grass", "crafting table", "furnace", "plant"]
    held = tuple(f"have {item}" for item in ITEMS)
    assert ATTEMPT.needable == tuple(f"see {thing}" for thing in things) + held
    assert ATTEMPT.held == set(held)
    pickaxes = ("have wood pickaxe", "have stone pickaxe", "have iron pickaxe")
    swords = ("have wood sword", "have stone sword", "have iron sword")
    assert ATTEMPT.kinds == (pickaxes, swords)
    assert ATTEMPT.never_needs("make stone pickaxe") == set(pickaxes)
    assert ATTEMPT.never_needs("eat iron sword") == set(swords)
    assert ATTEMPT.never_needs("make crafting table") == {"see crafting table"}
    assert ATTEMPT.never_needs("sleep") == ATTEMPT.never_needs("nothing") == set()
    assert ATTEMPT.parts("place crafting table") == ("place", "crafting table")
    assert ATTEMPT.parts("sleep") == ("sleep", "")
    assert ATTEMPT.meaningful == set(REAL)


def test_the_score_is_the_number_of_achievements(raw):
    after, transition = raw["attempt"]
    assert len(set(transition.score.tolist())) > 3
    np.testing.assert_array_equal(transition.score, after.achievements.sum(-1))


# TASKS
PLANTS = [BLOCKS.index("plant"), BLOCKS.index("ripe plant")]
WHOLE = {
    "attack cow": ("attack cow", "eat cow"),
    "place crafting table": ("place crafting table", "make crafting table"),
}


def successes(name, happened, beside):
    """Judge an episode in plain Python: what happened, and whether a plant stood beside."""
    found, trees, garden = [], 0, []
    for what, is_beside in zip(happened, beside, strict=True):
        if name == "deforestation":
            trees += what == "chop tree"
            found.append(what == "chop tree" and trees % 5 == 0)
        elif name == "gardening":
            if what == ("chop grass", "chop tree", "place plant")[len(garden)]:
                garden.append(what)
            found.append(len(garden) == 3)
            garden = [] if len(garden) == 3 else garden
        elif name == "plant row":
            found.append(what == "place plant" and is_beside)
        else:
            found.append(what in WHOLE.get(name, (name,)))
    return found


@pytest.fixture(scope="module")
def planted(raw):
    """Return the states played, a plant around what is faced in half of them, and where it is."""
    states = raw["before"]
    draw = np.random.default_rng(0)
    maps, beside = states.map.copy(), []
    for i in range(T * N):
        s = plain(states, i)
        cells = [(s.ahead[0] + y, s.ahead[1] + x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
        around = [c for c in cells if c != s.ahead and min(c) >= 0 and max(c) < 64]
        if i % 2:
            maps[i][around[draw.integers(len(around))]] = PLANTS[i // 2 % 2]
        beside.append(any(maps[i][cell] in PLANTS for cell in around))
    return states.replace(map=maps), beside


@pytest.mark.parametrize("name", TASKS)
def test_a_judge_agrees_with_plain_python(raw, planted, name):
    """One stream of what truly happened, and one in which what the task is about is frequent."""
    states, beside = planted
    task, draw = TASKS[name], np.random.default_rng(1)
    about = [*WHOLE.get(name, (name,)), *task.subgoals, "drink water"]
    about = [ATTEMPT.captions.index(what) for what in about if what in ATTEMPT.captions]
    real = raw["effect"][1].caption
    often = np.where(draw.random(T * N) < 0.5, draw.choice(about, T * N), 0).astype(np.int32)

    @jax.jit
    def judge(effects):
        def step(memory, inputs):
            return task.judge(ATTEMPT, memory, *inputs)

        return jax.lax.scan(step, jnp.int32(0), (effects, states, states))[1]

    for effects in (real, often):
        happened = [ATTEMPT.captions[number] for number in effects]
        np.testing.assert_array_equal(judge(effects), successes(name, happened, beside))
    assert judge(often).sum() > 100


def test_an_effect_is_what_truly_happened(play):
    """It is the caption of the strict regime, whichever regime the world has."""
    before, action = play["before"], play["action"]
    after, strict = play["effect"]
    for world in (ATTEMPT, EFFECT):
        effects = jax.jit(jax.vmap(world.effect))(before, action, after)
        np.testing.assert_array_equal(effects, strict.caption)
    base_action, after_base, tried = play["base"]
    effects = jax.jit(jax.vmap(BASE.effect))(before, base_action, after_base)
    kept = effects == tried.caption
    assert kept.any() and not kept.all() and not effects[~kept].any()
    assert (play["attempt"][1].caption != strict.caption).any()

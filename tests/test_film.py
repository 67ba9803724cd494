"""Films: what the panel shows, any size of picture, texts of any length."""

import time
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from lab import film
from lab.film import Frame, draw_frame, film_frames, make_film


def make_frame(step: int = 0, **changes) -> Frame:
    """Make a frame with a picture of coloured blocks."""
    rng = np.random.default_rng(step % 3)
    image = np.kron(rng.integers(0, 255, (3, 3, 3), np.uint8), np.ones((24, 24, 1), np.uint8))
    values = dict(
        image=image,
        step=step,
        scene="You see grass, tree and cow. You have in your inventory wood.",
        goals=(("chop tree", False), ("eat cow", False)),
        action="chop tree",
        caption="chop tree",
        reward=0.0,
        rewarded_goal=None,
        score_name="achievements",
        score=1.0,
        achievements=("collect wood",),
        new_achievement=None,
    )
    return Frame(**{**values, **changes})


@dataclass(frozen=True)
class Corridor:
    """The part of a world that a film reads: a small wide picture, one colour for each step."""

    achievements: tuple[str, ...] = ("take key", "open door")
    name = "corridor"
    score_name = "doors_opened"
    actions = ("left", "right")
    captions = ("nothing", "take key")

    def render(self, state):
        return jnp.full((5, 40, 3), 200, jnp.uint8).at[:, state, 1].set(0)

    def describe(self, scene):
        return f"You are at {scene[0]}. " + "It is a very long corridor. " * 40


def make_steps(achievements: list[list[bool]], num_goals: int = 3) -> list[dict]:
    """Make the steps of an episode which is over at the last of them."""
    return [
        {
            "state": jnp.int32(i),
            "scene": jnp.full(1, i, jnp.uint32),
            "suggested": jnp.arange(num_goals) < 2,
            "achieved": jnp.arange(num_goals) < i,
            "reached": jnp.arange(num_goals) == (1 if i == 1 else num_goals),
            "action": jnp.int32(i % 2),
            "caption": jnp.int32(i == 1),
            "reward": jnp.float32(i == 1),
            "score": jnp.float32(i / 4),
            "achievements": jnp.asarray(unlocked, bool),
            "over": jnp.asarray(i == len(achievements) - 1),
        }
        for i, unlocked in enumerate(achievements)
    ]


@pytest.mark.parametrize(("number", "are_kept"), [(100, True), (400, False)])
def test_a_game_of_few_colours_keeps_them(tmp_path, number, are_kept):
    shades = np.random.default_rng(0).choice(2**24, number, replace=False)
    image = np.stack([shades >> 16, shades >> 8 & 255, shades & 255], -1).astype(np.uint8)
    image = np.kron(image.reshape(10, -1, 3), np.ones((24, 24, 1), np.uint8))
    make_film([make_frame(image=image)], tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as shown:
        colours = set(map(tuple, np.asarray(shown.convert("RGB")).reshape(-1, 3).tolist()))
    wanted = set(map(tuple, image.reshape(-1, 3).tolist()))
    assert (wanted <= colours) == are_kept


def test_frames_say_what_the_steps_were():
    steps = make_steps([[0, 0], [1, 0], [1, 1], [1, 1]])
    frames = film_frames(Corridor(), ["a", "b", "c"], steps)
    assert [frame.step for frame in frames] == [0, 1, 2]  # none after the end
    assert frames[1].goals == (("a", True), ("b", False)) and frames[1].rewarded_goal == "b"
    assert [frame.rewarded_goal for frame in frames] == [None, "b", None]
    assert [frame.action for frame in frames] == ["left", "right", "left"]
    assert [frame.caption for frame in frames] == ["nothing", "take key", "nothing"]
    assert [(frame.score_name, frame.score) for frame in frames[1:]] == [
        ("doors_opened", 0.25),
        ("doors_opened", 0.5),
    ]
    assert frames[2].achievements == ("take key", "open door")
    assert [frame.new_achievement for frame in frames] == [None, "take key", "open door"]
    assert frames[1].scene.startswith("You are at 1") and frames[2].image[0, 2, 1] == 0


def test_world_without_achievements_and_with_a_wide_picture_is_filmed(tmp_path):
    frames = film_frames(Corridor(achievements=()), [], make_steps([[]] * 4, num_goals=0))
    assert frames[2].achievements == () and frames[2].score == 0.5
    make_film(frames, tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as gif:
        assert gif.n_frames == 3 and gif.size == (40 * 21 + film.PANEL, film.PICTURE)
        gif.seek(2)
        shown = np.asarray(gif.convert("RGB"), int)
    assert np.abs(shown - np.asarray(draw_frame(frames[2]), int)).mean() < 4
    top = (film.PICTURE - 5 * 21) // 2  # the game stands halfway up
    assert (shown[: top - 1, : 40 * 21] == film.BACKGROUND).all()
    assert np.abs(shown[top + 2, 5] - 200).max() < 12 and shown[top + 2, 2 * 21 + 5, 1] < 12


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3), (64, 48), (500, 700)])
def test_pictures_of_any_size_are_filmed(size, tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    make_film([make_frame(i, image=image) for i in range(2)], tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as gif:
        factor = (gif.width - film.PANEL) // size[1]
        assert gif.width == factor * size[1] + film.PANEL and factor >= 1
        assert gif.height == max(factor * size[0], film.PICTURE)


def test_score_is_titled_by_its_name_and_value():
    plain = np.asarray(draw_frame(make_frame()), int)
    for changes in ({"score_name": "doors_opened"}, {"score": 0.5}, {"score": 10.0}):
        other = np.asarray(draw_frame(make_frame(**changes)), int)
        rows = np.flatnonzero(np.abs(other - plain).sum((1, 2)))
        assert len(rows) and rows.min() > 320 and rows.max() < 345  # the heading alone


def test_film_has_all_frames_with_their_pictures(tmp_path):
    frames = [
        make_frame(step, new_achievement="collect wood" if step == 2 else None) for step in range(6)
    ]
    make_film(frames, tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as gif:
        assert gif.n_frames == 6 and gif.info["loop"] == 0
        durations = []
        for step, frame in enumerate(frames):
            gif.seek(step)
            durations.append(gif.info["duration"])
            shown, wanted = np.asarray(gif.convert("RGB"), int), np.asarray(draw_frame(frame), int)
            assert shown.shape == wanted.shape
            game = np.abs(shown - wanted)[:, : shown.shape[0]]
            assert (
                game.max() <= 40 and np.abs(shown - wanted).mean() < 4
            )  # few colours, but the right ones
    assert (
        durations[2] > durations[1] and durations[-1] > durations[0] and durations[0] in (120, 130)
    )
    assert [file.name for file in tmp_path.iterdir()] == ["film.gif"]


def test_film_marks_what_was_achieved_rewarded_and_unlocked():
    plain = np.asarray(draw_frame(make_frame()), int)

    def changed(**changes):
        return np.argwhere(
            np.abs(np.asarray(draw_frame(make_frame(**changes)), int) - plain).sum(-1) > 0
        )

    achieved = changed(goals=(("chop tree", True), ("eat cow", False)))
    second = changed(goals=(("chop tree", False), ("eat cow", True)))
    rewarded = changed(rewarded_goal="eat cow")
    assert len(achieved) and len(second)
    assert second[:, 0].min() > achieved[:, 0].max()  # another line of the list
    assert rewarded[:, 0].min() > achieved[:, 0].max()  # that line is lit,
    assert rewarded[:, 0].max() > second[:, 0].max()  # and the reward names it
    assert len(changed(new_achievement="collect wood")) and len(changed(reward=1.0))


def test_film_texts_stay_in_their_places():
    long = "extraordinarily " * 30
    frame = make_frame(
        step=10**6,
        scene=long,
        goals=tuple((f"{long} {i}", i % 2 == 0) for i in range(40)),
        score_name="things_of_some_kind_done_" * 10,
        score=1e9 / 3,
        action=long,
        caption="x" * 300,
        rewarded_goal=f"{long} 33",
        achievements=tuple(f"achievement number {i}" for i in range(60)),
    )
    picture = np.asarray(draw_frame(frame), int)
    rim = np.abs(picture - np.array(film.BACKGROUND)).sum(-1) > 0
    assert not rim[:, -film.MARGIN + 8 :].any() and not rim[-3:, picture.shape[0] :].any()
    assert not rim[:, picture.shape[0] : picture.shape[0] + film.MARGIN - 6].any()


def test_few_goals_and_what_happened_are_shown_whole(monkeypatch):
    goal = "place the dirty plaid shirt in the bathroom laundry basket"
    shown, clip = [], film.clip
    monkeypatch.setattr(film, "clip", lambda *a: shown.append((a[0], clip(*a))) or shown[-1][1])
    frame = make_frame(goals=((goal, False),), caption=goal, rewarded_goal=goal, reward=1.0)
    draw_frame(frame)
    assert [text for text, drawn in shown if text == goal and drawn == goal] == [goal, goal]
    assert ("+1.00  for this goal",) * 2 in shown


def test_wrapping_and_clipping():
    assert film.wrap("", 100, 14, 3) == []
    lines = film.wrap("one two three four five six seven eight nine ten", 90, 14, 2)
    assert len(lines) == 2 and lines[1].endswith("…")
    for line in [*lines, film.clip("w" * 100, 90, 14), *film.wrap("w" * 100 + " end", 90, 14, 4)]:
        assert 0 < film.text_width(line, 14) <= 90
    assert film.clip("short", 90, 14) == "short"
    assert film.clip("w" * 9, 1, 14) == "…"
    clipped = film.clip("one two three four", 60, 14)  # the longest beginning that fits
    length = len(clipped) - 1
    assert "one two three four".startswith(clipped[:-1])
    assert film.text_width("one two three four"[: length + 1] + "…", 14) > 60


def test_long_texts_are_set_quickly():
    text = " ".join(f"word{i}" for i in range(3000))
    start = time.perf_counter()
    assert len(film.wrap(text, 396, 14, 4)) == 4
    assert time.perf_counter() - start < 1.0


def test_goals_beyond_the_room_are_counted():
    goals = [(f"goal {i}", i < 6) for i in range(10)]
    assert film.choose_goals(goals, None, 10) == (goals, 0)
    kept, left_out = film.choose_goals(goals, "goal 3", 4)
    assert [goal for goal, _ in kept] == ["goal 3", "goal 6", "goal 7"] and left_out == 7

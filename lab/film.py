"""An episode as a GIF: the game beside what the agent was told, what it did and what it got."""

import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from lab.metrics import score_label
from worlds.world import World

PICTURE, WIDEST = 432, 864  # pixels: height the game is scaled to (or a little more), if so wide
PANEL, MARGIN, LINE, VALUES = 432, 18, 18, 72  # pixels; VALUES: where a line's text begins
SMALLEST = 11  # of letters, for what would not fit else
CAPTION_LINES, GOAL_ROWS, ACHIEVEMENT_ROWS = 4, 6, 5
HOLD_NEW, HOLD_LAST = 5, 20  # times longer that a frame with a new achievement, or the last, stands

BACKGROUND, RULE = (22, 25, 31), (46, 51, 61)
TEXT, FAINT = (232, 234, 238), (134, 141, 153)
GREEN, GREEN_DARK, GOLD = (112, 214, 140), (31, 69, 48), (245, 196, 94)
GAME_COLOURS, RAMP = 48, 4  # of the palette; from the background to each text colour
EXACT_COLOURS = 128  # a game of so few has all of its own in the palette
UNCHANGED = 255  # the palette's index that leaves a pixel as it was
NOISE_COLOURS, NOISE = 600, 32  # a picture of more colours is noisy: differences smoothed there


@dataclass(frozen=True)
class Frame:
    """One step: the picture and what the agent was told before it, what it did and got."""

    image: np.ndarray  # uint8 [H, W, 3]
    step: int
    scene: str  # the state caption
    goals: tuple[tuple[str, bool], ...]  # suggested, and whether achieved before in the episode
    action: str
    caption: str  # what the step was called
    reward: float
    rewarded_goal: str | None
    score_name: str
    score: float  # of the episode, this step included
    achievements: tuple[str, ...]  # unlocked so far, oldest first
    new_achievement: str | None


def make_film(frames: Sequence[Frame], path: str | os.PathLike, fps: float = 8.0) -> None:
    """Write a looping GIF of `frames`, at least one, whose pictures are all of one size."""
    palette = _make_palette(frames)
    duration = [1000.0 / fps * (HOLD_NEW if frame.new_achievement else 1) for frame in frames]
    duration[-1] = 1000.0 / fps * HOLD_LAST
    pictures = _changes(_compose(frame, palette) for frame in frames)
    first = next(pictures)
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    first.save(
        temporary,
        format="GIF",
        save_all=True,
        append_images=pictures,
        duration=[round(d / 10) * 10 for d in duration],
        loop=0,
        optimize=False,  # keeps the one palette for all frames
        transparency=UNCHANGED,
        disposal=1,
    )
    os.replace(temporary, path)


def film_frames(
    world: World, goals: Sequence[str], steps: Sequence[Mapping[str, Any]]
) -> list[Frame]:
    """Turn the steps of an episode into frames, up to the first that is "over".

    goals: the texts, [G]. Each step has on the device, before the action: state, scene [W],
    suggested and achieved [G] bool, over; of the action: action, caption, reward, reached [G] bool;
    after it: score and achievements [K] bool of the episode.
    """
    render = jax.jit(world.render)
    frames, unlocked = [], []
    for number, step in enumerate(steps):
        if step["over"]:
            break
        values = jax.device_get({name: value for name, value in step.items() if name != "state"})
        reached = np.flatnonzero(values["reached"])
        pairs = zip(world.achievements, values["achievements"], strict=True)
        have = [name for name, is_unlocked in pairs if is_unlocked]
        new = [name for name in have if name not in unlocked]
        unlocked += new
        frames.append(
            Frame(
                image=np.asarray(render(step["state"])),
                step=number,
                scene=world.describe(values["scene"]),
                goals=tuple(
                    (goals[goal], bool(values["achieved"][goal]))
                    for goal in np.flatnonzero(values["suggested"])
                ),
                action=world.actions[values["action"]],
                caption=world.captions[values["caption"]],
                reward=float(values["reward"]),
                rewarded_goal=goals[reached[0]] if len(reached) else None,
                score_name=world.score_name,
                score=float(values["score"]),
                achievements=tuple(unlocked),
                new_achievement=new[0] if new else None,
            )
        )
    return frames


def draw_frame(frame: Frame) -> Image.Image:
    """Return one frame in full colour, as make_film shows it."""
    game = _scaled(Image.fromarray(frame.image))
    return _beside(game, _draw_panel(frame), Image.new("RGB", (1, 1), BACKGROUND))


def _beside(game: Image.Image, panel: Image.Image, ground: Image.Image) -> Image.Image:
    """Set the game, halfway up, beside its panel; `ground` is one pixel of the background."""
    height = max(game.height, panel.height)
    canvas = ground.resize((game.width + panel.width, height))
    canvas.paste(game, (0, (height - game.height) // 2))
    canvas.paste(panel, (game.width, 0))
    return canvas


def _scaled(image: Image.Image) -> Image.Image:
    """Enlarge the game by a whole factor, pixels staying square and sharp."""
    factor = max(1, min(-(-PICTURE // image.height), WIDEST // image.width))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _changes(pictures: Iterator[Image.Image]) -> Iterator[Image.Image]:
    """Mark in each picture the pixels that are as before: half the size of the file."""
    before = None
    for picture in pictures:
        now = np.asarray(picture)
        marked = now if before is None else np.where(now == before, np.uint8(UNCHANGED), now)
        before = now
        changed = Image.fromarray(marked).convert("L")
        changed.putpalette(picture.getpalette())
        yield changed


def _smooth(image: np.ndarray) -> Image.Image:
    """Take the noise from a dark picture: it hides the game and fills the file. Edges stay."""
    picture = Image.fromarray(image)
    if picture.getcolors(NOISE_COLOURS) is not None:
        return picture
    median = np.asarray(picture.filter(ImageFilter.MedianFilter(3)))
    near = np.abs(median.astype(np.int16) - image).max(axis=-1, keepdims=True) < NOISE
    return Image.fromarray(np.where(near, median, image))


def _compose(frame: Frame, palette: Image.Image) -> Image.Image:
    """Return the frame in the film's palette; the game is reduced to it before it is enlarged."""

    def reduced(image: Image.Image) -> Image.Image:
        return image.quantize(palette=palette, dither=Image.Dither.NONE)

    ground = reduced(Image.new("RGB", (1, 1), BACKGROUND))
    return _beside(_scaled(reduced(_smooth(frame.image))), reduced(_draw_panel(frame)), ground)


def _make_palette(frames: Sequence[Frame]) -> Image.Image:
    """Return an image with the colours of the panel and the fittest for the game, at most 255."""
    colours = {BACKGROUND: None, RULE: None}
    for ground, inks in ((BACKGROUND, (TEXT, FAINT, GREEN, GOLD)), (GREEN_DARK, (TEXT,))):
        for ink in inks:
            for part in np.linspace(0.0, 1.0, RAMP):
                pairs = zip(ground, ink, strict=True)
                colours[tuple(round(g + part * (i - g)) for g, i in pairs)] = None
    chosen = [np.asarray(_smooth(frame.image)) for frame in frames[:: max(1, len(frames) // 48)]]
    montage = Image.fromarray(np.concatenate(chosen))
    found = montage.getcolors(EXACT_COLOURS)
    if found is None:  # this method keeps rare colours
        reduced = montage.quantize(colors=GAME_COLOURS, method=Image.Quantize.FASTOCTREE)
        found = reduced.convert("RGB").getcolors()
    for _, colour in found:
        colours[colour] = None
    palette = Image.new("P", (1, 1))
    palette.putpalette([part for colour in colours for part in colour])
    return palette


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Return Pillow's own font, which needs no file of the system."""
    return ImageFont.load_default(size=size)


@lru_cache(maxsize=65536)
def text_width(text: str, size: int) -> float:
    """Return the width of a text in pixels."""
    return _font(size).getlength(text)


def clip(text: str, width: float, size: int) -> str:
    """Shorten `text` with an ellipsis until it is at most `width` pixels wide."""
    if text_width(text, size) <= width:
        return text

    def width_of(length: int) -> float:
        return text_width(text[:length].rstrip() + "…", size)

    length = bisect_right(range(len(text)), width, key=width_of) - 1
    return text[: max(0, length)].rstrip() + "…"


def wrap(text: str, width: float, size: int, lines: int) -> list[str]:
    """Break `text` into at most `lines` lines of at most `width` pixels.

    An ellipsis stands for the rest.
    """
    done: list[str] = []
    words = text.split()
    while words:
        count = 1
        while count < len(words) and text_width(" ".join(words[: count + 1]), size) <= width:
            count += 1
        if len(done) == lines - 1:
            return [*done, clip(" ".join(words), width, size)]
        done.append(clip(" ".join(words[:count]), width, size))
        words = words[count:]
    return done


def choose_goals(
    goals: Sequence[tuple[str, bool]], rewarded: str | None, room: int
) -> tuple[list[tuple[str, bool]], int]:
    """Return at most `room` cells' worth of goals in their order, and how many are left out.

    When room is short the rewarded goal goes first, then open ones; a cell is kept for "+n more".
    """
    if len(goals) <= room:
        return list(goals), 0
    ranked = sorted(range(len(goals)), key=lambda i: (goals[i][0] != rewarded, goals[i][1], i))
    kept = sorted(ranked[: room - 1])
    return [goals[i] for i in kept], len(goals) - len(kept)


def _draw_panel(frame: Frame) -> Image.Image:
    """Draw the text side; every part has a fixed place, so nothing jumps from frame to frame."""
    panel = Image.new("RGB", (PANEL, PICTURE), BACKGROUND)
    draw = ImageDraw.Draw(panel)
    inner = PANEL - 2 * MARGIN
    y = 9

    label = f"step {frame.step}"
    draw.text((PANEL - MARGIN - text_width(label, 12), y), label, FAINT, _font(12))
    _heading(draw, y, "the agent sees")
    y += 18
    for i, line in enumerate(wrap(frame.scene, inner, 14, CAPTION_LINES)):
        draw.text((MARGIN, y + i * LINE), line, TEXT, _font(14))
    y += CAPTION_LINES * LINE + 8

    y = _rule(draw, y)
    _heading(draw, y, "goals" if frame.goals else "no goal")
    y += 18
    _draw_goals(draw, frame, y, inner)
    y += GOAL_ROWS * LINE + 8

    y = _rule(draw, y)
    earned = f"{frame.reward:+.2f}" if frame.reward else "0"
    if frame.rewarded_goal is not None:
        is_named = frame.rewarded_goal == frame.caption
        earned += f"  for {'this goal' if is_named else frame.rewarded_goal}"
    ink = GREEN if frame.reward > 0 else FAINT
    lines = (("action", frame.action, TEXT), ("happened", frame.caption, TEXT))
    for name, text, colour in (*lines, ("reward", earned, ink)):
        _heading(draw, y, name)
        size = _size_of(text, inner - VALUES, 15)
        place = MARGIN + VALUES, y - 3 + (15 - size)
        draw.text(place, clip(text, inner - VALUES, size), colour, _font(size))
        y += LINE + 1
    y += 5

    y = _rule(draw, y)
    score = f"{frame.score:.2f}".rstrip("0").rstrip(".")
    _heading(draw, y, clip(f"{score_label(frame.score_name)}   {score}", inner, 12))
    _draw_achievements(draw, frame, y + 17, inner)
    return panel


def _size_of(text: str, width: float, largest: int) -> int:
    """Return the largest size of letters down to SMALLEST at which the text fits the width."""
    sizes = range(largest, SMALLEST, -1)
    return next((size for size in sizes if text_width(text, size) <= width), SMALLEST)


def _heading(draw: ImageDraw.ImageDraw, y: int, text: str) -> None:
    """Write a small faint title."""
    draw.text((MARGIN, y), text, FAINT, _font(12))


def _rule(draw: ImageDraw.ImageDraw, y: int) -> int:
    """Draw a line across and return where the next part begins."""
    draw.line((MARGIN, y, PANEL - MARGIN, y), RULE)
    return y + 8


def _draw_goals(draw: ImageDraw.ImageDraw, frame: Frame, y: int, inner: int) -> None:
    """List the goals, many in two columns: achieved ones ticked and struck, the paid one lit."""
    column = inner if len(frame.goals) <= GOAL_ROWS else inner // 2
    shown, left_out = choose_goals(frame.goals, frame.rewarded_goal, 2 * GOAL_ROWS)
    for i, (goal, achieved) in enumerate(shown):
        x, top = MARGIN + (i // GOAL_ROWS) * column, y + (i % GOAL_ROWS) * LINE
        size = _size_of(goal, column - 28, 14)
        text = clip(goal, column - 28, size)
        rewarded = goal == frame.rewarded_goal
        if rewarded:
            draw.rounded_rectangle((x - 5, top, x + column - 11, top + LINE - 1), 4, GREEN_DARK)
        if rewarded or achieved:
            _tick(draw, x + 1, top + 5, TEXT if rewarded else GREEN)
        else:
            draw.ellipse((x + 3, top + 7, x + 7, top + 11), FAINT)
        ink = FAINT if achieved and not rewarded else TEXT
        draw.text((x + 16, top + (14 - size)), text, ink, _font(size))
        if achieved and not rewarded:
            draw.line((x + 16, top + 10, x + 16 + text_width(text, size), top + 10), FAINT)
    if left_out:
        place = (MARGIN + column + 16, y + (GOAL_ROWS - 1) * LINE)
        draw.text(place, f"+{left_out} more", FAINT, _font(14))


def _tick(draw: ImageDraw.ImageDraw, x: int, y: int, ink: tuple[int, int, int]) -> None:
    """Draw a tick of about 9 by 8 pixels; not every font has one."""
    draw.line((x, y + 4, x + 3, y + 7, x + 9, y), ink, 2, joint="curve")


def _draw_achievements(draw: ImageDraw.ImageDraw, frame: Frame, y: int, inner: int) -> None:
    """Set the achievements in running lines, the newest in gold.

    The oldest give way when room is short.
    """
    names = list(frame.achievements)
    dropped = 0
    while True:
        words = [f"+{dropped} more"] if dropped else []
        places, x, row = [], 0.0, 0
        for i, name in enumerate(words + names):
            word = clip(name, inner, 13)
            wide = text_width(word, 13)
            if x and x + wide > inner:
                x, row = 0.0, row + 1
            places.append((x, row, word, name == frame.new_achievement, dropped and i == 0))
            x += wide + 13
        if row < ACHIEVEMENT_ROWS:
            break
        names, dropped = names[1:], dropped + 1
    for x, row, word, new, faint in places:
        ink = GOLD if new else FAINT if faint else TEXT
        draw.text((MARGIN + x, y + row * 16), word, ink, _font(13))

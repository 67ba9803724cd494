"""The paper's open-ended form of asking: a prompt that shows lists of suggestions, and its reader."""

import hashlib
import os
import re
import string
from pathlib import Path

from goals.sentence_encoder import normalise_goal
from lab.errors import UserError

PROMPTS = Path(__file__).parent.parent / "prompts"
MAX_GOALS = 20
MAX_GOAL_LENGTH = 60  # characters
MAX_LINE_LENGTH = 200  # characters; nothing of a longer line is worth reading
MAX_ANSWER_LENGTH = MAX_GOALS * MAX_LINE_LENGTH

BULLET = re.compile(r"\s*(?:[-*•‣◦–—+]|\d+\s*[.):])")
LINE_END = re.compile(r"\r\n|\r|\n")


def load_prompt(path: str | os.PathLike) -> tuple[string.Template, str]:
    """Read a prompt file; return its template and the first 16 hex digits of the SHA-256 of its bytes.

    White space at the file's end is not part of the prompt. Raises UserError if there is no such file or its
    placeholders are not exactly $scene.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        template = string.Template(content.decode("utf-8").replace("\r\n", "\n").rstrip())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        folder = path.parent if any(path.parent.glob("*_v*.txt")) else PROMPTS
        there = ", ".join(sorted(p.name for p in folder.glob("*_v*.txt")))
        raise UserError(f"prompt {path} cannot be read ({reason}); in {folder} there are {there}") from error
    if not template.is_valid() or template.get_identifiers() != ["scene"]:
        raise UserError(f"prompt {path} must have $scene and no other placeholder; write a dollar sign as $$")
    return template, hashlib.sha256(content).hexdigest()[:16]


def render(template: string.Template, scene: str) -> str:
    """Put a scene's sentence into a prompt."""
    return template.substitute(scene=scene)


def parse_goals(raw: str) -> tuple[str, ...]:
    """Read the goals of an answer, in order, each once, in their normal form; any text is an answer.

    The answer is the rest of a list whose first bullet ended the prompt, or a list with a bullet or a number
    on each line. The list ends at the first line without one.
    """
    if len(raw) > MAX_ANSWER_LENGTH:
        raw = raw[:MAX_ANSWER_LENGTH].rpartition("\n")[0]
    goals: dict[str, None] = {}
    for number, line in enumerate(LINE_END.split(raw)):
        bullet = BULLET.match(line)
        if not bullet and goals:
            break
        # Only the very first line may lack its bullet, unless it announces a list.
        if not bullet and (number or line.rstrip().endswith(":")):
            continue
        goal = normalise_goal(line) if len(line) <= MAX_LINE_LENGTH else ""
        if len(goal) <= MAX_GOAL_LENGTH and any(map(str.isalpha, goal)):
            goals[goal] = None
        if len(goals) == MAX_GOALS:
            break
    return tuple(goals)

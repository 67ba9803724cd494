"""Tell what a model thinks aloud from what it answers."""

import re

TAGS = ("think", "thinking", "thought", "reasoning", "seed:think")
OPENINGS = (*(f"<{tag}>" for tag in TAGS), "[THINK]", "<|channel|>analysis<|message|>")
CLOSINGS = (*(f"</{tag}>" for tag in TAGS), "[/THINK]", "<|channel|>final<|message|>")
BEGIN = re.compile("|".join(map(re.escape, OPENINGS)))
END = re.compile("|".join(map(re.escape, CLOSINGS)))


def without_reasoning(text: str) -> str:
    """Return what follows a text's last reasoning, or stands before one that never ends.

    Some templates open the reasoning themselves: a text may hold its end alone.
    """
    end = _end_of_reasoning(text)
    text = text[end:].lstrip() if end else text
    begin = BEGIN.search(text)
    return text[: begin.start()] if begin else text


def is_unfinished(text: str) -> bool:
    """Return whether a text ends in the midst of its reasoning."""
    return BEGIN.search(text, _end_of_reasoning(text)) is not None


def begins_to_reason(text: str) -> bool:
    """Return whether a text begins as reasoning does, if only with a part of its mark."""
    text = text.strip()
    return bool(text) and any(mark.startswith(text) or text.startswith(mark) for mark in OPENINGS)


def _end_of_reasoning(text: str) -> int:
    return max((end.end() for end in END.finditer(text)), default=0)

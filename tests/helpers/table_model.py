"""A language model that answers from a table what suits the toy's scenes."""

import threading

from goals.model import Usage

PROMPT = "You explore a corridor.\n\nScene: $scene\nGoals:\n-"
PATIENCE = 30  # seconds; nothing here takes long unless it is broken


class TableModel:
    """Suggest what suits the toy's scenes, and one goal that no caption equals.

    All prompts are kept in `prompts`.
    """

    name, can_score, trouble = "table", False, ""

    def __init__(self):
        self.prompts = []
        self.usage = Usage()

    def generate(self, prompts, max_tokens, stop, temperature, seed):
        self.prompts.extend(prompts)
        self.usage.prompt_tokens += 10 * len(prompts)
        self.usage.generated_tokens += 3 * len(prompts)
        self.usage.seconds += 0.5 * len(prompts)
        return [self.answer(prompt.split("Scene: ")[1].split("\n")[0]) for prompt in prompts]

    def answer(self, scene):
        goals = ["take key"] if "see key" in scene else ["open door", "kick wall"]
        return " " + "\n- ".join([*goals, "sing a song"])

    def close(self):
        pass


class SlowModel(TableModel):
    """Answers only while `allowed` is set, and tells by `asked` that it was asked."""

    def __init__(self):
        super().__init__()
        self.asked, self.allowed = threading.Event(), threading.Event()

    def generate(self, prompts, **options):
        self.asked.set()
        assert self.allowed.wait(PATIENCE)
        return super().generate(prompts, **options)


class SilentModel(TableModel):
    """Has no answer where one could stand at 2."""

    def answer(self, scene):
        return None if "stand at 2" in scene else super().answer(scene)


class DyingModel(TableModel):
    """Answers one batch, then fails in its own way."""

    def generate(self, prompts, **options):
        if self.prompts:
            raise ConnectionError("the server\nis gone")
        return super().generate(prompts, **options)


class Chatty(TableModel):
    """Adds goals of its own to every answer, and says nothing of use about one scene."""

    def answer(self, scene):
        if "stand at 2" in scene:
            return "\n\nI do not know."
        return super().answer(scene) + "".join(
            f"\n- dream {i} of {scene.split(', ')[-1]}" for i in range(15)
        )

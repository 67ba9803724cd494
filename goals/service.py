"""The host's side of goals: what is asked, when, and what the tables on the device then hold.

A source with a language model takes an answer from a recorded store, else from the run's store,
else from the live model, which is never asked the same twice. Sources without one fill the tables
once. Axis letters as in `goals.tables`.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from goals.arguments import GoalArgs, TextArgs
from goals.asking import MEND, Asker, Costs
from goals.background import AnswerScenes, Background
from goals.closed import Closed
from goals.embeddings import Embeddings
from goals.evidence import Evidence
from goals.forms import Form, is_answer, make_form
from goals.guidance import check_guide
from goals.pairs import PairsForm, with_pairs
from goals.rules import RulesForm, check_plausible, no_rules, say_rules
from goals.scene_tables import SceneTables, build_tables, embeds_goals, replace_rules
from goals.sources import Sources, open_sources
from goals.store import Store
from goals.tables import GoalTables, SceneIndex, suggest_by_scene
from lab.errors import UserError
from worlds.world import World, mask_of

PROGRESS_SECONDS = 0.5
REHEARSALS, FACTS_OF_REHEARSAL = 3, 4  # scenes that a server is asked about before a run


@jax.jit
def _find_unanswered(tables: GoalTables, prompt_mask: np.ndarray, scenes: jax.Array) -> jax.Array:
    return suggest_by_scene(tables, prompt_mask, scenes)[1] < 0


class GoalService:
    """Own the goal tables of one run and the way to everything that can answer.

    args without goals (TextArgs) stand for no goals at all. on_progress is called with the number
    of questions that wait for an answer; mentor: a guide's arrays, for the tables. `tables` are
    there after `prepare`. holds_up: whether a run like this may meet scenes that it must make known
    before it goes on. Raises UserError for a model, prompt or store that is not there, and for
    arguments that do not go together.
    """

    def __init__(
        self,
        world: World,
        args: TextArgs,
        seed: int = 0,
        on_progress: Callable[[int], None] = lambda waiting: None,
        mentor: Any = None,
    ):
        is_goal_args = isinstance(args, GoalArgs)
        self.world, self.args, self.on_progress = world, args, on_progress
        self.mentor = mentor
        self.source = args.goal_source if is_goal_args else "none"
        self.holds_up = args.asks
        self.prompt_mask = world.prompt_mask(args.prompt_scope if is_goal_args else "full")
        if is_goal_args:
            _check(args, world)
            check_guide(args, world)
        self.store = Store(args.store)
        self._sources = Sources()
        self.form: Form | None = None  # of asking, if anybody is asked
        if self.source == "llm":
            try:
                self._sources = open_sources(world, args, self.store)
            except UserError:
                self.store.close()
                raise
            self.form = self._make_form(seed)
        self._asker = self._make_asker()
        is_async = args.in_background and self._sources.model is not None
        self.background = Background(self._open_background) if is_async else None
        self._given_up: set[bytes] = set()
        self._embeddings = Embeddings(args.sentence_encoder, self.store, self._sources.recorded)
        self._scenes = SceneTables(world, args)
        self._seed = seed
        self._evidence: Evidence | None = None  # what play says of the rules, with --evidence
        self._news: list[str] = []  # corrections since the last line of metrics

    def _make_form(self, seed: int) -> Form:
        sources, answered = self._sources, self._sources.answered
        if sources.model is None and sources.recorded is None:
            sources_here = self.store.sources()
            answered = {prompt for name, prompt, _ in sources_here if name == sources.name}
        try:
            return make_form(self.world, self.args, sources.name, seed, answered)
        except UserError:
            self._sources.close_model()
            self._sources.close()
            self.store.close()
            raise

    def prepare(self) -> None:
        """Ask and embed what is asked and embedded once and for all, and build the first tables.

        Raises UserError if what is answered is of no use, so that no run is made of it.
        """
        if self.form is not None:
            self.form.prepare(self._asker.answers)
            if isinstance(self.form, RulesForm | Closed | PairsForm):
                check_plausible(self.form.plausible, self.form.known, self.language_model)
            if self.args.per_scene and self.args.llm_url and self._sources.model:
                self._rehearse()
        if self.source != "none" and self.args.evidence:
            rules, margins = no_rules(self.world), 0.0
            if self.form is not None:
                rules, margins = self.form.rules, self.form.margins
            self._evidence = Evidence(self.world, rules, margins, self._seed, self.args.doubt)
        if self.args.text_observation == "caption":
            self._scenes.size_texts(self.embedding_size)
        if self.source == "task":
            self._scenes.add_sentence(self.world.task_sentence)  # the goal after all captions
        self._renew()

    def _rehearse(self) -> None:
        """Ask a server about a scene or a few, as the run will; raise UserError if in vain."""
        facts, said = self.world.facts, None
        step = max(1, len(facts) // FACTS_OF_REHEARSAL)
        for first in range(REHEARSALS):
            if not self._asker.left:
                return
            scene = mask_of(facts, facts[first::step]) & self.prompt_mask
            question = self.world.describe(scene)
            key = self.form.prompt_hash, self.form.parameters
            said = self._asker.answers(*key, [question], self.form.ask).get(question)
            if said is not None and is_answer(self.form.parameters, said):
                return
        raise UserError(
            f"{self.language_model} has no usable answer to a scene "
            f"({self._asker.why(said)}): {MEND}"
        )

    # WHAT THERE IS

    @property
    def language_model(self) -> str | None:
        """The identity of who answers."""
        return self._sources.name

    @property
    def prompts(self) -> dict[str, str]:
        """The hashes of the prompts, by kind."""
        return self.form.prompts if self.form else {}

    @property
    def goals(self) -> list[str]:
        """The goals by number; the first are what a step can be called."""
        return self._scenes.goals

    @property
    def num_goals(self) -> int:
        """G, the capacity of the goal axis: a multiple of 32 that grows by doubling."""
        return self._scenes.num_goals

    @property
    def num_scenes(self) -> int:
        """How many scenes the tables know."""
        return self._scenes.num_scenes

    @property
    def embedding_size(self) -> int:
        """E, 0 if nothing is embedded."""
        if not self._embeds:
            return 0
        return self._embeddings.embed([self.world.captions[0]]).shape[1]

    @property
    def vectors(self) -> str | None:
        """Where embeddings come from, in words; None if nothing is embedded."""
        return self._embeddings.source if self._embeds else None

    @property
    def usage(self) -> Costs:
        """What goals have cost so far."""
        return self._asker.costs

    @property
    def failure(self) -> UserError | None:
        """What ended the asking in the background, if something has."""
        return self.background.failure if self.background else None

    @property
    def queue_length(self) -> int:
        """How many scenes wait for an answer from the background."""
        return len(self.background) if self.background else 0

    @property
    def _embeds(self) -> bool:
        return embeds_goals(self.args) or self.args.text_observation != "none"

    def describe(self) -> str:
        """Say in one line where goals come from."""
        if self.source == "none":
            return "no goals"
        if self.source == "task":
            return f"the task: {self.world.task_sentence}"
        if self.source != "llm":
            return f"goals from {self.source}, no language model"
        how = "" if self._sources.model else ", nobody is asked"
        if self.background:
            how = ", asked in the background"
        return (
            f"goals from {self._sources.kind} answers of {self.language_model}{how} "
            f"(form: {self.args.goal_form})"
        )

    def metrics(self) -> dict[str, Any]:
        """Return what the service adds to a line of metrics, news of the rules but once."""
        line = {"scenes": self.num_scenes}
        if self.args.in_background:
            line["queue_length"] = self.queue_length
            line["queue_dropped"] = self.usage.queue_dropped
        if self._evidence is not None:
            line["rules_corrected"] = len(self._evidence.corrections)
            line["corrections"], self._news = self._news, []
        return line

    # RESOLVE

    def know(self, scenes: np.ndarray) -> None:
        """Make every scene of [M, W] uint32 known: ask what nobody has asked; renew the tables.

        What is asked in the background is left to `observe`. Raises UserError if a model fails or,
        with --on-missing error, if no store has the answer.
        """
        if self.args.per_scene and self.background is None:
            self._learn_goals(scenes & self.prompt_mask)
        if self.args.text_observation == "caption":
            self._learn_texts(scenes)
        self._renew()

    def observe(self, scenes: jax.Array, captions: jax.Array, done: jax.Array) -> bool:
        """Take what a rollout shows; return whether `tables` are new.

        scenes: [T, N, W] uint32; captions: [T, N] int32, of the steps taken in them; done: [T, N]
        bool, whether these ended an episode. With --evidence the rules are corrected by it; with
        --resolve async the scenes without an answer wait for one, and the answers that have come
        are taken. New tables count from the next rollout on. Raises UserError as `know`.
        """
        is_new = is_corrected = False
        if self._evidence is not None:
            # HOST WAITS for the device.
            self._evidence.observe(*map(np.asarray, (scenes, captions, done)))
            rules, news = self._evidence.correct()
            self._news += news
            self.tables, is_corrected = replace_rules(self.tables, rules), bool(news)
        if self.args.in_background:
            is_unanswered = np.asarray(_find_unanswered(self.tables, self.prompt_mask, scenes))
            is_new |= self._exchange(np.asarray(scenes)[is_unanswered])
        if is_new:
            self._renew()
        return is_new or is_corrected

    @property
    def evaluation_tables(self) -> GoalTables:
        """The tables without --doubt, which is for training alone."""
        if self._evidence is None:
            return self.tables
        return replace_rules(self.tables, self._evidence.rules_without_doubt())

    def rules_report(self) -> str:
        """Say the rules, and with --evidence how play has corrected them; "" without rules."""
        if self._evidence:
            return self._evidence.report()
        if isinstance(self.form, PairsForm):
            return self.form.report()
        if not isinstance(self.form, RulesForm):
            return ""
        said = say_rules(self.world, self.form.rules)
        return "".join(f"{goal}: {needs}\n" for goal, needs in said.items())

    def _exchange(self, scenes: np.ndarray) -> bool:
        """Take the answers that have come, and let scenes wait for theirs.

        scenes: [M, W] uint32, one entry a visit. Answers in stores are there at once. Returns
        whether anything is known that was not.
        """
        known = len(self._scenes.goal_index)
        scenes = scenes & self.prompt_mask
        if self.background is None:
            self._learn_goals(scenes)
        else:
            self.background.start(self._asker.left)
            self._take()
            keys, counts = np.unique(scenes, axis=0, return_counts=True)
            visits = zip(keys, counts, strict=True)
            self._enqueue(
                {key.tobytes(): int(n) for key, n in visits if key not in self._scenes.goal_index}
            )
        return len(self._scenes.goal_index) > known

    def _learn_goals(self, scenes: np.ndarray) -> None:
        index = self._scenes.goal_index
        new = [scene.tobytes() for scene in np.unique(scenes, axis=0) if scene not in index]
        for scene, answer in self._ask(self._asker, new).items():
            self._learn(scene, answer)

    def _learn_texts(self, scenes: np.ndarray) -> None:
        index = self._scenes.text_index
        new = [scene for scene in np.unique(scenes, axis=0) if scene not in index]
        if new:
            vectors = self._embeddings.embed([self.world.describe(scene) for scene in new])
            for scene, vector in zip(new, vectors, strict=True):
                self._scenes.add_text(scene, vector)

    def _learn(self, scene: bytes, answer: str | None) -> None:
        """Enter what was answered about a scene; None: nothing, and nobody is asked again.

        An answer that cannot be used counts as unparsed, and else as none.
        """
        goals = None if answer is None else self.form.goals(answer)
        self._asker.costs += Costs(unparsed=int(goals is not None and not goals))
        if answer is not None and not is_answer(self.form.parameters, answer):
            goals = None
        self._scenes.add_goals(np.frombuffer(scene, np.uint32), goals)

    def _ask(self, asker: Asker, scenes: list[bytes]) -> dict[bytes, str | None]:
        questions = self._questions(scenes)
        texts = list(dict.fromkeys(questions.values()))
        form = self.form
        answers = asker.answers(form.prompt_hash, form.parameters, texts, form.ask)
        return {scene: answers.get(question) for scene, question in questions.items()}

    def _questions(self, scenes: list[bytes]) -> dict[bytes, str]:
        return {scene: self.world.describe(np.frombuffer(scene, np.uint32)) for scene in scenes}

    def _make_asker(self) -> Asker:
        sources, args = self._sources, self.args
        if self.source != "llm":
            return Asker(None, self.store)
        asker = Asker(
            sources.name,
            self.store,
            sources.model,
            sources.recorded,
            args.llm_budget,
            args.on_missing,
        )
        asker.on_progress = lambda waiting: self.on_progress(waiting)
        return asker

    def _renew(self) -> None:
        rules = self.form.rules if self.form and not self.args.per_scene else None
        if self._evidence is not None:
            rules = self._evidence.rules
        tables = build_tables(self.world, self.args, self._scenes, self._embeddings, rules)
        self.tables = tables.replace(mentor=self.mentor)

    # IN THE BACKGROUND

    def finish(self) -> None:
        """End the asking in the background.

        With --on-exit drain not before all that waits is answered or the budget spent. Raises
        UserError if the model fails.
        """
        if self.background is None:
            return
        if self.args.on_exit == "drain":
            self.background.start(self._asker.left)
            while not self.background.wait(PROGRESS_SECONDS):
                self._take()
                self.on_progress(self.queue_length)
            self._take()
            self._renew()
            if self.failure:
                raise self.failure
        self.background.stop()

    @contextmanager
    def _open_background(self) -> Iterator[AnswerScenes]:
        """Open a store for the thread that enters; yield what answers its batches."""
        with Store(self.store.path) as store:
            asker = Asker(self.language_model, store, self._sources.model)

            def answer(scenes: list[bytes]) -> tuple[dict[bytes, str | None], Costs]:
                asker.costs = Costs()
                return self._ask(asker, scenes), asker.costs

            yield answer

    def _take(self) -> None:
        answers, costs = self.background.take()
        self._asker.costs += costs
        for scene, answer in answers.items():
            # A question without an answer is asked once more when its scene is met again, which
            # puts it last.
            if answer is None and scene not in self._given_up:
                self._given_up.add(scene)
            else:
                self._learn(scene, answer)

    def _enqueue(self, visits: dict[bytes, int]) -> None:
        """Enter what the stores know of the scenes, and queue the others."""
        questions = self._questions([scene for scene in visits if scene not in self.background])
        texts = list(dict.fromkeys(questions.values()))
        found = self._asker.find(self.form.prompt_hash, self.form.parameters, texts)
        for scene, question in questions.items():
            if question in found:
                del visits[scene]
                self._learn(scene, found[question])
        self._asker.costs += Costs(queue_dropped=self.background.add(visits))

    # CHECKPOINTS, AND THE END

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must keep to build the tables again, as JSON values.

        Answers are not in it: they are in the store.
        """
        scenes = self._scenes
        queue = self.background.visits() if self.background else {}
        unanswered = np.flatnonzero(~scenes.answered[: len(scenes.goal_index)])
        return {
            "goals": self.goals,
            "goal_scenes": _to_hex(scenes.goal_index),
            "unanswered": unanswered.tolist(),
            "text_scenes": _to_hex(scenes.text_index),
            "queue": {scene.hex(): visits for scene, visits in queue.items()},
            "evidence": self._evidence.state() if self._evidence else None,
            "usage": dataclasses.asdict(self.usage),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Build the tables of a checkpoint's `state` again.

        Goals keep their numbers, and what waited waits again.
        """
        for goal in state["goals"]:
            self._scenes.goal_id(goal)
        words = self.world.num_scene_words
        goal_scenes = _from_hex(state["goal_scenes"], words)
        text_scenes = _from_hex(state["text_scenes"], words)
        for scene in goal_scenes[state["unanswered"]]:
            self._learn(scene.tobytes(), None)
        answered = np.delete(goal_scenes, state["unanswered"], axis=0)
        if self.background is not None:
            self._enqueue({scene.tobytes(): 1 for scene in answered})
            # What is in the store by now comes by the thread: goals keep their number meanwhile.
            queue = {bytes.fromhex(scene): visits for scene, visits in state["queue"].items()}
            self.background.add(queue)
        elif len(answered):
            self._learn_goals(answered)
        if len(text_scenes):
            self._learn_texts(text_scenes)
        if self._evidence is not None:
            if not state.get("evidence"):
                raise UserError("the run is of an older version of --evidence: train anew")
            self._evidence.restore(state["evidence"])
        self._asker.costs = Costs(**state["usage"])
        self._renew()

    def close(self) -> None:
        """Let go of the model and the stores; what is being asked in the background is lost."""
        if self.background is not None:
            self.background.stop(at_once=True)
        self._sources.close_model()
        if self.background is not None:
            self.background.join()
        self._sources.close()
        self.store.close()


def _check(args: GoalArgs, world: World) -> None:
    """Raise UserError for arguments that do not go together."""
    if args.llm_budget < 0:
        raise UserError(
            f"--llm-budget {args.llm_budget} is negative: "
            "give the most questions to ask, or 0 for no limit"
        )
    if not args.pays_goals and args.extrinsic_coef:
        raise UserError(
            "--extrinsic-coef adds the game's reward to that of goals, and --goal-source "
            f"{args.goal_source} pays none: leave it out"
        )
    if not args.goal_coef and not args.extrinsic_coef:
        raise UserError("--goal-coef 0 pays goals nothing: give --extrinsic-coef 1, what is paid")
    if not args.pays_goals and args.goal_coef != 1.0:
        raise UserError(
            f"--goal-coef weighs the reward of goals, and --goal-source {args.goal_source} pays "
            "none: leave it out"
        )
    if args.task_goals == "parts" and args.goal_source != "task":
        raise UserError("--task-goals parts is of a task: give --task and --goal-source task")
    if args.goal_source == "task" and not hasattr(world, "task_sentence"):
        raise UserError("--goal-source task needs a task of the world: give --task NAME")
    if args.goal_source == "llm" and args.goal_form == "pairs":
        with_pairs(world)
    has_rules = args.goal_source == "llm" and args.goal_form == "rules"
    if args.evidence and not (has_rules or args.goal_source == "grounded"):
        raise UserError(
            "--evidence corrects rules: give --goal-source llm with --goal-form rules, or grounded"
        )
    if args.evidence and not hasattr(world, "changing"):
        raise UserError(
            f"world {world.name} does not tell what actions change: leave --evidence out"
        )


def _to_hex(index: SceneIndex) -> str:
    return index.keys[: len(index)].tobytes().hex()


def _from_hex(text: str, num_words: int) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(text), np.uint32).reshape(-1, num_words)

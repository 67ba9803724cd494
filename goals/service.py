"""The host's side of goals: what is asked, when, and what the tables on the device then hold.

A source with a language model takes an answer from the run's store, else from a recorded store, else from the live model, which
is never asked the same twice. Sources without one fill the tables once. Axis letters as in `goals.tables`.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from goals.asking import Asker, Usage
from goals.background import Answer, Background
from goals.closed import Closed
from goals.language_models import GEMMA, load_language_model
from goals.open_ended import OpenEnded
from goals.rules import RulesForm, pack_facts
from goals.sentence_encoder import load_sentence_encoder
from goals.store import Store
from goals.tables import GoalTables, SceneIndex, drop_needs
from lab.errors import UserError

# The stores of answers that ship with this repository, by --llm and --goal-form; those of scenes are of compact ones.
RECORDED = {
    (name, form): Path(__file__).parent / "recorded" / f"crafter_{form}_{file}.sqlite"
    for name, file in (("qwen2.5-coder-1.5b", "qwen2.5-coder-1.5b-instruct-q4_k_m"), (GEMMA, "gemma-3-270m-q4_k_m"))
    for form in ("rules", "open", "closed")
}
GOAL_CAPACITY = 1024  # goals there is room for at first, where a model words them freely
PROGRESS_SECONDS = 0.5


class GoalService:
    """Own the goal tables of one run and the way to everything that can answer.

    source: "llm", "oracle", "novelty", "uniform", "grounded" or "none". Of "llm" only: form ("rules", "open" or "closed"), llm,
    url and engine (as `load_language_model` reads them), budget (most questions put to a live model, 0: no limit), prompt,
    resolve_mode ("exact", "async" or "replay"), on_missing ("error" or "no-goals"), prompt_scope, and as the forms read them
    max_goal_tokens, temperature, votes, closed_scoring, closed_calibration, seed. embeds_goals and text_observation say which
    embeddings the policy reads. Raises UserError for a model, prompt or store that is not there.
    """

    def __init__(
        self,
        world,
        *,
        source: str,
        form: str = "rules",
        llm: str = "qwen2.5-coder-1.5b",
        url: str | None = None,
        engine: str = "auto",
        budget: int = 0,
        prompt: str | None = None,
        store: str | Path,
        resolve_mode: str = "exact",
        on_missing: str = "error",
        prompt_scope: str = "full",
        max_goal_tokens: int = 64,
        temperature: float = 0.0,
        votes: int = 1,
        closed_scoring: str = "likelihood",
        closed_calibration: str = "scene",
        seed: int = 0,
        encoder: str = "all-MiniLM-L6-v2",
        embeds_goals: bool = False,
        text_observation: str = "none",
        on_progress: Callable[[int], None] = lambda waiting: None,
    ):
        if budget < 0:
            raise UserError(f"--llm-budget {budget} is negative: give the most questions to ask, or 0 for no limit")
        self.world = world
        self.source, self.form, self.text_observation = source, form, text_observation
        self.per_scene = source == "llm" and form != "rules"
        self.prompt_mask = world.prompt_mask(prompt_scope)
        self.on_progress = on_progress
        self.store = Store(store)
        self.language_model: str | None = None
        self._model, self._recorded, self._form = None, None, None
        if source == "llm":
            self._open_language_model(llm, url, engine, live=resolve_mode != "replay")
            if form == "open":
                self._form = OpenEnded(world, prompt, max_goal_tokens, temperature, seed, votes)
            elif form == "closed":
                self._form = Closed(world, prompt, self.language_model, closed_scoring, closed_calibration)
            else:
                self._form = RulesForm(world, prompt, self.language_model)
        self.prompts: dict[str, str] = self._form.prompts if self._form else {}
        self._asker = Asker(self.language_model, self.store, self._model, self._recorded, budget, on_missing)
        self._asker.on_progress = lambda waiting: self.on_progress(waiting)
        is_async = resolve_mode == "async" and self.per_scene and self._model is not None
        self._background = Background(self._open_background) if is_async else None
        self._given_up: set[bytes] = set()
        self._encoder_name, self._encoder = encoder, None
        self._embeddings: dict[str, np.ndarray] = {}
        self._uses_embeddings = embeds_goals or source == "llm"
        self.goals: list[str] = list(world.captions)
        self._goal_ids = {goal: index for index, goal in enumerate(self.goals)}
        self._goal_index = SceneIndex(world.num_scene_words)
        self._text_index = SceneIndex(world.num_scene_words)
        self._suggested = np.zeros((len(self._goal_index.keys) if self.per_scene else 0, self.num_goals // 32), np.uint32)
        self._answered = np.zeros(len(self._suggested), bool)
        self._text_vectors = np.zeros((0, 0), np.float32)
        self._refuted = np.zeros((0, 0), np.uint32)

    def prepare(self) -> None:
        """Ask what is asked once and for all, embed what is embedded once and for all, and build the first tables."""
        if self._form is not None:
            self._form.prepare(self._asker.answers)
        if self.text_observation == "caption":
            self._text_vectors = np.zeros((len(self._text_index.keys), self.embedding_size), np.float32)
        self.tables = self._build_tables()

    # What can answer

    def _open_language_model(self, llm: str, url: str | None, engine: str, live: bool) -> None:
        """Open what can answer besides the run's store; `language_model` becomes the identity of who answers."""
        forms = [form for name, form in RECORDED if name == llm]
        if live and (url or llm == GEMMA or not (forms or llm.endswith(".sqlite"))):
            self._model = load_language_model(llm, url=url, engine=engine)
            self.language_model = self._model.name
            recorded = RECORDED.get((llm, self.form))
            if recorded and recorded.exists() and Store(recorded, read_only=True).models() == [self.language_model]:
                self._recorded = Store(recorded, read_only=True)
            return
        if not forms and not llm.endswith(".sqlite"):
            # A stored identity begins with the name of the model's file.
            stored = [name for name in self.store.models() if name.partition("@")[0] == Path(llm).name.lower()]
            self.language_model = stored[0] if len(stored) == 1 else llm
            return
        if forms and self.form not in forms:
            raise UserError(f"no recorded '{self.form}' answers of {llm}: recorded are {', '.join(forms)}; or give a live --llm")
        path = RECORDED.get((llm, self.form), Path(llm))
        self._recorded = Store(path, read_only=True)
        models = self._recorded.models()
        if len(models) != 1:
            raise UserError(f"{path} holds the answers of {len(models)} models: export one of them, then give --llm that file")
        self.language_model = models[0]

    def describe(self) -> str:
        """Say in one line where goals come from."""
        if self.source != "llm":
            return f"goals from {self.source}, no language model"
        kind = "live" if self._model else "recorded" if self._recorded else "stored"
        how = ", asked in the background" if self._background else "" if self._model else ", nobody is asked"
        return f"goals from {kind} answers of {self.language_model}{how} (form: {self.form})"

    @property
    def usage(self) -> Usage:
        """What goals have cost so far."""
        return self._asker.usage

    @property
    def num_scenes(self) -> int:
        """Return how many scenes the tables know."""
        return max(len(self._goal_index), len(self._text_index))

    @property
    def embedding_size(self) -> int:
        """Return E, 0 if nothing is embedded."""
        reads = self._uses_embeddings or self.text_observation != "none"
        return self._embed(["nothing"]).shape[1] if reads else 0

    # Embeddings

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts as float32 [len(texts), E], from memory, the stores, or the encoder, in this order."""
        missing = [text for text in dict.fromkeys(texts) if text not in self._embeddings]
        if missing:
            self._embeddings |= self._find_embeddings(missing)
        return np.stack([self._embeddings[text] for text in texts])

    def _find_embeddings(self, texts: list[str]) -> dict[str, np.ndarray]:
        if self._encoder is None:
            self._encoder = load_sentence_encoder(self._encoder_name)
        found = self.store.get_embeddings(self._encoder.name, texts)
        if self._recorded and len(found) < len(texts):
            found = self._recorded.get_embeddings(self._encoder.name, texts) | found
        missing = [text for text in texts if text not in found]
        if missing:
            new = dict(zip(missing, self._encoder.encode(missing), strict=True))
            self.store.put_embeddings(self._encoder.name, new)
            found |= new
        return found

    # The tables

    @property
    def num_goals(self) -> int:
        """Return G, the capacity of the goal axis: a multiple of 32 that grows by doubling."""
        capacity = GOAL_CAPACITY if self.per_scene and self.form == "open" else -(-len(self.world.captions) // 32) * 32
        while capacity < len(self.goals):
            capacity *= 2
        return capacity

    def resolve(self, scenes: np.ndarray) -> None:
        """Make every scene of [M, W] uint32 known: ask what nobody has asked before, then renew the tables.

        What is asked in the background is left to `exchange`. Raises UserError if a model fails or, with on_missing "error", if no
        store has the answer.
        """
        if self.per_scene and self._background is None:
            self._resolve_goals(scenes & self.prompt_mask)
        if self.text_observation == "caption":
            self._resolve_texts(scenes)
        self.tables = self._build_tables()

    def _resolve_goals(self, scenes: np.ndarray) -> None:
        new = [scene.tobytes() for scene in np.unique(scenes, axis=0) if scene not in self._goal_index]
        for scene, answer in self._ask(self._asker, new).items():
            self._learn(scene, answer)

    def _ask(self, asker: Asker, scenes: list[bytes]) -> dict[bytes, str | None]:
        questions = self._questions(scenes)
        texts = list(dict.fromkeys(questions.values()))
        answers = asker.answers(self._form.prompt_hash, self._form.parameters, texts, self._form.ask)
        return {scene: answers.get(question) for scene, question in questions.items()}

    def _questions(self, scenes: list[bytes]) -> dict[bytes, str]:
        return {scene: self.world.describe(np.frombuffer(scene, np.uint32)) for scene in scenes}

    def _learn(self, scene: bytes, answer: str | None) -> None:
        """Enter into the tables what was answered about a scene; None: nothing, and nobody is asked again."""
        goals = () if answer is None else self._form.goals(answer)
        self._asker.usage += Usage(unparsed=int(answer is not None and not goals))
        row = self._goal_index.add(np.frombuffer(scene, np.uint32))
        self._answered = _grown(self._answered, len(self._goal_index.keys))
        self._suggested = _grown(self._suggested, len(self._goal_index.keys))
        self._answered[row] = answer is not None
        for goal in goals:
            self._suggest(row, self._goal_id(goal))

    def _goal_id(self, goal: str) -> int:
        if goal not in self._goal_ids:
            self._goal_ids[goal] = len(self.goals)
            self.goals.append(goal)
        return self._goal_ids[goal]

    def _suggest(self, row: int, goal: int) -> None:
        if self._suggested.shape[1] < self.num_goals // 32:
            self._suggested = _grown(self._suggested.T, self.num_goals // 32).T
        self._suggested[row, goal // 32] |= np.uint32(1 << goal % 32)

    def _resolve_texts(self, scenes: np.ndarray) -> None:
        new = [scene for scene in np.unique(scenes, axis=0) if scene not in self._text_index]
        if not new:
            return
        vectors = self._embed([self.world.describe(scene) for scene in new])
        for scene, vector in zip(new, vectors, strict=True):
            row = self._text_index.add(scene)
            self._text_vectors = _grown(self._text_vectors, len(self._text_index.keys))
            self._text_vectors[row] = vector

    def _build_tables(self) -> GoalTables:
        world, num_goals, num_captions = self.world, self.num_goals, len(self.world.captions)
        sensible = np.zeros(num_goals, bool)
        sensible[1:num_captions] = True
        needs = np.zeros((num_goals, world.num_scene_words), np.uint32)
        any_of, alternatives = np.zeros_like(needs), np.zeros((num_goals, 0, world.num_scene_words), np.uint32)
        embeddings = np.zeros((num_goals, 0), np.float32)
        similarity = np.eye(num_goals, num_captions, dtype=np.float32)
        if self.source == "llm" and not self.per_scene:
            rules = self._form.rules
            sensible[:num_captions] = rules.sensible
            needs[:num_captions] = pack_facts(world, rules.needs)
            sets = pack_facts(world, rules.alternatives)
            alternatives = np.pad(sets, ((0, num_goals - num_captions), (0, 0), (0, 0)))
            any_of[:num_captions] = world.in_view_masks()
        elif self.source in ("grounded", "llm"):
            any_of[:num_captions] = world.grounding_masks()
        if self._uses_embeddings:
            vectors = self._embed(self.goals)
            embeddings = np.zeros((num_goals, vectors.shape[1]), np.float32)
            embeddings[: len(vectors)] = vectors
        if self.source == "llm":
            similarity = embeddings @ embeddings[:num_captions].T
        similarity[0] = similarity[:, 0] = 0.0
        tables = GoalTables(
            goal_rows=self._goal_index.to_device(),
            suggested=jnp.array(self._suggested),
            answered=jnp.array(self._answered),
            sensible=jnp.array(sensible),
            needs=jnp.array(needs),
            alternatives=jnp.array(alternatives),
            any_of=jnp.array(any_of),
            embeddings=jnp.array(embeddings),
            similarity=jnp.array(similarity),
            text_rows=self._text_index.to_device(),
            text_embeddings=jnp.array(self._text_vectors),
            fact_embeddings=jnp.array(
                self._embed(list(world.facts)) if self.text_observation == "facts" else np.zeros((0, 0), np.float32)
            ),
        )
        return drop_needs(tables, self._refuted)

    # Asking in the background

    @property
    def failure(self) -> UserError | None:
        """Return what ended the asking in the background, if something has."""
        return self._background.failure if self._background else None

    @property
    def queue_length(self) -> int:
        """Return how many scenes wait for an answer from the background."""
        return len(self._background) if self._background else 0

    def exchange(self, scenes: np.ndarray) -> bool:
        """Take the answers that have come, and let the scenes [M, W] uint32, one entry a visit, wait for theirs.

        Answers in stores are there at once. Returns whether the tables are new. Raises UserError as `resolve`.
        """
        known = len(self._goal_index)
        scenes = scenes & self.prompt_mask
        if self._background is None:
            self._resolve_goals(scenes)
        else:
            self._background.start(self._asker.left)
            self._take()
            keys, counts = np.unique(scenes, axis=0, return_counts=True)
            self._enqueue({key.tobytes(): int(n) for key, n in zip(keys, counts, strict=True) if key not in self._goal_index})
        if len(self._goal_index) > known:
            self.tables = self._build_tables()
        return len(self._goal_index) > known

    def finish(self, drain: bool) -> None:
        """End the asking in the background; with `drain` not before all that waits is answered or the budget spent.

        Raises UserError if the model fails.
        """
        if self._background is None:
            return
        if drain:
            self._background.start(self._asker.left)
            while not self._background.wait(PROGRESS_SECONDS):
                self._take()
                self.on_progress(self.queue_length)
            self._take()
            self.tables = self._build_tables()
            if self.failure:
                raise self.failure
        self._background.stop()

    @contextmanager
    def _open_background(self) -> Iterator[Answer]:
        """Open a store for the thread that enters; yield what answers its batches."""
        with Store(self.store.path) as store:

            def answer(scenes: list[bytes]) -> tuple[dict[bytes, str | None], Usage]:
                asker = Asker(self.language_model, store, self._model)
                return self._ask(asker, scenes), asker.usage

            yield answer

    def _take(self) -> None:
        answers, usage = self._background.take()
        self._asker.usage += usage
        for scene, answer in answers.items():
            # A question without an answer is asked once more when its scene is met again, which puts it last.
            if answer is None and scene not in self._given_up:
                self._given_up.add(scene)
            else:
                self._learn(scene, answer)

    def _enqueue(self, visits: dict[bytes, int]) -> None:
        """Enter what the stores know of the scenes, and queue the others."""
        questions = self._questions([scene for scene in visits if scene not in self._background])
        texts = list(dict.fromkeys(questions.values()))
        found = self._asker.find(self._form.prompt_hash, self._form.parameters, texts)
        for scene, question in questions.items():
            if question in found:
                del visits[scene]
                self._learn(scene, found[question])
        self._asker.usage += Usage(queue_dropped=self._background.add(visits))

    # Evidence, what a checkpoint keeps, and the end

    def refute(self, needs: np.ndarray) -> None:
        """Take the needs [G, W] uint32, which play has shown to be none, out of the tables."""
        self._refuted = needs
        self.tables = self._build_tables()

    def state(self) -> dict:
        """Return what a checkpoint must keep so that the tables can be built again from the store, as JSON values."""
        return {
            "goals": self.goals,
            "goal_scenes": _to_hex(self._goal_index),
            "unanswered": np.flatnonzero(~self._answered[: len(self._goal_index)]).tolist(),
            "text_scenes": _to_hex(self._text_index),
            "queue": {scene.hex(): visits for scene, visits in self._background.visits().items()} if self._background else {},
            "usage": dataclasses.asdict(self.usage),
        }

    def restore(self, state: dict) -> None:
        """Build the tables of a checkpoint's `state` again; goals keep their numbers, and what waited waits again."""
        for goal in state["goals"]:
            self._goal_id(goal)
        words = self.world.num_scene_words
        goal_scenes, text_scenes = _from_hex(state["goal_scenes"], words), _from_hex(state["text_scenes"], words)
        for scene in goal_scenes[state["unanswered"]]:
            self._learn(scene.tobytes(), None)
        answered = np.delete(goal_scenes, state["unanswered"], axis=0)
        if self._background is not None:
            queue = {bytes.fromhex(scene): visits for scene, visits in state["queue"].items()}
            self._enqueue(queue | {scene.tobytes(): 1 for scene in answered})
        elif len(answered):
            self._resolve_goals(answered)
        if len(text_scenes):
            self._resolve_texts(text_scenes)
        self._asker.usage = Usage(**state["usage"])
        self.tables = self._build_tables()

    def close(self) -> None:
        """Let go of the model and the stores; what is being asked in the background is lost."""
        if self._background is not None:
            self._background.stop(at_once=True)
        if self._model is not None:
            self._model.close()
        if self._background is not None:
            self._background.join()
        if self._recorded is not None:
            self._recorded.close()
        self.store.close()


def _grown(array: np.ndarray, length: int) -> np.ndarray:
    """Return the array with zeros appended up to the length, itself if it has that length."""
    if len(array) == length:
        return array
    return np.concatenate([array, np.zeros((length - len(array), *array.shape[1:]), array.dtype)])


def _to_hex(index: SceneIndex) -> str:
    return index.keys[: len(index)].tobytes().hex()


def _from_hex(text: str, num_words: int) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(text), np.uint32).reshape(-1, num_words)

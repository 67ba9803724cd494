"""The host's side of goals: what is asked, when, and what the tables on the device then hold.

A source with a language model takes an answer from the run's store, else from a recorded store, else from the live model, which
is never asked the same twice. Sources without one fill the tables once. Axis letters as in `goals.tables`.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from goals import open_ended, rules
from goals.language_models import load_language_model
from goals.sentence_encoder import load_sentence_encoder
from goals.store import Store
from goals.tables import GoalTables, SceneIndex
from lab.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
RECORDED = {"qwen2.5-coder-1.5b": ROOT / "goals/recorded/crafter_rules_qwen2.5-coder-1.5b-instruct-q4_k_m.sqlite"}
QUESTIONS_PER_CALL = 64
GOAL_CAPACITY = 1024  # goals there is room for at first, where a model words them freely
STOP = ("\n\n",)


@dataclasses.dataclass
class Usage:
    """What goals cost: queries to a live model, answers found in a store, answers that held no goal, scenes without any."""

    queries: int = 0
    store_hits: int = 0
    unparsed: int = 0
    unanswered: int = 0


class GoalService:
    """Own the goal tables of one run and the way to everything that can answer.

    source: "llm", "oracle", "novelty", "uniform", "grounded" or "none". form ("rules" or "open"), llm, prompt, resolve_mode
    ("exact" or "replay"), on_missing ("error" or "no-goals"), prompt_scope, max_goal_tokens, temperature, seed: of "llm" only.
    embeds_goals and text_observation say which embeddings the policy reads. Raises UserError for a model, prompt or store that
    is not there.
    """

    def __init__(
        self,
        world,
        *,
        source: str,
        form: str = "rules",
        llm: str = "qwen2.5-coder-1.5b",
        prompt: str | None = None,
        store: str | Path,
        resolve_mode: str = "exact",
        on_missing: str = "error",
        prompt_scope: str = "full",
        max_goal_tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
        encoder: str = "all-MiniLM-L6-v2",
        embeds_goals: bool = False,
        text_observation: str = "none",
        on_progress: Callable[[int], None] = lambda waiting: None,
    ):
        self.world = world
        self.source, self.form, self.llm_name, self.resolve_mode, self.on_missing = source, form, llm, resolve_mode, on_missing
        self.per_scene = source == "llm" and form == "open"
        self.text_observation = text_observation
        self.prompt_mask = world.prompt_mask(prompt_scope)
        self.usage = Usage()
        self.on_progress = on_progress
        self.store = Store(store)
        self.seed = seed
        self._encoder_name, self._encoder = encoder, None
        self._model, self._recorded, self._recorded_name = None, None, None
        self.prompts: dict[str, str] = {}
        self._embeddings: dict[str, np.ndarray] = {}
        if source == "llm":
            self._open_language_model()
        if self.per_scene:
            self._template, prompt_hash = open_ended.load_prompt(prompt or ROOT / "prompts" / f"{world.name}_open_v1.txt")
            self.prompts["open"] = prompt_hash
            parameters = {"max_tokens": max_goal_tokens, "stop": list(STOP), "temperature": temperature}
            if temperature > 0:
                parameters["seed"] = seed
            self._parameters = parameters
        self.goals: list[str] = list(world.captions)
        self._goal_ids = {goal: index for index, goal in enumerate(self.goals)}
        self._goal_index = SceneIndex(world.num_scene_words)
        self._text_index = SceneIndex(world.num_scene_words)
        self._suggested = np.zeros((len(self._goal_index.keys) if self.per_scene else 0, self.num_goals // 32), np.uint32)
        self._answered = np.zeros(len(self._suggested), bool)
        self._text_vectors = np.zeros((0, 0), np.float32)
        self._uses_embeddings = embeds_goals or source == "llm"
        self._rules_questions = rules.questions(world, prompt) if source == "llm" and form == "rules" else {}
        self.prompts |= {name: asked.prompt_hash for name, asked in self._rules_questions.items()}
        self._rules: rules.Rules | None = None

    def prepare(self) -> None:
        """Ask what is asked once and for all, embed what is embedded once and for all, and build the first tables."""
        if self._rules_questions:
            self._rules = self._learn_rules()
        if self.text_observation == "caption":
            self._text_vectors = np.zeros((len(self._text_index.keys), self.embedding_size), np.float32)
        self.tables = self._build_tables()

    # What can answer

    def _open_language_model(self) -> None:
        if self.llm_name in RECORDED or self.llm_name.endswith(".sqlite"):
            path = RECORDED.get(self.llm_name, Path(self.llm_name))
            self._recorded = Store(path, read_only=True)
            models = self._recorded.models()
            if len(models) != 1:
                raise UserError(f"{path} holds the answers of {len(models)} models: export one of them, then give --llm that file")
            self._recorded_name = models[0]
        elif self.resolve_mode == "exact":
            self._model = load_language_model(self.llm_name)

    @property
    def language_model(self) -> str | None:
        """Name who answers: the model's identity, None for a source without a language model."""
        if self.source != "llm":
            return None
        return self._recorded_name or (self._model.name if self._model else self.llm_name)

    def describe(self) -> str:
        """Say in one line where goals come from."""
        if self.source != "llm":
            return f"goals from {self.source}, no language model"
        kind = "recorded answers of" if self._recorded else "live answers of"
        how = f"{kind} {self.language_model}" + (", nobody is asked" if self._recorded else "")
        return f"goals from {how} (form: {self.form})"

    @property
    def num_scenes(self) -> int:
        """Return how many scenes the tables know."""
        return max(len(self._goal_index), len(self._text_index))

    @property
    def embedding_size(self) -> int:
        """Return E, 0 if nothing is embedded."""
        reads = self._uses_embeddings or self.text_observation != "none"
        return self._embed(["nothing"]).shape[1] if reads else 0

    def _answers(
        self, prompt_hash: str, parameters: dict, questions: Sequence[str], ask: Callable[[list[str]], list[str]]
    ) -> dict[str, str]:
        """Find or get the raw answers of distinct questions; what nobody has answered is missing in the result."""
        key = (self.language_model, prompt_hash, json.dumps(parameters, sort_keys=True))
        answers = self.store.get_answers(*key, questions)
        if self._recorded and len(answers) < len(questions):
            answers |= self._recorded.get_answers(*key, [q for q in questions if q not in answers])
        self.usage.store_hits += len(answers)
        missing = [question for question in questions if question not in answers]
        if missing and self._model is None:
            if self.on_missing == "error":
                raise UserError(
                    f"no stored answer of {self.language_model} for {len(missing)} question(s) of the form '{self.form}': "
                    "choose another --goal-form, a live --llm (such as gemma3-270m), or --on-missing no-goals"
                )
            self.usage.unanswered += len(missing)
            return answers
        for start in range(0, len(missing), QUESTIONS_PER_CALL):
            self.on_progress(len(missing) - start)
            batch = missing[start : start + QUESTIONS_PER_CALL]
            new = dict(zip(batch, ask(batch), strict=True))
            self.usage.queries += len(batch)
            self.store.put_answers(*key, new)
            # Another run may have answered first: the stored answer is the one that counts.
            answers |= self.store.get_answers(*key, batch)
        if missing:
            self.on_progress(0)
        return answers

    def _learn_rules(self) -> rules.Rules:
        answers = {
            name: self._answers(asked.prompt_hash, asked.parameters, asked.texts, partial(self._ask_yes_no, asked))
            for name, asked in self._rules_questions.items()
        }
        return rules.compile_rules(self.world, self._rules_questions, answers)

    def _ask_yes_no(self, asked: rules.Questions, batch: list[str]) -> list[str]:
        pairs = self._model.yes_no([asked.prompt(question) for question in batch])
        return [json.dumps({"yes": yes, "no": no}) for yes, no in pairs]

    def _generate(self, scenes: list[str]) -> list[str]:
        prompts = [open_ended.render(self._template, scene) for scene in scenes]
        return self._model.generate(
            prompts,
            max_tokens=self._parameters["max_tokens"],
            stop=STOP,
            temperature=self._parameters["temperature"],
            seed=self.seed,
        )

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
        capacity = GOAL_CAPACITY if self.per_scene else -(-len(self.world.captions) // 32) * 32
        while capacity < len(self.goals):
            capacity *= 2
        return capacity

    def resolve(self, scenes: np.ndarray) -> None:
        """Make every scene of [M, W] uint32 known: ask what nobody has asked before, then renew the tables.

        Raises UserError if a model fails or, with on_missing "error", if no store has the answer.
        """
        if self.per_scene:
            self._resolve_goals(scenes & self.prompt_mask)
        if self.text_observation == "caption":
            self._resolve_texts(scenes)
        self.tables = self._build_tables()

    def _resolve_goals(self, scenes: np.ndarray) -> None:
        new = [scene for scene in np.unique(scenes, axis=0) if scene not in self._goal_index]
        questions = [self.world.describe(scene) for scene in new]
        answers = self._answers(self.prompts["open"], self._parameters, list(dict.fromkeys(questions)), self._generate)
        for scene, question in zip(new, questions, strict=True):
            goals = open_ended.parse_goals(answers.get(question, ""))
            self.usage.unparsed += question in answers and not goals
            row = self._goal_index.add(scene)
            self._answered = _grown(self._answered, len(self._goal_index.keys))
            self._suggested = _grown(self._suggested, len(self._goal_index.keys))
            self._answered[row] = question in answers
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
        any_of = np.zeros_like(needs)
        embeddings = np.zeros((num_goals, 0), np.float32)
        similarity = np.eye(num_goals, num_captions, dtype=np.float32)
        if self._rules is not None:
            sensible[:num_captions] = self._rules.sensible
            needs[:num_captions] = self._rules.need_masks(world)
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
        return GoalTables(
            goal_rows=self._goal_index.to_device(),
            suggested=jnp.array(self._suggested),
            answered=jnp.array(self._answered),
            sensible=jnp.array(sensible),
            needs=jnp.array(needs),
            any_of=jnp.array(any_of),
            embeddings=jnp.array(embeddings),
            similarity=jnp.array(similarity),
            text_rows=self._text_index.to_device(),
            text_embeddings=jnp.array(self._text_vectors),
            fact_embeddings=jnp.array(
                self._embed(list(world.facts)) if self.text_observation == "facts" else np.zeros((0, 0), np.float32)
            ),
        )

    # What a checkpoint keeps, and the end

    def state(self) -> dict:
        """Return what a checkpoint must keep so that the tables can be built again from the store, as JSON values."""
        return {
            "goals": self.goals,
            "goal_scenes": _to_hex(self._goal_index),
            "text_scenes": _to_hex(self._text_index),
            "usage": dataclasses.asdict(self.usage),
        }

    def restore(self, state: dict) -> None:
        """Build the tables of a checkpoint's `state` again; goals keep their numbers."""
        for goal in state["goals"]:
            self._goal_id(goal)
        words = self.world.num_scene_words
        goal_scenes, text_scenes = _from_hex(state["goal_scenes"], words), _from_hex(state["text_scenes"], words)
        if len(goal_scenes):
            self._resolve_goals(goal_scenes)
        if len(text_scenes):
            self._resolve_texts(text_scenes)
        self.usage = Usage(**state["usage"])
        self.tables = self._build_tables()

    def close(self) -> None:
        """Let go of the model and the stores."""
        if self._model is not None:
            self._model.close()
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

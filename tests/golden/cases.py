"""The runs whose figures tests/golden/figures.json keeps, and how a run becomes figures.

Every script trains on the toy world with every source of goals and every input; a few train in
Crafter, by recorded answers.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import itertools
import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lab.checkpoint import Checkpoints
from tests.helpers.table_model import TableModel
from tests.toy.world import ToyWorld
from tests.training import train
from worlds.world import PROMPTS

FIGURES = Path(__file__).parent / "figures.json"
UPDATES = 6
DIGITS = 9  # significant digits that are kept: they tell any two float32 numbers apart
ABSENT = "absent"
SCORES = ("_per_episode", "_standard_error")

# Worlds


@dataclasses.dataclass(frozen=True)
class EasyWorld(ToyWorld):
    """The toy with a door that opens without a key: soon some episodes end and some are cut."""

    def step(self, key, state, action):
        return super().step(key, state.replace(has_key=state.has_key | (action == 3)), action)


@dataclasses.dataclass(frozen=True)
class NamedWorld(EasyWorld):
    """Has Crafter's prompts, for the rules and the closed form, and thresholds of its own."""

    name = "crafter"
    prompts = PROMPTS
    recipes = {"": {"sensible_threshold": 0.67, "need_threshold": 1.38, "closed_threshold": 1.2}}


@dataclasses.dataclass(frozen=True)
class SeenWorld(NamedWorld):
    """Says itself what must be in view for a goal: the key must not have been taken yet."""

    def in_view_masks(self) -> np.ndarray:
        return np.asarray([[0], [0b001], [0], [0]], np.uint32)


@dataclasses.dataclass(frozen=True)
class PictureWorld(EasyWorld):
    """Pixels to see, just wide enough for the convolutions."""

    observation_shape = (36, 36, 3)

    def observe(self, state) -> jax.Array:
        return jnp.zeros((36, 36, 3), jnp.uint8).at[:, state.position * 9].set(255)

    def unpack_observation(self, packed: jax.Array) -> jax.Array:
        return packed[..., 0, :, :, :]


# Models


class GoldenModel(TableModel):
    """Also draws votes, answers yes or no, and scores: two goals make sense, one of them now."""

    can_score = True
    trouble = ""
    plausible = {"take key": 2.05, "open door": 1.95, "kick wall": -4.0}
    needs = {("open door", "have key"): 6.0, ("kick wall", "see door"): 1.0}

    def generate(self, prompts, max_tokens, stop, temperature, seed):
        answers = super().generate(prompts, max_tokens, stop, temperature, seed)
        return (
            answers if temperature == 0 else [f"{answer}\n- try {seed % 2}" for answer in answers]
        )

    def yes_no(self, prompts):
        self._count(prompts)
        return [(self._odds(prompt.rsplit("\n", 1)[-1]) - 3.0, -3.0) for prompt in prompts]

    def score(self, prompts, candidates):
        self._count(prompts)
        goals = [candidate.strip(" .,\n") for candidate in candidates]
        return [[self._likelihood(prompt, goal) for goal in goals] for prompt in prompts]

    def _count(self, prompts):
        self.prompts.extend(prompts)
        self.usage.prompt_tokens += 7 * len(prompts)

    def _odds(self, question):
        goal = next(goal for goal in self.plausible if goal in question)
        if "Needed:" in question:
            return next(
                (
                    odds
                    for (of, fact), odds in self.needs.items()
                    if of == goal and fact in question
                ),
                0.0,
            )
        scene, _, asked = question.partition(" Should the player ")
        return 3.0 * (goal == self._now(scene)) - 1.0 if asked else self.plausible[goal]

    def _likelihood(self, prompt, goal):
        if not prompt.endswith("Next:"):
            return self.plausible[goal] - 10.0
        scene = prompt.split("\n")[-2]
        return (
            5.0 * (goal == self._now(scene))
            - 12.0
            + zlib.crc32((scene + goal).encode()) % 100 / 100
        )

    def _now(self, scene):
        if "see key" in scene:
            return "take key"
        return "open door" if "have key" in scene and "see door" in scene else None


class NeedyModel(GoldenModel):
    """Believes that a key is needed to take the key, which play refutes."""

    needs = {("take key", "have key"): 6.0}


# Cases


@dataclasses.dataclass(frozen=True)
class Case:
    """One run: a script's module, its fields, and for the toy the world and the model."""

    script: str
    name: str
    fields: dict[str, Any]
    world: Any = None  # None: Crafter
    model: type | None = None

    @property
    def full_name(self) -> str:
        """Name the case in the figures."""
        return f"{self.script}/{self.name}"


READING = {
    "blind": {},
    "caption": {"text_observation": "caption"},
    "facts": {"text_observation": "facts"},
    "goals": {"goal_conditioned": True},
    "goals-caption": {"goal_conditioned": True, "text_observation": "caption"},
    "goals-facts": {"goal_conditioned": True, "text_observation": "facts"},
}
ORACLE = {"goal_source": "oracle"}
NONE = {"goal_source": "none"}
OPEN = {"goal_form": "open"}
RULES = {"goal_form": "rules", "prompt": str(PROMPTS / "crafter_rules")}
CLOSED = {"goal_form": "closed", "prompt": None}
YES_NO = {**CLOSED, "closed_scoring": "yes-no", "closed_calibration": "goal"}
EFFECT = {"captions": "effect"}
REPLAY = {"resolve": "replay", "on_missing": "no-goals", "prompt_scope": "compact"}
BASE = {
    "observation": "pixels",
    "actions": "base",
    "game_rules": "craftax",
    "evaluate_episodes": 0,
    **EFFECT,
}
GREEDY = {"munchausen": 0.0, "policy_temperature": 0.0}
LEARNERS = ("ppo", "dqn")


def ellm_cases(learner: str) -> Iterator[Case]:
    """Yield the cases of an ELLM script on the toy."""
    toy, named, seen = EasyWorld(), NamedWorld(), SeenWorld()
    ways = {
        "oracle": (ORACLE, toy, None),
        "open": (OPEN, toy, GoldenModel),
        "rules": (RULES, seen, GoldenModel),
    }
    for (way, (fields, world, model)), (reading, words) in itertools.product(
        ways.items(), READING.items()
    ):
        yield Case(f"ellm_{learner}", f"{way}-{reading}", {**fields, **words}, world, model)
    reads = READING["goals-facts"]
    more = {
        "novelty": ({"goal_source": "novelty"}, toy, None),
        "uniform-goals": (
            {"goal_source": "uniform", "uniform_goals": 2, "goal_conditioned": True},
            toy,
            None,
        ),
        "grounded": ({"goal_source": "grounded"}, toy, None),
        "none": (NONE, toy, None),
        "none-caption": (
            {**NONE, "text_observation": "caption", "goal_conditioned": True},
            toy,
            None,
        ),
        "closed-likelihood": (CLOSED, named, GoldenModel),
        "closed-likelihood-by-goal": ({**CLOSED, "closed_calibration": "goal"}, named, GoldenModel),
        "closed-yes-no": (YES_NO, named, GoldenModel),
        "closed-yes-no-goals-caption": ({**YES_NO, **READING["goals-caption"]}, named, GoldenModel),
        "evidence": ({**RULES, "evidence": True}, named, NeedyModel),
        "evidence-goals-facts": ({**RULES, "evidence": True, **reads}, named, NeedyModel),
        "rules-by-wordings": ({**RULES, "similarity_threshold": 0.5}, named, GoldenModel),
        "open-grounding": ({**OPEN, "grounding": True, "goal_conditioned": True}, toy, GoldenModel),
        "open-votes": ({**OPEN, "votes": 3, "temperature": 0.7}, toy, GoldenModel),
        "open-compact": ({**OPEN, "prompt_scope": "compact"}, toy, GoldenModel),
        "open-budget": ({**OPEN, "llm_budget": 3}, toy, GoldenModel),
        "open-replay-nothing": ({**OPEN, **REPLAY}, toy, None),
        "no-caption-memory": ({**ORACLE, "caption_memory": False}, toy, None),
        "picture": ({**ORACLE, "goal_conditioned": True}, PictureWorld(), None),
    }
    if learner == "dqn":
        more["greedy"] = ({**ORACLE, **GREEDY}, toy, None)
        more["wrapped-replay"] = ({**OPEN, **reads, "buffer_size": 4 * 20}, toy, GoldenModel)
    for name, (fields, world, model) in more.items():
        yield Case(f"ellm_{learner}", name, fields, world, model)


def baseline_cases(learner: str) -> Iterator[Case]:
    """Yield the cases of a learner's baselines on the toy."""
    texts = {text: {"text_observation": text} for text in ("none", "caption", "facts")}
    coefficients = {"extrinsic_coef": 0.5, "intrinsic_coef": 2.0}
    own = {
        "": {"no-caption-memory": {"caption_memory": False}},
        "_rnd": {
            "noveld": {"noveld": True},
            "noveld-facts": {"noveld": True, "noveld_alpha": 0.2, "text_observation": "facts"},
            "coefficients": {**coefficients, "rnd_proportion": 0.5, "rnd_minibatch_size": 8},
        },
        "_apt": {"coefficients": {**coefficients, "apt_k": 5, "apt_particles": 20}},
    }
    for bonus, special in own.items():
        for name, fields in {**texts, **special}.items():
            yield Case(f"baselines.{learner}{bonus}", name, fields, EasyWorld())
        yield Case(f"baselines.{learner}{bonus}", "picture", {}, PictureWorld())


def crafter_cases() -> Iterator[Case]:
    """Yield the cases in Crafter, on recorded answers."""
    reads = READING["goals-facts"]
    for learner in LEARNERS:
        yield Case(f"ellm_{learner}", "crafter-default", {})
        yield Case(f"ellm_{learner}", "crafter-open", {"goal_form": "open", **REPLAY, **reads})
        yield Case(f"ellm_{learner}", "crafter-closed", {"goal_form": "closed", **REPLAY, **reads})
    yield Case("baselines.ppo_rnd", "crafter", {})
    yield Case("baselines.dqn_apt", "crafter", {})
    yield Case(
        "ellm_ppo", "crafter-grounded", {"goal_source": "grounded", "goal_conditioned": True}
    )
    yield Case(
        "ellm_ppo", "crafter-evidence", {"evidence": True, "goal_conditioned": True, **EFFECT}
    )
    yield Case(
        "ellm_ppo", "crafter-open-grounding", {"goal_form": "open", "grounding": True, **REPLAY}
    )
    yield Case("ellm_ppo", "crafter-gemma-rules", {"llm": "gemma3-270m", "resolve": "replay"})
    yield Case(
        "ellm_ppo", "crafter-gemma-closed", {"llm": "gemma3-270m", "goal_form": "closed", **REPLAY}
    )
    yield Case("ellm_ppo", "crafter-pixels-base", {**ORACLE, **reads, **BASE})
    yield Case(
        "ellm_dqn", "crafter-frames", {**ORACLE, "observation": "frames", "evaluate_episodes": 0}
    )


def all_cases() -> list[Case]:
    """Return every case."""
    toys = [
        case
        for learner in LEARNERS
        for cases in (ellm_cases, baseline_cases)
        for case in cases(learner)
    ]
    return [*toys, *crafter_cases()]


# Figures


def run_case(monkeypatch, case: Case, folder: Path) -> dict[str, Any]:
    """Run a case below the folder; return its figures."""
    script = importlib.import_module(case.script)
    if case.world is None:
        return run_in_crafter(monkeypatch, script, case, folder)
    model = case.model() if case.model else None
    settings = {
        "total_timesteps": 4 * 8 * UPDATES,
        "evaluate_episodes": 3,
        "film": False,
        "learning_rate": 3e-3,
    }
    summary, state, _ = train(
        monkeypatch, case.world, folder, "run", model, script, **settings, **case.fields
    )
    figures = make_figures(folder / "run", state)
    if model:
        figures["prompts"] = digest("\0".join(model.prompts).encode())
    # A toy's score has its own name.
    for part in ("metrics", "summary"):
        figures[part] = {
            name: value for name, value in figures[part].items() if not name.endswith(SCORES)
        }
    return figures


def run_in_crafter(monkeypatch, script, case: Case, folder: Path) -> dict[str, Any]:
    """Run a script's main in Crafter; the state is what its last checkpoint was made of."""
    settings = {
        "num_envs": 4, "num_steps": 16, "total_timesteps": 4 * 16 * 3, "hidden_size": 32,
        "learning_starts": 64, "sample_size": 8, "target_network_frequency": 64,
        "evaluate_episodes": 2, "film": False, "compilation_cache": False,
        "run_dir": str(folder / "run"), "store": str(folder / "store.sqlite"), **case.fields,
    }  # fmt: skip
    known = {field.name for field in dataclasses.fields(script.Args)}
    saved, save = [], Checkpoints.save

    def keep(self, step, state, *rest, **named):
        saved.append(jax.tree.map(jnp.copy, state))
        return save(self, step, state, *rest, **named)

    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(monkeypatch.context())
        patch.setattr(Checkpoints, "save", keep)
        script.main(
            script.Args(**{name: value for name, value in settings.items() if name in known})
        )
    return make_figures(folder / "run", saved[-1])


def make_figures(run_dir: Path, state) -> dict[str, Any]:
    """Return what a run comes to: parameters, a bonus's state, metrics by update, the summary.

    What depends on the clock is left out.
    """
    lines = [
        json.loads(line)
        for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    lines = [flatten(line) for line in lines]
    names = sorted({name for line in lines for name in line} - {"update", "env_steps"})
    columns = {
        name: [line.get(name, ABSENT) for line in lines]
        for name in names
        if not name.startswith("time/")
    }
    summary = flatten(json.loads((run_dir / "summary.json").read_text(encoding="utf-8")))
    clocks = ("seconds", "sps", "host_share", "git_commit", "per_million_steps", "max_rss")
    figures = {
        "params": [describe_leaf(*leaf) for leaf in named_leaves(state.params)],
        "metrics": columns,
        "summary": {
            name: value
            for name, value in summary.items()
            if not any(clock in name for clock in clocks)
        },
    }
    if hasattr(state, "bonus"):
        figures["bonus"] = digest(
            "".join(sorted(hash_leaf(leaf) for _, leaf in named_leaves(state.bonus))).encode()
        )
    return figures


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested values into one level of names as "success_rates/take key"; round numbers."""
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}/")
        else:
            flat[prefix + name] = rounded(value)
    return flat


def rounded(value: Any) -> Any:
    """Return a number with as many digits as are kept, anything else as it is."""
    if not isinstance(value, float) or not math.isfinite(value):
        return value
    value = float(f"{value:.{DIGITS}g}")
    return int(value) if value == int(value) and abs(value) < 1e15 else value


def named_leaves(tree) -> list[tuple[str, np.ndarray]]:
    """Return the leaves of a tree with their paths; of keys their numbers."""
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), numbers(leaf))
        for path, leaf in pairs
    ]


def numbers(leaf) -> np.ndarray:
    """Return a leaf as numpy has it."""
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def digest(content: bytes) -> str:
    """Return the first 16 hex digits of the SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]


def hash_leaf(leaf: np.ndarray) -> str:
    """Hash an array's bytes."""
    return digest(np.ascontiguousarray(leaf).tobytes())


def describe_leaf(name: str, leaf: np.ndarray) -> list[Any]:
    """Return name, shape, hash, sum and sum of squares of a parameter."""
    exact = leaf.astype(np.float64)
    return [
        name,
        list(leaf.shape),
        hash_leaf(leaf),
        rounded(float(exact.sum())),
        rounded(float((exact**2).sum())),
    ]


# Comparison


def read_figures() -> dict[str, Any]:
    """Return the recorded figures by case."""
    return json.loads(FIGURES.read_text(encoding="utf-8"))["cases"]


def compare(old: dict[str, Any], new: dict[str, Any], exact: bool, rtol: float = 1e-4) -> list[str]:
    """Return what differs; what only the new figures have is no difference."""
    found = [*compare_params(old["params"], new["params"], exact, rtol)]
    for part in ("metrics", "summary"):
        for name, value in old[part].items():
            now = new[part].get(name, ABSENT)
            if not is_close(value, now, exact, rtol):
                found.append(f"{part} {name}: {value} -> {now}")
    for name in ("prompts", "bonus") if exact else ("prompts",):
        if old.get(name) != new.get(name):
            found.append(f"{name}: {old.get(name)} -> {new.get(name)}")
    return found


def compare_params(old: list, new: list, exact: bool, rtol: float) -> Iterator[str]:
    """Yield the parameters that differ: by name, or if names are others, by order."""
    if {leaf[0] for leaf in old} == {leaf[0] for leaf in new}:
        old, new = sorted(old), sorted(new)
    if [leaf[1] for leaf in old] != [leaf[1] for leaf in new]:
        yield f"params: shapes {[leaf[:2] for leaf in old]} -> {[leaf[:2] for leaf in new]}"
        return
    for (name, shape, before, *sums), (_, _, after, *new_sums) in zip(old, new, strict=True):
        size = math.sqrt(sums[1]) + 1e-6
        near = abs(sums[0] - new_sums[0]) <= rtol * size * math.sqrt(math.prod(shape))
        near = near and is_close(sums[1], new_sums[1], False, rtol)
        if (before != after) if exact else not near:
            yield f"params {name} {before} -> {after}: sum, sum of squares {sums} -> {new_sums}"


def is_close(old: Any, new: Any, exact: bool, rtol: float) -> bool:
    """Compare numbers, texts and lists of them."""
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(
            is_close(a, b, exact, rtol) for a, b in zip(old, new, strict=True)
        )
    is_number = all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in (old, new)
    )
    if exact or not is_number or not (math.isfinite(old) and math.isfinite(new)):
        return old == new or (old != old and new != new)
    return abs(old - new) <= rtol * abs(old) + 1e-6

"""The options of what the policy reads in words, and of goals and who suggests them."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax

from goals.sentence_encoder import CARRIED_NAME
from lab.ranges import Cosine, Count, CountOrNone, Penalty, Share, Weight


@dataclass(frozen=True)
class TextArgs:
    """What the policy reads in words; all that a script without goals needs of this room."""

    FREE: ClassVar[tuple[str, ...]] = ("store",)  # in which a resumed command may differ

    text_observation: Literal["none", "caption", "facts"] = "facts"
    """also read the scene in words: the embedded caption (the paper's), or the mean of its facts'
    embeddings"""
    sentence_encoder: str = CARRIED_NAME
    """the paper's own, which needs no PyTorch, or all-MiniLM-L6-v2, a hub id or a folder"""
    store: str = "runs/store.sqlite"
    """answers and embeddings, shared by all runs that name the same file"""

    @property
    def per_scene(self) -> bool:
        """Whether goals are suggested scene by scene by a language model."""
        return False

    @property
    def in_background(self) -> bool:
        """Whether the run goes on while the language model is asked."""
        return False

    @property
    def waits_for_goals(self) -> bool:
        """Whether every scene of a rollout must have its goals before the reward."""
        return self.per_scene and not self.in_background

    @property
    def stores_suggestions(self) -> bool:
        """Whether suggestions depend on more than the scene and are kept as the step is taken."""
        return False

    @property
    def reads_goals(self) -> bool:
        """Whether the policy reads the goals."""
        return False

    @property
    def pays_actions(self) -> bool:
        """Whether goals are names of actions, which any attempt reaches, instead of captions."""
        return False

    @property
    def reads_scenes(self) -> bool:
        """Whether anything depends on the scenes of a rollout."""
        return self.text_observation != "none"

    @property
    def asks(self) -> bool:
        """Whether scenes may turn up that the host must make known first."""
        return self.waits_for_goals or self.text_observation == "caption"

    @property
    def tracks_goals(self) -> bool:
        """Whether it must be known within a rollout which goals are suggested and reached."""
        return self.reads_goals

    @property
    def must_know_scene(self) -> bool:
        """Whether the policy cannot act in a scene that the host has not made known."""
        return self.text_observation == "caption" or (self.tracks_goals and self.waits_for_goals)


@dataclass(frozen=True)
class GoalArgs(TextArgs):
    """Where goals come from, how a language model is asked for them, and which one."""

    FREE: ClassVar[tuple[str, ...]] = (
        *TextArgs.FREE,
        *("llm_url", "llm_engine", "llm_budget", "on_exit"),
    )

    # Goals
    goal_source: Literal[
        "llm", "oracle", "novelty", "novelty-paper", "uniform", "grounded", "task", "none"
    ] = "llm"
    """who suggests goals; novelty: any caption, novelty-paper: any action, successful or not, is
    paid once an episode; task: the policy reads the --task as its goal, and the task's success is
    what is paid; none: the game's own reward"""
    goal_form: Literal["rules", "open", "closed", "pairs"] = "rules"
    """rules: ask once what each goal needs; open: ask for a list of goals in each scene; closed:
    ask of each goal in each scene; pairs: ask once where each thing belongs"""
    goal_conditioned: bool = True
    """also read the goals that are suggested and not yet reached"""
    task_goals: Literal["sentence", "parts"] = "sentence"
    """what the policy reads of its task: its sentence, or the sub-goal that is next"""
    similarity_threshold: Cosine = 0.99
    """cosine above which a caption fulfils a goal (the paper's T)"""
    goal_coef: Weight = 1.0
    """weight of all that is paid for goals; 0: they are read, but --extrinsic-coef alone pays"""
    extrinsic_coef: Weight = 0.0
    """weight of the game's own reward, or the task's, beside the goals'"""
    wrong_reward: Penalty = 0.0
    """reward of a step that has a caption, but reaches no suggested goal; housekeep: -0.1"""
    goal_view: bool = False
    """also read where what the goals name was seen: from where the agent is (housekeep), or in
    which cells of the view (crafter)"""
    goal_head: Literal["none", "named", "faced", "verbs"] = "none"
    """add to the policy's word for actions that do what a goal names: as much for each (named),
    more where its thing is faced (faced), and so much for each verb (verbs)"""
    approach_coef: Weight = 0.0
    """weight of coming nearer to what the goals name, as potential-based shaping; housekeep: 1"""
    discovery_coef: Weight = 0.0
    """reward of whatever the episode sees for the first time; housekeep: 0.2"""
    uniform_goals: Count = 5
    """goals drawn at each step by --goal-source uniform"""
    grounding: bool = False
    """drop suggested goals whose thing is neither seen, held nor makeable (open and closed form)"""
    evidence: bool = False
    """correct the model's rules by what captions are seen to change, and what was there (rules
    form)"""
    doubt: Share = 0.05
    """with --evidence: chance that a need of which nothing is known is suspended for a rollout"""

    # Asking
    prompt: str | None = None
    """prompt file, or folder/prefix of the files of the rules or pairs form; default: the world's
    newest"""
    prompt_scope: Literal["full", "compact"] = "full"
    """how much of the scene the prompt tells; compact: without what the world counts as background:
    several times fewer distinct prompts"""
    resolve: Literal["exact", "async", "replay"] = "exact"
    """exact: wait for the model's answer to whatever no store has; async: ask in the background,
    what is visited most first, while scenes without an answer have no goals yet (such a run cannot
    be repeated bit for bit); replay: stores only"""
    on_missing: Literal["error", "no-goals"] = "error"
    """what a scene without an answer means where only stores are read"""
    on_exit: Literal["drain", "discard"] = "discard"
    """what becomes of the scenes that still wait for an answer after the training (async)"""

    # The language model
    llm: str = "qwen2.5-coder-1.5b"
    """qwen2.5-coder-1.5b (recorded answers), gemma3-270m (asked live), a .gguf or recorded .sqlite
    file, a hub id or folder"""
    llm_url: str | None = None
    """OpenAI-compatible server to ask for the model that --llm names, as in http://host:8000/v1"""
    llm_engine: Literal["auto", "llama.cpp", "transformers"] = "auto"
    """what computes a .gguf file; auto: the faster one here"""
    llm_budget: CountOrNone = 0
    """most questions put to a live model in the whole run; 0: no limit"""
    max_goal_tokens: Count = 64
    """longest answer of the open form [tokens]"""
    temperature: Weight = 0.0
    """sampling temperature of the open form (the paper's: 0.1); 0: greedy"""
    votes: Count = 1
    """lists drawn for each scene of the open form; a goal counts if more than half name it"""
    closed_scoring: Literal["likelihood", "yes-no"] = "likelihood"
    """how the closed form asks of each goal in a scene"""
    closed_calibration: Literal["scene", "goal"] = "scene"
    """a goal is compared with the others, or over scenes"""
    pair_scoring: Literal["recipe", "yes-no"] = "recipe"
    """how the pairs form asks where things belong: by likelihoods, or one question for each pair
    (the paper's)"""
    pair_choice: Literal["best", "threshold"] = "best"
    """where a thing is put by those likelihoods: in the best place there is, or in all above a
    threshold (the paper's)"""

    @property
    def per_scene(self) -> bool:
        """Whether goals are suggested scene by scene by a language model."""
        return self.goal_source == "llm" and self.goal_form in ("open", "closed")

    @property
    def in_background(self) -> bool:
        """Whether the run goes on while the language model is asked."""
        return self.per_scene and self.resolve == "async"

    @property
    def stores_suggestions(self) -> bool:
        """Whether suggestions depend on more than the scene and are kept as the step is taken."""
        return self.goal_source in ("oracle", "uniform")

    @property
    def pays_goals(self) -> bool:
        """Whether reaching goals is what is paid, rather than what the world pays by itself."""
        return self.goal_source not in ("none", "task")

    @property
    def reads_goals(self) -> bool:
        """Whether the policy reads the goals."""
        return self.goal_conditioned and self.goal_source != "none"

    @property
    def guides(self) -> bool:
        """Whether the world is asked where the goals' things are."""
        wanted = self.goal_view or self.approach_coef or self.discovery_coef
        wanted = wanted or self.goal_head != "none"
        return bool(wanted) and self.goal_source != "none" and not self.pays_actions

    @property
    def tracks_goals(self) -> bool:
        """Whether it must be known within a rollout which goals are suggested and reached."""
        return self.pays_goals and (self.reads_goals or self.guides)

    @property
    def reads_scenes(self) -> bool:
        """Whether anything depends on the scenes of a rollout."""
        return self.pays_goals or super().reads_scenes

    @property
    def pays_actions(self) -> bool:
        """Whether goals are names of actions, which any attempt reaches, instead of captions."""
        return self.goal_source == "novelty-paper"

    def names_of(self, actions: jax.Array, captions: jax.Array) -> jax.Array:
        """Return what steps are called when they are compared with goals."""
        return actions if self.pays_actions else captions

"""What can answer a run's questions besides its own store: a recorded store, a live model."""

from dataclasses import dataclass
from pathlib import Path

from goals.arguments import GoalArgs
from goals.language_models import load_language_model
from goals.model import GEMMA, LanguageModel
from goals.store import Store
from lab.errors import UserError
from worlds.world import World

# Short names of models, and the files that their answers were recorded of.
MODEL_FILES = {
    "qwen2.5-coder-1.5b": "qwen2.5-coder-1.5b-instruct-q4_k_m",
    GEMMA: "gemma-3-270m-q4_k_m",
}
FORMS = ("rules", "open", "closed", "pairs")


@dataclass(frozen=True)
class Sources:
    """Who answers. name: the identity of the model, part of the stores' key."""

    name: str | None = None
    model: LanguageModel | None = None
    recorded: Store | None = None

    @property
    def kind(self) -> str:
        """Where answers come from, in one word."""
        return "live" if self.model else "recorded" if self.recorded else "stored"

    @property
    def answered(self) -> set[str]:
        """The hashes of the prompts that a recording answers."""
        return {prompt for _, prompt, _ in self.recorded.sources()} if self.recorded else set()

    def close_model(self) -> None:
        """Let go of the live model, which ends whatever it is being asked."""
        if self.model is not None:
            self.model.close()

    def close(self) -> None:
        """Let go of the recorded store."""
        if self.recorded is not None:
            self.recorded.close()


def open_sources(world: World, args: GoalArgs, store: Store) -> Sources:
    """Open what --llm, --llm-url and --resolve name; store: the run's own.

    Raises UserError for a model that is not there, and for one without recorded answers of this
    world that cannot be asked live.
    """
    recorded = find_recorded(world, args.llm)
    is_live = args.resolve != "replay"
    is_store, is_short = args.llm.endswith(".sqlite"), args.llm in MODEL_FILES
    if is_live and (args.llm_url or args.llm == GEMMA or not (recorded or is_store or is_short)):
        return _open_live(args, recorded.get(args.goal_form))
    if is_store:
        return _open_recorded(Path(args.llm))
    if args.goal_form in recorded:
        return _open_recorded(recorded[args.goal_form])
    if recorded:
        raise UserError(
            f"no recorded '{args.goal_form}' answers of {args.llm}: "
            f"recorded are {', '.join(recorded)}; or give a live --llm"
        )
    if is_live:
        raise UserError(
            f"no recorded answers of {args.llm} for the world {world.name}: "
            f"give a live --llm (such as {GEMMA}), or another --goal-source"
        )
    return Sources(_find_stored(store, args.llm))


def find_recorded(world: World, llm: str) -> dict[str, Path]:
    """Return the recorded stores of a model in the world's folder, by form."""
    name = MODEL_FILES.get(llm, llm)
    paths = {form: world.recorded / f"{world.name}_{form}_{name}.sqlite" for form in FORMS}
    return {form: path for form, path in paths.items() if path.is_file()}


def _open_live(args: GoalArgs, recorded: Path | None) -> Sources:
    model = load_language_model(args.llm, url=args.llm_url, engine=args.llm_engine)
    if recorded is not None:
        store = Store(recorded, read_only=True)
        if store.models() == [model.name]:
            return Sources(model.name, model, store)
        store.close()
    return Sources(model.name, model)


def _open_recorded(path: Path) -> Sources:
    store = Store(path, read_only=True)
    models = store.models()
    if len(models) != 1:
        store.close()
        raise UserError(
            f"{path} holds the answers of {len(models)} models: "
            "export one of them, then give --llm that file"
        )
    return Sources(models[0], recorded=store)


def _find_stored(store: Store, llm: str) -> str:
    """Return the identity of a model whose answers the run's store has, else the name given."""
    # A stored identity begins with the name of the model's file.
    file = f"{MODEL_FILES[llm]}.gguf" if llm in MODEL_FILES else Path(llm).name.lower()
    stored = [name for name in store.models() if name.partition("@")[0] == file]
    return stored[0] if len(stored) == 1 else llm

"""Begin with the parameters of another run (--from-run), and train all or some of them."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import optax

from lab.arguments import RunArgs
from lab.errors import UserError
from lab.pretrained import find_run, load_parameters
from lab.run import read_config
from worlds import make_world, world_tasks
from worlds.world import WorldArgs

# What decides the inputs, width and outputs of a network, where a script has it.
SHAPING = (
    *("hidden_size", "network", "text_observation", "sentence_encoder", "goal_conditioned"),
    *("caption_memory", "goal_view", "goal_head"),
)
TORSOS = ("Torso", "PaperTorso")  # what the names of modules below the heads begin with


def take_parameters(args: RunArgs, state: Any) -> Any:
    """Return a first state with the parameters of the run that --from-run names, bit for bit.

    The target network, if there is one, has them too; the optimiser is new. Raises UserError where
    they do not fit, naming what differs, and where there is no such run or checkpoint.
    """
    folder = find_run(args.from_run, "--from-run")
    recorded = read_config(folder).get("arguments")
    if recorded is None:
        raise UserError(f"--from-run {folder} has no whole config.json: is it the folder of a run?")
    if ("buffer_size" in recorded) != hasattr(args, "buffer_size"):  # which DQN alone has
        raise UserError(f"--from-run {folder} is of the other learner: PPO and DQN do not mix")
    _check_world(args, recorded, folder)
    here = {name: getattr(args, name) for name in SHAPING if hasattr(args, name)}
    differing = [
        f"--{name.replace('_', '-')} {recorded[name]} there, {value} here"
        for name, value in here.items()
        if name in recorded and recorded[name] != value
    ]
    if differing:
        raise UserError(f"--from-run {folder} does not fit: {', '.join(differing)}")
    try:
        params = load_parameters(folder, state.params)
    except UserError as error:
        raise UserError(f"--from-run {folder}: {error}") from error
    state = state.replace(params=params)
    if hasattr(state, "target_params"):
        state = state.replace(target_params=jax.tree.map(jax.numpy.copy, params))
    return state


def _check_world(args: Any, recorded: Mapping[str, Any], folder: Path) -> None:
    """Raise UserError unless the run's world has this one's words, actions and observations.

    Rules, the regime of captions and the task may differ.
    """
    names = {field.name for field in dataclasses.fields(WorldArgs)}
    options = {name: value for name, value in recorded.items() if name in names}
    if options.get("placements"):
        options["placements"] = Path(options["placements"])
    there, here = make_world(WorldArgs(**options)), make_world(args)
    for part in ("name", "actions", "observation_shape", "captions", "facts"):
        if getattr(there, part) != getattr(here, part):
            differs = f"{part} of {there!r} there, of {here!r} here"
            raise UserError(f"--from-run {folder} is of another world: {differs}")


def fine_tuning(args: Any) -> dict[str, Any]:
    """Return what arguments are by default where --from-run goes on with a --task.

    The agent's inputs and width stay what they were. It goes on reading the goals that it knows,
    paid a hundredth of the task: a policy that the task alone pays, seldom, drifts away from what
    it could do (docs/downstream.md). Raises UserError where there is no such run.
    """
    if not args.from_run or args.task not in world_tasks(args):
        return {}
    recorded = read_config(find_run(args.from_run, "--from-run")).get("arguments", {})
    shape = {name: recorded[name] for name in SHAPING if name in recorded and hasattr(args, name)}
    tuned, source = {**shape, "learning_rate": 1e-4}, recorded.get("goal_source", "none")
    if args.goal_source == "task" or source in ("task", "none"):
        return tuned
    return {**tuned, "goal_source": source, "goal_coef": 0.1, "extrinsic_coef": 10.0}


def trainable(
    args: RunArgs, optimizer: optax.GradientTransformation, critic: str | None = None
) -> optax.GradientTransformation:
    """Return an optimiser of what --fine-tune names; critic: the name of the value's own layer.

    The first layer of `params` has the modules by name. Raises UserError where it says nothing.
    """
    if args.fine_tune == "all":
        return optimizer
    if not args.from_run:
        raise UserError(f"--fine-tune {args.fine_tune} needs --from-run: nothing was learnt yet")
    if args.fine_tune == "critic" and critic is None:
        raise UserError("--fine-tune critic: this learner has no critic: give all or heads")

    def label(path: tuple, _: jax.Array) -> str:
        module = path[1].key
        is_head = not module.startswith(TORSOS)
        is_trained = module == critic if args.fine_tune == "critic" else is_head
        return "trained" if is_trained else "frozen"

    def labels(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(label, params)

    parts = {"trained": optimizer, "frozen": optax.set_to_zero()}
    return optax.multi_transform(parts, labels)

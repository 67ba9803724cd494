"""Begin with the parameters of another run (--from-run), and train all or some of them."""

from typing import Any

import jax
import optax

from lab.arguments import RunArgs
from lab.errors import UserError
from lab.pretrained import find_run, load_parameters
from lab.run import read_config

# What decides the inputs, width and outputs of a network, where a script has it.
SHAPING = (
    *("env", "task", "actions", "captions", "observation", "hidden_size", "network"),
    *("text_observation", "goal_conditioned", "caption_memory", "goal_view", "goal_head"),
)
TORSOS = ("Torso", "PaperTorso")  # what the names of modules below the heads begin with


def take_parameters(args: RunArgs, state: Any) -> Any:
    """Return a first state with the parameters of the run that --from-run names, bit for bit.

    The target network, if there is one, has them too; the optimiser is new. Raises UserError where
    they do not fit, naming what differs, and where there is no such run or checkpoint.
    """
    folder = find_run(args.from_run, "--from-run")
    recorded = read_config(folder)["arguments"]
    here = {name: getattr(args, name) for name in SHAPING if hasattr(args, name)}
    differing = [
        f"--{name.replace('_', '-')} {recorded.get(name)} there, {value} here"
        for name, value in here.items()
        if name in recorded and recorded[name] != value
    ]
    if "env" in recorded and recorded["env"] != args.env:
        raise UserError(f"--from-run {folder} is of another world ({differing[0]})")
    try:
        params = load_parameters(folder, state.params)
    except UserError as error:
        why = f": {', '.join(differing)}" if differing else ""
        raise UserError(f"--from-run {folder}: {error}{why}") from error
    state = state.replace(params=params)
    if hasattr(state, "target_params"):
        state = state.replace(target_params=jax.tree.map(jax.numpy.copy, params))
    return state


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

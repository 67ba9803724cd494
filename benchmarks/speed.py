"""Measure environment and training speed against plain craftax: python -m benchmarks.speed.

References, a few lines each over craftax's own functions: `auto_reset` generates a world for every
environment at every step (craftax's default); `optimistic` generates one for every 16 environments
and step (as Craftax_Baselines does). What is compared runs interleaved in one process: speeds are
medians over rounds, in env steps a second, and ratios medians of those round by round, so that a
drifting machine harms them little. Then each learner as it is by default, by what its policy reads:
both goals and facts, neither (blind), or goals and the embedded caption of each scene, whose
embeddings are in the store by then (caption, warm).
"""

import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from craftax.craftax_classic.envs.craftax_symbolic_env import (
    CraftaxClassicSymbolicEnv,
    CraftaxClassicSymbolicEnvNoAutoReset,
)

import ellm_dqn
import ellm_ppo
from benchmarks.origin import RESULTS, command_line, git_commit, machine
from goals.arguments import GoalArgs
from goals.service import GoalService
from goals.tables import grow_goals
from lab.cli import run_cli
from lab.play import select
from lab.ranges import Count, CountOrNone, Ranged
from lab.run import write_text
from worlds import make_world
from worlds.vector import VectorWorld
from worlds.world import WorldArgs

RESET_RATIO = 16
WARM_UP = 2  # rounds that do not count: everything is compiled in them
BLIND = {"goal_conditioned": False, "text_observation": "none"}
INPUTS = {"both": {}, "blind": BLIND, "caption": {"text_observation": "caption"}}
Run = Callable[[], None]  # one round, to its end


@dataclass(frozen=True)
class Args(Ranged):
    """Measure, print and write the speeds."""

    env: str = WorldArgs().env
    """our world; craftax is comparable with crafter alone"""
    goal_source: str = GoalArgs().goal_source
    """goals of ELLM; a world without recorded answers needs another source than llm"""
    num_envs: Count = 256
    """environments in step"""
    num_steps: Count = 16
    """steps of each environment per rollout"""
    rounds: Count = 3
    """rounds of measurement; every contestant runs once in each"""
    default_rounds: CountOrNone = 30
    """updates of each learner at its defaults; 0: leave these out"""
    out: Path = RESULTS / "speed.json"
    """where the figures go"""

    @property
    def num_env_steps(self) -> int:
        """Env steps of a rollout."""
        return self.num_envs * self.num_steps


@dataclass(frozen=True)
class Craftax:
    """Plain craftax of N environments.

    reset(key) -> (observations, states); step(key, states, actions) -> (observations, states,
    rewards, done). step hands out fresh worlds where an episode is over.
    """

    reset: Callable[[jax.Array], tuple[jax.Array, Any]]
    step: Callable[[jax.Array, Any, jax.Array], tuple[jax.Array, Any, jax.Array, jax.Array]]


def auto_reset(num_envs: int) -> Craftax:
    """Make craftax's own auto-reset environment, vectorised."""
    env = CraftaxClassicSymbolicEnv()
    params = env.default_params.replace(max_timesteps=400)

    def reset(key):
        return jax.vmap(env.reset, (0, None))(jax.random.split(key, num_envs), params)

    def step(key, states, actions):
        keys = jax.random.split(key, num_envs)
        stepped = jax.vmap(env.step, (0, 0, 0, None))(keys, states, actions, params)
        return stepped[:4]

    return Craftax(reset, step)


def optimistic(num_envs: int) -> Craftax:
    """Make craftax with one fresh world for 16 environments and step, given to those that end."""
    env = CraftaxClassicSymbolicEnvNoAutoReset()
    params = env.default_params.replace(max_timesteps=400)
    ratio = min(RESET_RATIO, num_envs)
    num_worlds = num_envs // ratio

    def reset(key):
        return jax.vmap(env.reset, (0, None))(jax.random.split(key, num_envs), params)

    def step(key, states, actions):
        step_key, reset_key, choice_key = jax.random.split(key, 3)
        keys = jax.random.split(step_key, num_envs)
        stepped = jax.vmap(env.step, (0, 0, 0, None))(keys, states, actions, params)
        observations, states, rewards, done, _ = stepped
        keys = jax.random.split(reset_key, num_worlds)
        fresh = jax.vmap(env.reset, (0, None))(keys, params)
        choice = jax.random.permutation(choice_key, jnp.repeat(jnp.arange(num_worlds), ratio))
        fresh = jax.tree.map(lambda x: x[choice], fresh)
        return *select(done, fresh, (observations, states)), rewards, done

    return Craftax(reset, step)


def random_ours(args: Args) -> Run:
    """Step our worlds with random actions: with observation, scene, caption and pooled resets."""
    world = make_world(WorldArgs(env=args.env))
    envs = VectorWorld(world, args.num_envs, pool_size=args.num_envs)

    @partial(jax.jit, donate_argnums=0)
    def rollout(state, key):
        def step(state, key):
            action_key, world_key = jax.random.split(key)
            actions = jax.random.randint(action_key, (args.num_envs,), 0, len(world.actions))
            state, transition = envs.advance(world_key, state, actions)
            state = envs.reset_done(state, transition.terminated | transition.truncated)
            observations, scenes = (jax.vmap(f)(state.states) for f in (world.observe, world.scene))
            return state, (observations.sum() + scenes.sum(), transition.caption)

        step_key, refill_key = jax.random.split(key)
        state, seen = jax.lax.scan(step, state, jax.random.split(step_key, args.num_steps))
        return envs.refill(refill_key, state), seen

    return keep_going(rollout, jax.jit(envs.reset)(jax.random.key(0)))


def random_reference(args: Args, make: Callable[[int], Craftax]) -> Run:
    """Step a reference with random actions."""
    craftax = make(args.num_envs)

    @partial(jax.jit, donate_argnums=0)
    def rollout(states, key):
        def act(states, key):
            action_key, world_key = jax.random.split(key)
            actions = jax.random.randint(action_key, (args.num_envs,), 0, 17)
            observations, states, rewards, done = craftax.step(world_key, states, actions)
            return states, (observations.sum(), rewards, done)

        return jax.lax.scan(act, states, jax.random.split(key, args.num_steps))

    return keep_going(rollout, jax.jit(craftax.reset)(jax.random.key(0))[1])


def train_ours(script: ModuleType, rehearsal: int = 0, **fields) -> tuple[Run, int]:
    """Return whole updates of a script, as its main does them, and the env steps of one.

    fields: the script's arguments. With a rehearsal of so many updates these are done once before,
    so that what they embed is in the store when they are done again.
    """
    folder = tempfile.mkdtemp(prefix="speed-")
    args = script.Args(store=str(Path(folder) / "store.sqlite"), **fields)
    run = begin_training(script, args)
    if rehearsal:
        for _ in range(rehearsal):
            run()
        run = begin_training(script, args)
    return run, args.batch_size


def begin_training(script: ModuleType, args: Any) -> Run:
    """Return updates from the first one on; args: the script's."""
    world = make_world(args)
    service = GoalService(world, args, seed=args.seed)
    service.prepare()
    setup = script.make_setup(args, world)
    state = script.init_state(setup, service.tables)
    rollout = script.empty_rollout(setup, service.tables, state)

    def update(carry, _):
        state, rollout, unknown = script.collect(setup, service.tables, *carry)
        while service.holds_up and np.asarray(unknown.mask).any():
            service.know(np.asarray(unknown.scenes)[np.asarray(unknown.mask)])
            state, rollout = grow_goals((state, rollout), service.num_goals)
            state, rollout, unknown = script.collect(setup, service.tables, state, rollout)
        state, metrics = script.update(setup, service.tables, state, rollout)
        return (state, rollout), metrics

    return keep_going(update, (state, rollout))


def train_reference(args: Args, make: Callable[[int], Craftax]) -> Run:
    """Run PPO's updates with the same network and `learn`, but on plain craftax.

    17 actions, the game's own reward, no words.
    """
    craftax = make(args.num_envs)
    size = {"env": args.env, "num_envs": args.num_envs, "num_steps": args.num_steps}
    run_args = ellm_ppo.Args(goal_source="none", **BLIND, **size)
    network = ellm_ppo.ActorCritic(17, run_args.hidden_size)
    setup = ellm_ppo.Setup(run_args, None, None, network)
    tables = no_tables(run_args)
    observations, states = jax.jit(craftax.reset)(jax.random.key(0))

    def read(observations):
        nothing = jnp.zeros((args.num_envs, 0), jnp.uint32)
        seen = observations.astype(jnp.float32)
        view, acts = nothing.astype(jnp.float32), jnp.zeros((args.num_envs, 0, 2), bool)
        return ellm_ppo.PolicyInput(seen, nothing.astype(bool), nothing, nothing, view, acts)

    params = network.init(jax.random.key(1), read(observations), tables)
    learner = unfilled(ellm_ppo.RunnerState).replace(
        params=params,
        opt_state=ellm_ppo.make_optimizer(run_args).init(params),
        key=jax.random.key(2),
    )

    @partial(jax.jit, donate_argnums=0)
    def update(carry, key):
        learner, seen = carry

        def act(seen, key):
            observations, states = seen
            policy_key, world_key = jax.random.split(key)
            inputs = read(observations)
            logits, values = network.apply(learner.params, inputs, tables)
            actions = jax.random.categorical(policy_key, logits)
            log_policy = jax.nn.log_softmax(logits)
            log_probs = jnp.take_along_axis(log_policy, actions[:, None], axis=1)[:, 0]
            observations, states, rewards, done = craftax.step(world_key, states, actions)
            return (observations, states), (inputs, actions, log_probs, values, rewards, done)

        seen, rollout = jax.lax.scan(act, seen, jax.random.split(key, args.num_steps))
        inputs, actions, log_probs, values, rewards, done = rollout
        following = network.apply(learner.params, read(seen[0]), tables)[1]
        next_values = jnp.concatenate([values[1:], following[None]])
        discounts = run_args.gamma, run_args.gae_lambda
        advantages = ellm_ppo.generalised_advantages(
            rewards, values, next_values, done, done, *discounts
        )
        steps = unfilled(ellm_ppo.Rollout).replace(
            inputs=inputs, actions=actions, log_probs=log_probs, values=values
        )
        learner, losses = ellm_ppo.learn(setup, tables, learner, steps, advantages)
        return (learner, seen), losses

    return keep_going(update, (learner, (observations, states)))


def unfilled(cls: type) -> Any:
    """Return a struct whose fields are all None, for those that `learn` does not read."""
    return cls(**dict.fromkeys(field.name for field in dataclasses.fields(cls)))


def no_tables(run_args: ellm_ppo.Args) -> Any:
    """Return goal tables that hold no goals."""
    with tempfile.TemporaryDirectory() as folder:
        run_args = dataclasses.replace(run_args, store=str(Path(folder) / "store.sqlite"))
        service = GoalService(make_world(run_args), run_args)
        service.prepare()
        service.close()
    return service.tables


def keep_going(function: Callable[[Any, jax.Array], tuple[Any, Any]], carry: Any) -> Run:
    """Return a call that runs `function(carry, key)` once and waits for it."""

    # Craftax's first states are weakly typed, its later ones are not: left so, the second call
    # would compile again.
    def strong(x):
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return x if is_key else jnp.array(np.asarray(x))

    box = [jax.tree.map(strong, carry), jax.random.key(3)]

    def run():
        box[1], key = jax.random.split(box[1])
        box[0], out = function(box[0], key)
        jax.block_until_ready(out)

    return run


Speeds = dict[str, list[float]]  # of each contestant in each round, env steps a second


def measure(contestants: Mapping[str, Run], rounds: int, steps: int) -> Speeds:
    """Return the speeds of the contestants, which run in turn; steps: env steps of a round."""
    for run in [*contestants.values()] * WARM_UP:
        run()
    speeds = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            speeds[name].append(steps / (time.perf_counter() - start))
    return speeds


def measure_worlds(args: Args) -> Speeds:
    """Measure worlds alone with random actions."""
    contestants = {
        "ours": random_ours(args),
        "optimistic": random_reference(args, optimistic),
        "auto_reset": random_reference(args, auto_reset),
    }
    return measure(contestants, args.rounds, args.num_env_steps)


def measure_training(args: Args) -> Speeds:
    """Measure PPO's updates, blind: on goals, on the game's reward, on plain craftax."""
    size = {"env": args.env, "num_envs": args.num_envs, "num_steps": args.num_steps, **BLIND}
    contestants = {
        "ellm": train_ours(ellm_ppo, goal_source=args.goal_source, **size)[0],
        "none": train_ours(ellm_ppo, goal_source="none", **size)[0],
        "optimistic": train_reference(args, optimistic),
    }
    return measure(contestants, args.rounds, args.num_env_steps)


def measure_inputs(script: ModuleType, rounds: int, **fields) -> Speeds:
    """Measure a script's updates by what its policy reads; fields: its arguments."""
    contestants = {}
    for name, inputs in INPUTS.items():
        rehearsal = WARM_UP + rounds if name == "caption" else 0
        contestants[name], steps = train_ours(script, rehearsal, **inputs, **fields)
    return measure(contestants, rounds, steps)


def measure_defaults(args: Args) -> dict[str, Speeds]:
    """Measure both learners as they are by default, DQN from its first gradient step on."""
    rounds, fields = args.default_rounds, {"env": args.env, "goal_source": args.goal_source}
    return {
        "ppo": measure_inputs(ellm_ppo, rounds, **fields),
        "dqn": measure_inputs(ellm_dqn, rounds, learning_starts=0, **fields),
    }


def ratio(speeds: Speeds, ours: str, reference: str) -> float:
    """Return the median over rounds of one speed over another."""
    pairs = zip(speeds[ours], speeds[reference], strict=True)
    return statistics.median(a / b for a, b in pairs)


def uses_of_a_step() -> dict[str, str]:
    """Say how often each learner uses a step by default."""
    ppo, dqn = ellm_ppo.Args(), ellm_dqn.Args()
    uses = dqn.sample_size / dqn.train_frequency
    often = f"{dqn.sample_size} transitions per {dqn.train_frequency} env steps"
    return {
        "ppo": f"{ppo.update_epochs}: passes in minibatches of {ppo.minibatch_size}",
        "dqn": f"{uses:g}: {often}",
    }


def main(args: Args) -> dict[str, Any]:
    """Measure, print, and return what the JSON holds."""
    speeds = {"env_only": measure_worlds(args), "training": measure_training(args)}
    ratios = {
        "env_only: ours / optimistic": ratio(speeds["env_only"], "ours", "optimistic"),
        "env_only: ours / auto_reset": ratio(speeds["env_only"], "ours", "auto_reset"),
        "training: ellm / none": ratio(speeds["training"], "ellm", "none"),
        "training: ellm / optimistic": ratio(speeds["training"], "ellm", "optimistic"),
    }
    if args.default_rounds:
        for name, table in measure_defaults(args).items():
            speeds[name] = table
            ratios[f"{name}: both / blind"] = ratio(table, "both", "blind")
            ratios[f"{name}: caption / blind"] = ratio(table, "caption", "blind")
    medians = {
        kind: {name: statistics.median(rounds) for name, rounds in table.items()}
        for kind, table in speeds.items()
    }
    result = {
        "command": command_line("speed"),
        "env": args.env,
        "goal_source": args.goal_source,
        "num_envs": args.num_envs,
        "num_steps": args.num_steps,
        "rounds": args.rounds,
        "default_rounds": args.default_rounds,
        "uses_of_a_step": uses_of_a_step(),
        "steps_per_second": medians,
        "ratios": ratios,
        "all_rounds": speeds,
        "git_commit": git_commit(),
        "machine": f"{machine()}, {jax.devices()[0].device_kind}",
    }
    for kind, table in medians.items():
        for name, speed in table.items():
            print(f"{kind:>10}  {name:<12}{speed:>10,.0f} steps/s")
    for name, value in ratios.items():
        print(f"{value:8.2f}  {name}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(args.out, json.dumps(result, indent=2) + "\n")
    return result


if __name__ == "__main__":
    run_cli(main, Args)

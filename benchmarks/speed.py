"""Measure environment and training speed against plain craftax, interleaved in one process: python benchmarks/speed.py.

References, a few lines each over craftax's own functions: `auto_reset` generates a world for every environment at every step
(craftax's default); `optimistic` generates one for every 16 environments and step (as Craftax_Baselines does). All print steps per
second as the median over rounds, and ratios round by round, so that a drifting machine harms them little.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from craftax.craftax_classic.envs.craftax_symbolic_env import (
    CraftaxClassicSymbolicEnv,
    CraftaxClassicSymbolicEnvNoAutoReset,
)

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import ellm_dqn  # noqa: E402
import ellm_ppo  # noqa: E402
from worlds import make_world  # noqa: E402
from worlds.vector import VectorWorld  # noqa: E402

RESET_RATIO = 16
REPEATS = 10  # rounds of the learners' defaults per round: their iterations are short


@dataclass(frozen=True)
class Args:
    """Measure, print and write the speeds."""

    num_envs: int = 256
    """environments in step"""
    num_steps: int = 16
    """steps of each environment per rollout"""
    rounds: int = 3
    """rounds of measurement; every contestant runs once in each"""
    out: str = "results/speed.json"
    """where the figures go"""


def random_ours(args: Args) -> Callable[[], None]:
    """Step our worlds with random actions: observation, scene, caption and pooled resets included."""
    world = make_world("crafter")
    envs = VectorWorld(world, args.num_envs, pool_size=args.num_envs)

    @partial(jax.jit, donate_argnums=0)
    def rollout(state, key):
        def step(state, key):
            action_key, world_key = jax.random.split(key)
            actions = jax.random.randint(action_key, (args.num_envs,), 0, len(world.actions))
            state, transition = envs.advance(world_key, state, actions)
            state = envs.reset_done(state, transition.terminated | transition.truncated)
            seen = jax.vmap(world.observe)(state.states).sum() + jax.vmap(world.scene)(state.states).sum()
            return state, (seen, transition.caption)

        step_key, refill_key = jax.random.split(key)
        state, seen = jax.lax.scan(step, state, jax.random.split(step_key, args.num_steps))
        return envs.refill(refill_key, state), seen

    return keep_going(rollout, jax.jit(envs.reset)(jax.random.key(0)))


def auto_reset(args: Args) -> tuple[Callable, Callable]:
    """Return reset and step of craftax's own auto-reset environment, vectorised."""
    env = CraftaxClassicSymbolicEnv()
    params = env.default_params.replace(max_timesteps=400)

    def reset(key):
        return jax.vmap(env.reset, (0, None))(jax.random.split(key, args.num_envs), params)

    def step(key, state, actions):
        keys = jax.random.split(key, args.num_envs)
        observation, state, reward, done, _ = jax.vmap(env.step, (0, 0, 0, None))(keys, state, actions, params)
        return observation, state, reward, done

    return reset, step


def optimistic(args: Args) -> tuple[Callable, Callable]:
    """Return reset and step of craftax with one fresh world per 16 environments and step, handed to those that are done."""
    env = CraftaxClassicSymbolicEnvNoAutoReset()
    params = env.default_params.replace(max_timesteps=400)
    num_worlds = args.num_envs // RESET_RATIO

    def reset(key):
        return jax.vmap(env.reset, (0, None))(jax.random.split(key, args.num_envs), params)

    def step(key, state, actions):
        step_key, reset_key, choice_key = jax.random.split(key, 3)
        keys = jax.random.split(step_key, args.num_envs)
        observation, state, reward, done, _ = jax.vmap(env.step, (0, 0, 0, None))(keys, state, actions, params)
        fresh = jax.vmap(env.reset, (0, None))(jax.random.split(reset_key, num_worlds), params)
        choice = jax.random.permutation(choice_key, jnp.repeat(jnp.arange(num_worlds), RESET_RATIO))
        fresh = jax.tree.map(lambda x: x[choice], fresh)
        observation, state = ellm_ppo.select(done, fresh, (observation, state))
        return observation, state, reward, done

    return reset, step


def random_reference(args: Args, make: Callable) -> Callable[[], None]:
    """Step a reference with random actions."""
    reset, step = make(args)

    @partial(jax.jit, donate_argnums=0)
    def rollout(state, key):
        def act(state, key):
            action_key, world_key = jax.random.split(key)
            actions = jax.random.randint(action_key, (args.num_envs,), 0, 17)
            observation, state, reward, done = step(world_key, state, actions)
            return state, (observation.sum(), reward, done)

        return jax.lax.scan(act, state, jax.random.split(key, args.num_steps))

    return keep_going(rollout, jax.jit(reset)(jax.random.key(0))[1])


def train_ours(script, **fields) -> tuple[Callable[[], None], int]:
    """Return whole iterations of a script, warm (collect, reward, learn, refill), and the env steps of one."""
    run_args = script.Args(store=str(Path(tempfile.mkdtemp()) / "store.sqlite"), **fields)
    world = script.make_args_world(run_args)
    service = script.make_service(run_args, world)
    service.prepare()
    setup = script.make_setup(run_args, world, service)
    state = script.init_state(setup, service.tables)

    def iteration(carry, _):
        state, collector = carry
        state, collector, _ = script.collect(setup, service.tables, state, collector)
        state, collector, metrics = script.update(setup, service.tables, state, collector)
        return (state, collector), metrics

    return keep_going(iteration, (state, script.empty_collector(setup, state))), run_args.batch_size


def train_reference(args: Args, make: Callable) -> Callable[[], None]:
    """Run PPO's iterations with the same network and `learn`, but plain craftax: 17 actions, its own reward, no words."""
    reset, step = make(args)
    run_args = ellm_ppo.Args(num_envs=args.num_envs, num_steps=args.num_steps, goal_source="none")
    network = ellm_ppo.ActorCritic(17, run_args.hidden_size)
    setup = ellm_ppo.Setup(run_args, None, None, network, (), 0)
    observation, env_state = jax.jit(reset)(jax.random.key(0))

    def read(observation):
        nothing = jnp.zeros((args.num_envs, 0))
        return ellm_ppo.PolicyInput(observation.astype(jnp.float32), nothing.astype(bool), nothing, nothing)

    params = network.init(jax.random.key(1), read(observation))
    opt_state = ellm_ppo.make_optimizer(run_args).init(params)
    state = ellm_ppo.RunnerState(params, opt_state, None, None, None, jax.random.key(2), jnp.zeros((), jnp.int32), None)

    @partial(jax.jit, donate_argnums=0)
    def iteration(carry, key):
        def act(carry, key):
            observation, env_state = carry
            policy_key, world_key = jax.random.split(key)
            inputs = read(observation)
            logits, values = network.apply(state.params, inputs)
            actions = jax.random.categorical(policy_key, logits)
            log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), actions[:, None], axis=1)[:, 0]
            observation, env_state, reward, done = step(world_key, env_state, actions)
            return (observation, env_state), (inputs, actions, log_probs, values, reward, done)

        state, seen = carry
        seen, rollout = jax.lax.scan(act, seen, jax.random.split(key, args.num_steps))
        inputs, actions, log_probs, values, rewards, done = rollout
        next_values = jnp.concatenate([values[1:], network.apply(state.params, read(seen[0]))[1][None]])
        advantages = ellm_ppo.generalised_advantages(rewards, values, next_values, done, done, run_args.gamma, run_args.gae_lambda)
        batch = (inputs, actions, log_probs, values, advantages, advantages + values)
        batch = jax.tree.map(lambda x: x.reshape(run_args.batch_size, *x.shape[2:]), batch)
        state, losses = ellm_ppo.learn(setup, state, batch)
        return (state, seen), losses

    return keep_going(iteration, (state, (observation, env_state)))


def keep_going(function: Callable, carry) -> Callable[[], None]:
    """Return a call that runs `function(carry, key)` once and waits for it."""
    # Craftax's first states are weakly typed, its later ones are not: left so, the second call would compile again.
    carry = jax.tree.map(lambda x: x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else jnp.array(np.asarray(x)), carry)
    box = [carry, jax.random.key(3)]

    def run():
        box[1], key = jax.random.split(box[1])
        box[0], out = function(box[0], key)
        jax.block_until_ready(out)

    return run


def measure(contestants: dict[str, Callable], rounds: int, steps: int) -> dict[str, list[float]]:
    """Return steps per second of each contestant in each round; all run in turn, after two rounds that do not count."""
    for run in [*contestants.values()] * 2:
        run()
    speeds = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            speeds[name].append(steps / (time.perf_counter() - start))
    return speeds


def ratio(speeds: dict[str, list[float]], ours: str, reference: str) -> float:
    """Return the median over rounds of one speed over another."""
    return statistics.median(a / b for a, b in zip(speeds[ours], speeds[reference], strict=True))


def main(args: Args) -> dict:
    """Measure, print, and return what the JSON holds."""
    env_only = {
        "ours": random_ours(args),
        "optimistic": random_reference(args, optimistic),
        "auto_reset": random_reference(args, auto_reset),
    }
    size = {"num_envs": args.num_envs, "num_steps": args.num_steps}
    training = {
        "ellm": train_ours(ellm_ppo, **size)[0],
        "none": train_ours(ellm_ppo, goal_source="none", **size)[0],
        "optimistic": train_reference(args, optimistic),
    }
    steps = args.num_envs * args.num_steps
    speeds = {"env_only": measure(env_only, args.rounds, steps), "training": measure(training, args.rounds, steps)}
    # Each learner as it is by default, DQN from its first gradient step on.
    learners = {"ppo": train_ours(ellm_ppo), "dqn": train_ours(ellm_dqn, learning_starts=0)}
    speeds["defaults"] = {name: measure({name: run}, REPEATS * args.rounds, steps)[name] for name, (run, steps) in learners.items()}
    ppo, dqn = ellm_ppo.Args(), ellm_dqn.Args()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    result = {
        "command": "python benchmarks/speed.py",
        "num_envs": args.num_envs,
        "num_steps": args.num_steps,
        "rounds": args.rounds,
        "uses_of_a_step": {
            "ppo": f"{ppo.update_epochs}: passes in minibatches of {ppo.minibatch_size}",
            "dqn": f"{dqn.sample_size / dqn.train_frequency:g}: {dqn.sample_size} transitions per {dqn.train_frequency} env steps",
        },
        "steps_per_second": {
            kind: {name: statistics.median(values) for name, values in table.items()} for kind, table in speeds.items()
        },
        "ratios": {
            "env_only: ours / optimistic": ratio(speeds["env_only"], "ours", "optimistic"),
            "env_only: ours / auto_reset": ratio(speeds["env_only"], "ours", "auto_reset"),
            "training: ellm / none": ratio(speeds["training"], "ellm", "none"),
            "training: ellm / optimistic": ratio(speeds["training"], "ellm", "optimistic"),
            "defaults: dqn / ppo": ratio(speeds["defaults"], "dqn", "ppo"),
        },
        "all_rounds": speeds,
        "git_commit": commit or None,
        "machine": f"{os.cpu_count()} x {platform.processor() or platform.machine()}, {jax.devices()[0].device_kind}",
    }
    for kind, table in result["steps_per_second"].items():
        for name, speed in table.items():
            print(f"{kind:>10}  {name:<12}{speed:>10,.0f} steps/s")
    for name, value in result["ratios"].items():
        print(f"{value:8.2f}  {name}")
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    Path(args.out).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    main(tyro.cli(Args))

"""Try settings of a learner on the oracle, one run each: python -m benchmarks.tuning --learner ppo.

All methods then share the setting that was chosen. A run that is finished is not run again, one
that was interrupted goes on; runs that stand in the directory beside those of the table are
reported too.
"""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

from benchmarks.origin import RESULTS, ROOT
from benchmarks.pretraining import final, mean
from lab.cli import run_cli
from lab.run import SUMMARY, read_config, read_json, read_metrics, write_json

SCORE = "achievements_per_episode"
SHARED = ("--gamma", "0.97", "--policy-temperature", "0.03", "--learning-rate", "1e-3")
BASE = {
    "ppo": ["--learning-rate", "3e-4", "--total-timesteps", "1000000"],
    "dqn": [
        *("--learning-rate", "3e-4", "--gamma", "0.99", "--policy-temperature", "0"),
        *("--munchausen", "0", "--total-timesteps", "200000"),
    ],
}
VARIANTS = {
    "ppo": {
        "base": [],
        "ent0.003": ["--ent-coef", "0.003"],
        "ent0.03": ["--ent-coef", "0.03"],
        "gamma0.97": ["--gamma", "0.97"],
        "lambda0.8": ["--gae-lambda", "0.8"],
        "lambda0.95": ["--gae-lambda", "0.95"],
        "mb8": ["--num-minibatches", "8"],
        "epochs2": ["--update-epochs", "2"],
        "envs16x64": ["--num-envs", "16", "--num-steps", "64"],
        "envs16x128": ["--num-envs", "16", "--num-steps", "128"],
        "lr6e-4": ["--learning-rate", "6e-4"],
        "lr1e-3": ["--learning-rate", "1e-3"],
        "lr1e-3-ent0.003": ["--learning-rate", "1e-3", "--ent-coef", "0.003"],
        "lr1e-3-hidden128": ["--learning-rate", "1e-3", "--hidden-size", "128"],
        "lr1e-3-hidden512": ["--learning-rate", "1e-3", "--hidden-size", "512"],
        "lr2e-3": ["--learning-rate", "2e-3"],
        "lr3e-3": ["--learning-rate", "3e-3"],
    },
    "dqn": {
        "b64": [],
        "b64-gamma.95": ["--gamma", "0.95"],
        "b64-eps.1": ["--end-e", "0.1"],
        "b64-n10": ["--n-step", "10"],
        "b64-t.03-g.97": ["--gamma", "0.97", "--policy-temperature", "0.03"],
        "b64-t.1-g.97": ["--gamma", "0.97", "--policy-temperature", "0.1"],
        "b64-t.03-g.97-lr1e-3": [*SHARED],
        "b256-t.03-g.97-lr1e-3-n5": [
            *SHARED,
            *("--sample-size", "256", "--train-frequency", "64", "--n-step", "5"),
        ],
        "munchausen-n3": [*SHARED, "--munchausen", "0.9"],
        "munchausen-n1": [*SHARED, "--munchausen", "0.9", "--n-step", "1"],
    },
}
FIELDS = {
    "ppo": (
        *("num_envs", "num_steps", "num_minibatches", "update_epochs", "learning_rate", "gamma"),
        *("gae_lambda", "ent_coef", "hidden_size", "goal_conditioned", "text_observation", "seed"),
    ),
    "dqn": (
        *("sample_size", "train_frequency", "learning_rate", "gamma", "n_step", "start_e", "end_e"),
        *("target_network_frequency", "policy_temperature", "munchausen", "exploration_fraction"),
        *("hidden_size", "goal_conditioned", "text_observation", "seed"),
    ),
}


@dataclasses.dataclass(frozen=True)
class Args:
    """Run what is missing and report."""

    learner: Literal["ppo", "dqn"] = "ppo"
    """whose settings"""
    runs: Path = ROOT / "runs" / "tuning"
    """where the runs' directories are"""


def row(learner: str, run_dir: Path) -> dict[str, Any]:
    """Return what a finished run was set to and gave, by tenths of its steps."""
    config, lines = read_config(run_dir), read_metrics(run_dir)
    arguments, steps = config["arguments"], lines[-1]["env_steps"]
    curve = []
    for tenth in range(1, 11):
        low, high = (tenth - 1) * steps, tenth * steps
        inside = [line for line in lines if low < 10 * line["env_steps"] <= high]
        value = mean(inside, lambda line: line["achievements_per_episode"])
        curve.append(None if value is None else round(value, 2))
    return {
        "name": run_dir.name,
        **{field: arguments[field] for field in FIELDS[learner] if field in arguments},
        "env_steps": steps,
        "final": round(final(lines, SCORE)[SCORE], 2),
        "achievements_per_episode_by_tenths": curve,
        "sps": round(read_json(run_dir / SUMMARY)["sps"]),
        "git_commit": config["git_commit"],
        "git_dirty": config["git_dirty"],
    }


def train(learner: str, flags: list[str], run_dir: Path) -> None:
    """Train one variant to the end in a process of its own."""
    where = ["--run-dir", str(run_dir), "--store", f"{run_dir}.sqlite"]
    command = [sys.executable, f"ellm_{learner}.py", "--goal-source", "oracle", *BASE[learner]]
    command += [*flags, "--evaluate-episodes", "0", "--no-film", *where]
    subprocess.run(command, cwd=ROOT, check=True)


def main(args: Args) -> None:
    """Run, print and write results/tuning/<learner>.json."""
    for name, flags in VARIANTS[args.learner].items():
        run_dir = args.runs.resolve() / name
        if not (run_dir / SUMMARY).exists():
            train(args.learner, flags, run_dir)
    rows = [row(args.learner, path.parent) for path in sorted(args.runs.glob(f"*/{SUMMARY}"))]
    rows = sorted(rows, key=lambda row: -row["final"])
    for entry in rows:
        print(f"{entry['final']:6.2f}  {entry['name']}")
    out = RESULTS / "tuning" / f"{args.learner}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    command = f"python -m benchmarks.tuning --learner {args.learner}"
    scored = "final: achievements per episode over the last 5% of the steps"
    what = f"--goal-source oracle, one run each; {scored}"
    write_json(out, {"command": command, "what": what, "rows": rows})


if __name__ == "__main__":
    run_cli(main, Args)

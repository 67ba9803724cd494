"""Scripts run twice by their own commands in the real world: the same numbers, bit for bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training import read_lines

ROOT = Path(__file__).resolve().parent.parent
SMALL = {
    "ppo": "--num-envs 4 --num-steps 32 --num-minibatches 2 --update-epochs 1",
    "dqn": "--num-envs 4 --num-steps 32 --train-frequency 16 --sample-size 8 "
    "--learning-starts 256 --buffer-size 2048",
}
BOTH = "--hidden-size 16 --total-timesteps 1024 --evaluate-episodes 0 --no-film"
# Each learner once; golden figures and resumed runs hold the others to their numbers, on the toy.
SCRIPTS = ["ellm_ppo.py", "ellm_dqn.py"]


def run(command: list[str], run_dir: Path):
    """Run a script; return its metrics and what its summary says."""
    where = ["--run-dir", str(run_dir), "--store", f"{run_dir}.sqlite"]
    command = [sys.executable, *command, *where]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary = json.loads((run_dir / "summary.json").read_text())
    return read_lines(run_dir), summary["success_rates"], summary["episode_return"]


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_the_same_command_gives_the_same_run(tmp_path, script):
    learner = "ppo" if "ppo" in script else "dqn"
    command = [script, "--env", "crafter", *SMALL[learner].split(), *BOTH.split()]
    first, second = run(command, tmp_path / "first"), run(command, tmp_path / "second")
    assert first == second
    lines = first[0]
    learned = lines[-1]["policy_loss" if learner == "ppo" else "td_loss"]
    assert len(lines) == 8 and learned != 0


@pytest.mark.slow
@pytest.mark.parametrize("script", ["ellm_ppo.py", "ellm_dqn.py"])
def test_the_toy_is_a_world_like_any_other(tmp_path, script):
    """A world of one's own, with its prompts and recorded answers, is named on the command line."""
    learner = "ppo" if "ppo" in script else "dqn"
    small = f"{SMALL[learner]} {BOTH}".replace("--num-steps 32", "--num-steps 8").split()
    world = ["--env", "tests.toy.world:ToyWorld", "--llm", "toy-model"]
    run([script, *world, *small], tmp_path / "toy")
    config = json.loads((tmp_path / "toy" / "config.json").read_text())
    summary = json.loads((tmp_path / "toy" / "summary.json").read_text())
    assert config["language_model"] == "toy-model" and config["score_name"] == "doors_opened"
    assert summary["store_hits"] > 0 and summary["queries"] == 0

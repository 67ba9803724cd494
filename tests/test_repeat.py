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
    "dqn": "--num-envs 4 --num-steps 32 --train-frequency 16 --sample-size 8 --learning-starts 256 --buffer-size 2048",
}
# Each learner and each bonus once. The plain baselines are the first two without goals, which tests/test_parallel.py holds them to.
SCRIPTS = ["ellm_ppo.py", "ellm_dqn.py", "-m baselines.ppo_apt", "-m baselines.dqn_rnd"]


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_the_same_command_gives_the_same_run(tmp_path, script):
    small = SMALL["ppo" if "ppo" in script else "dqn"] + " --hidden-size 16 --total-timesteps 1024 --evaluate-episodes 0 --no-film"
    runs = []
    for name in ("first", "second"):
        command = [sys.executable, *script.split(), "--env", "crafter", *small.split(), "--run-dir", str(tmp_path / name)]
        done = subprocess.run(
            [*command, "--store", str(tmp_path / f"{name}.sqlite")], cwd=ROOT, env=os.environ, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        runs.append((read_lines(tmp_path / name), summary["success_rates"], summary["achievements_per_episode"]))
    assert runs[0] == runs[1]
    lines = runs[0][0]
    learned = [line["policy_loss" if "ppo" in script else "td_loss"] for line in lines]
    assert len(lines) == 8 and learned[-1] != 0

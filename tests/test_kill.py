"""A run that is killed at any moment ends where an undisturbed run ends."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.table_model import TableModel
from tests.toy.world import ToyWorld
from tests.train_toy import SETTINGS
from tests.training import assert_equal_trees, train

ROOT = Path(__file__).resolve().parent.parent


def count_lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


@pytest.mark.slow
def test_three_kills_leave_no_trace(monkeypatch, tmp_path):
    _, whole, whole_lines = train(
        monkeypatch, ToyWorld(), tmp_path, "whole", TableModel(), **SETTINGS
    )
    metrics = tmp_path / "killed" / "metrics.jsonl"
    chance = random.Random(0)
    kills = 0
    for target in (5, 20, 40):
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.train_toy", str(tmp_path), "killed"],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while count_lines(metrics) < target and process.poll() is None:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.05))
        process.kill()
        kills += process.wait() == -9
    assert kills == 3 and count_lines(metrics) < 60
    _, resumed, resumed_lines = train(
        monkeypatch, ToyWorld(), tmp_path, "killed", TableModel(), **SETTINGS
    )
    assert_equal_trees(whole, resumed)
    assert whole_lines == resumed_lines

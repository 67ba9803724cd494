"""The benchmark of a device, in small form on the CPU."""

import json

import jax
import pytest

from benchmarks import accelerator

NAMES = ["worlds", "craftax", "ppo", "dqn"]
SMALL = {
    "env": "tests.toy.world:ToyWorld",
    "goal_source": "oracle",
    "num_steps": 4,
    "hidden_size": 16,
    "dqn_sample_size": 8,
    "buffer_size": 512,
    "rounds": 1,
}


def round_of(steps):
    """Return what makes a contestant that does nothing."""
    return lambda: (lambda: None, steps)


@pytest.mark.slow
def test_everything_runs_in_small_form(tmp_path):
    """Craftax is the real one, of the size that test_speed.py has compiled."""
    out = tmp_path / "accelerator.json"
    result = accelerator.main(accelerator.Args(num_envs=(4,), out=out, **SMALL))
    assert [row["what"] for row in result["rows"]] == NAMES and not result["left_out"]
    for row in result["rows"]:
        assert row["num_envs"] == 4 and row["compiled_while_timed"] == 0
        assert 0 < row["slowest"] <= row["steps_per_second"] <= row["fastest"]
        assert row["compile_seconds"] > 0 and row["peak_memory_bytes"] > 10**8
    assert result["fastest_num_envs"] == dict.fromkeys(NAMES, 4)
    assert result["device"].startswith("cpu") and result["packages"]["jax"] == jax.__version__
    assert json.loads(out.read_text()) == result


def test_what_does_not_fit_is_left_out_and_told(tmp_path, monkeypatch):
    def full():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory\nmore")

    def contestants(args, num_envs):
        return {"worlds": round_of(num_envs), "ppo": full if num_envs == 8 else round_of(1)}

    monkeypatch.setattr(accelerator, "contestants", contestants)
    args = accelerator.Args(num_envs=(2, 8), rounds=1, out=tmp_path / "a" / "b.json")
    result = accelerator.main(args)
    assert [(row["what"], row["num_envs"]) for row in result["rows"]] == [
        ("worlds", 2),
        ("ppo", 2),
        ("worlds", 8),
    ]
    why = "RESOURCE_EXHAUSTED: out of memory"
    assert result["left_out"] == [{"what": "ppo", "num_envs": 8, "why": why}]
    args = accelerator.Args(num_envs=(2,), budget=0.0, out=tmp_path / "late.json")
    left_out = accelerator.main(args)["left_out"]
    assert [row["why"] for row in left_out] == ["budget", "budget"]


def test_what_was_measured_stays_whatever_comes(tmp_path, monkeypatch):
    def stopped():
        raise KeyboardInterrupt

    makers = {"worlds": round_of(7), "ppo": stopped}
    monkeypatch.setattr(accelerator, "contestants", lambda args, num_envs: makers)
    args = accelerator.Args(num_envs=(2,), rounds=1, out=tmp_path / "a.json")
    with pytest.raises(KeyboardInterrupt):
        accelerator.main(args)
    assert [row["what"] for row in json.loads(args.out.read_text())["rows"]] == ["worlds"]


@pytest.mark.parametrize("num_envs", accelerator.Args().num_envs)
def test_sizes_divide(num_envs):
    """Each contestant's arguments are ones that its script takes; nothing is made here."""
    args, fields = accelerator.Args(), {}

    def train_ours(script, **given):
        fields[script.__name__] = script.Args(**given)
        return None, num_envs * args.num_steps

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accelerator.speed, "train_ours", train_ours)
        makers = accelerator.contestants(args, num_envs)
        assert makers["ppo"]()[1] == makers["dqn"]()[1] == num_envs * args.num_steps
    ppo, dqn = fields["ellm_ppo"], fields["ellm_dqn"]
    assert ppo.minibatch_size >= 2048 and ppo.num_updates >= 1
    assert dqn.gradient_steps * dqn.sample_size == dqn.batch_size and dqn.target_period == 1
    assert dqn.buffer_steps >= 2 * args.num_steps


def test_the_fastest_number_of_worlds():
    speeds = {(256, "ppo"): 5.0, (1024, "ppo"): 9.0, (4096, "ppo"): 7.0, (256, "dqn"): 1.0}
    rows = [
        {"what": what, "num_envs": number, "steps_per_second": value}
        for (number, what), value in speeds.items()
    ]
    assert accelerator.fastest(rows) == {"ppo": 1024, "dqn": 256}

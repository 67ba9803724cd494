"""Checkpoints: bit-exact, whole after a kill, refused when wrong or damaged."""

import os
import random
import shutil
import signal
import subprocess
import time

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lab.checkpoint import Checkpoints
from lab.errors import UserError
from tests.helpers.processes import python


@flax.struct.dataclass
class State:
    """A state with every kind of leaf."""

    params: dict
    optimiser: tuple
    key: jax.Array
    keys: jax.Array
    nothing: None = None


def make_state(seed: int) -> State:
    """Make a state from a seed."""
    rng = np.random.default_rng(seed)
    params = {
        "kernel": jnp.asarray(rng.standard_normal((64, 64)), jnp.float32)
        .at[0, 0]
        .set(jnp.nan)
        .at[0, 1]
        .set(-0.0),
        "half": jnp.asarray(rng.standard_normal(7), jnp.bfloat16),
        "scalar": jnp.float32(rng.random()),
        "mask": jnp.asarray(rng.random(9) < 0.5),
        "packed": jnp.asarray(rng.integers(0, 2**32, (3, 4), dtype=np.uint32)),
        "empty": jnp.zeros((0, 3), jnp.int32),
        "host": rng.integers(0, 9, 5, dtype=np.int32),
    }
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)).init(params["kernel"])
    return State(params, optimiser, jax.random.key(seed), jax.random.split(jax.random.key(seed), 4))


def same_bits(one, two) -> bool:
    """Return whether two trees are equal bit for bit."""

    def bits(leaf):
        is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        return str(leaf.dtype), array.shape, array.tobytes()

    return jax.tree.structure(one) == jax.tree.structure(two) and all(
        bits(a) == bits(b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    )


def test_restore_is_bit_exact_and_the_last_two_are_kept(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() is None
        with pytest.raises(UserError, match="no checkpoint"):
            checkpoints.restore(make_state(0))
        for step in (1, 2, 3):
            assert checkpoints.save(step, make_state(step), {"goals": ["chop tree"], "step": step})
        assert not checkpoints.save(3, make_state(4), {})
        with pytest.raises(ValueError, match="before the newest"):
            checkpoints.save(2, make_state(2), {})
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 3 and sorted(os.listdir(tmp_path)) == ["2", "3"]
        state, host = checkpoints.restore(make_state(9))
        assert same_bits(state, make_state(3))
        assert host == {"goals": ["chop tree"], "step": 3} == checkpoints.host()
        assert jax.random.uniform(state.key) == jax.random.uniform(jax.random.key(3))
        state, _ = checkpoints.restore(jax.eval_shape(lambda: make_state(0)), step=2)
        params = {**state.params, "host": make_state(2).params["host"]}
        assert same_bits(state.replace(params=params), make_state(2))
        assert checkpoints.save(4, state, {})


def test_wrong_checkpoints_are_refused(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"a": jnp.zeros(3), "b": jnp.zeros(2)}, {})
        for target in (
            {"a": jnp.zeros(4), "b": jnp.zeros(2)},
            {"a": jnp.zeros(3, jnp.int32), "b": jnp.zeros(2)},
            {"a": jnp.zeros(3)},
            {"a": jnp.zeros(3), "b": jnp.zeros(2), "c": jnp.zeros(1)},
            {"a": jnp.zeros(3), "b": {"x": jnp.zeros(2)}},
        ):
            with pytest.raises(UserError, match="another program or configuration") as caught:
                checkpoints.restore(target)
            assert "\n" not in str(caught.value)
        with pytest.raises(TypeError, match="is a int"):
            checkpoints.save(2, {"a": 3}, {})
        with pytest.raises(TypeError):
            checkpoints.save(2, {"a": jnp.zeros(3)}, {"object": object()})
        assert checkpoints.latest_step() == 1


def test_damaged_checkpoint_is_refused(tmp_path):
    state = {"a": jnp.arange(50_000.0)}
    Checkpoints(tmp_path / "whole").save(1, state, {"n": 1})
    files = [
        f for f in (tmp_path / "whole" / "1").rglob("*") if f.is_file() and f.stat().st_size > 0
    ]
    largest = max(files, key=lambda file: file.stat().st_size)
    metadata = next(
        file for file in files if file.parent.name == "host" and file.name == "metadata"
    )

    def cut(data: bytes) -> bytes:
        return data[: len(data) // 2]

    def flip_a_bit(data: bytes) -> bytes:
        middle = len(data) // 2
        return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]

    for victim, spoil in (
        (largest, cut),
        (largest, flip_a_bit),
        (metadata, cut),
        (metadata, lambda data: b"{}"),
    ):
        data = victim.read_bytes()
        victim.write_bytes(spoil(data))
        with (
            Checkpoints(tmp_path / "whole") as checkpoints,
            pytest.raises(UserError, match="damaged") as caught,
        ):
            checkpoints.restore(state)
        assert "\n" not in str(caught.value)
        victim.write_bytes(data)
    with Checkpoints(tmp_path / "whole") as checkpoints:
        assert same_bits(checkpoints.restore(state)[0], state)


WRITER = """
import sys
import jax.numpy as jnp
from lab.checkpoint import Checkpoints
with Checkpoints(sys.argv[1]) as checkpoints:
    step = checkpoints.latest_step() or 0
    while True:
        step += 1
        state = {"a": jnp.full((500, 500), step), "b": jnp.full(9, step)}
        checkpoints.save(step, state, {"step": step})
        print(step, flush=True)
"""


@pytest.mark.slow
def test_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    rng, reported = random.Random(0), 0
    target = {"a": jnp.zeros((500, 500), int), "b": jnp.zeros(9, int)}
    for _ in range(5):
        process = python(WRITER, str(tmp_path), stdout=subprocess.PIPE)
        try:
            first = int(process.stdout.readline())
            time.sleep(rng.random() * 0.15)
        finally:
            process.send_signal(signal.SIGKILL)
            rest = process.communicate()[0].split("\n")
        assert first > reported  # went on from where the killed one was
        reported = max([first, *(int(line) for line in rest[:-1])])
        with Checkpoints(tmp_path) as checkpoints:
            state, host = checkpoints.restore(target)
            assert checkpoints.latest_step() >= reported
        step = host["step"]
        assert step == checkpoints.latest_step()
        assert (state["a"] == step).all() and (state["b"] == step).all()


def test_restore_to_several_devices(tmp_path):
    code = """
import sys
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from lab.checkpoint import Checkpoints
mesh = jax.make_mesh((2,), ("worlds",))
split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("worlds",), ()))
state = {"x": jax.device_put(jnp.arange(8.0).reshape(4, 2), split),
         "p": jax.device_put(jnp.ones(3), whole),
         "k": jax.device_put(jax.random.split(jax.random.key(0), 4), split)}
with Checkpoints(sys.argv[1]) as checkpoints:
    checkpoints.save(1, state, {})
    restored, _ = checkpoints.restore(state)
for name in state:
    assert restored[name].sharding.is_equivalent_to(state[name].sharding, state[name].ndim), name
    assert (restored[name] == state[name]).all()
"""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    process = python(code, str(tmp_path), env=flags, stderr=subprocess.PIPE)
    _, error = process.communicate()
    assert process.returncode == 0, error[-2000:]


@pytest.mark.parametrize(
    "name", ["r[1]", "r*?", "a b", "ü", "%20#", "{x}", "-r", "gs:x", "~$HOME", "a\nb"]
)
def test_odd_paths_hold_whole_checkpoints(tmp_path, name):
    state = make_state(1)
    with Checkpoints(tmp_path / name / "checkpoints") as checkpoints:
        assert checkpoints.save(3, state, {"a": 1})
    with Checkpoints(tmp_path / name / "checkpoints") as checkpoints:
        restored, host = checkpoints.restore(state)
    assert same_bits(restored, state) and host == {"a": 1}


@pytest.mark.parametrize("lost", ["arrays", "header", "host"])
def test_a_save_that_wrote_less_is_seen_at_once(tmp_path, monkeypatch, lost):
    state = make_state(1)
    with Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(1, state, {"a": 1})
        check, place = checkpoints._check_written, tmp_path / "run" / "2"

        def lose(*written):
            if lost == "arrays":
                shutil.rmtree(place / "arrays")
            elif lost == "header":
                next((place / "arrays").glob("*/.zarray")).write_text("{}")
            else:
                (place / "host" / "metadata").write_text("{}")
            check(*written)

        monkeypatch.setattr(checkpoints, "_check_written", lose)
        with pytest.raises(UserError, match="was not written whole|is damaged"):
            checkpoints.save(2, state, {"a": 2})

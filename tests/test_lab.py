"""Run directories, metrics, progress, checkpoints, films, plots and the command line's exit codes."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from lab import film, plots
from lab.checkpoint import Checkpoints
from lab.cli import run_cli
from lab.errors import UserError
from lab.film import Frame, draw_frame, make_film
from lab.progress import Progress
from lab.run import CONFIG, METRICS, Run, read_config, read_metrics

ROOT = Path(__file__).resolve().parent.parent


def python(code: str, *arguments: str, **options) -> subprocess.Popen:
    """Start a Python process in the repository."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **options)


# ---- run directories


def test_config_records_arguments_and_environment(tmp_path):
    with Run(
        tmp_path / "r",
        {"seed": 1, "path": Path("a/b")},
        {"prompts": {"p": "ab12"}},
        script=ROOT / "baselines" / "x.py",
    ) as run:
        assert not run.resuming
    config = read_config(tmp_path / "r")
    assert config["arguments"] == {"seed": 1, "path": "a/b"} and config["prompts"] == {"p": "ab12"}
    assert config["packages"]["jax"] == jax.__version__ and config["device_count"] == jax.device_count()
    assert config["script"] == "baselines/x.py" and "git_commit" in config and config["start_time"]
    assert not list((tmp_path / "r").glob("*.tmp"))


def test_git_commit_of_the_scripts_repository(tmp_path):
    repo = tmp_path / "repo"
    repo.mkdir()
    (repo / "script.py").write_text("pass\n")

    def git(*command):
        identity = ("-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false")
        return subprocess.run(["git", *identity, *command], cwd=repo, check=True, capture_output=True, text=True)

    Run(tmp_path / "before", {}, script=repo / "script.py").close()
    assert read_config(tmp_path / "before")["git_commit"] is None
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    Run(tmp_path / "clean", {}, script=repo / "script.py").close()
    (repo / "fork.py").write_text("pass\n")
    Run(tmp_path / "dirty", {}, script=repo / "script.py").close()
    clean, dirty = read_config(tmp_path / "clean"), read_config(tmp_path / "dirty")
    assert clean["git_commit"] == dirty["git_commit"] == git("rev-parse", "HEAD").stdout.strip()
    assert clean["git_dirty"] is False and dirty["git_dirty"] is True


def test_another_configuration_is_refused_and_nothing_written(tmp_path):
    config = {"seed": 1, "gamma": 0.9, "track": "none"}
    Run(tmp_path, config).close()
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(UserError, match=r"gamma is 0\.9 there, 0\.95 here"):
        Run(tmp_path, {**config, "gamma": 0.95})
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_free_and_unlisted_fields_may_differ(tmp_path):
    Run(tmp_path, {"seed": 1, "track": "none", "num_threads": 2}, {"prompts": "a"}).close()
    changed = {"seed": 1, "track": "none", "num_threads": 4}
    Run(tmp_path, changed, {"prompts": "b"}, free={"num_threads"}).close()
    with Run(tmp_path, changed, {"prompts": "b"}, identity=["seed"]) as run:
        assert run.resuming
    config = read_config(tmp_path)
    assert config["arguments"]["num_threads"] == 2 and config["prompts"] == "a"
    assert [(part["arguments"], part["prompts"]) for part in config["resumed"]] == [({"num_threads": 4}, "b")] * 2
    with pytest.raises(UserError, match="prompts is 'a' there, 'b' here"):
        Run(tmp_path, changed, {"prompts": "b"}, identity=["seed", "prompts"])


def test_directory_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="thesis.tex"):
        Run(tmp_path, {})
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match="is a file"):
        Run(tmp_path / "thesis.tex", {})
    half = tmp_path / "half"  # a run killed while config.json was being written
    half.mkdir()
    (half / (CONFIG + ".tmp")).write_text("{")
    Run(half, {"seed": 1}).close()
    assert read_config(half)["arguments"] == {"seed": 1}


@pytest.mark.skipif(sys.platform == "win32", reason="no fcntl")
def test_two_processes_cannot_share_a_run(tmp_path):
    with Run(tmp_path, {}):
        code = "import sys; from lab.run import Run; Run(sys.argv[1], {})"
        _, error = python(code, str(tmp_path), stderr=subprocess.PIPE).communicate()
        assert "another process is running" in error


def test_unknown_and_missing_trackers(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="tensorboard, wandb"):
        Run(tmp_path / "a", {}, track="mlflow")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install wandb"):
        Run(tmp_path / "b", {}, track="wandb")
    assert not list(tmp_path.iterdir())


def test_tensorboard_receives_the_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for steps in ((1, 2, 3), (2, 4)):  # the second process resumes from a checkpoint at step 1
        with Run(tmp_path, {}, track="tensorboard") as run:
            for step in steps:
                run.log({"env_steps": step, "success_rates": {"collect wood": step / 10}})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = [(event.step, round(event.value, 6)) for event in events.Scalars("success_rates/collect wood")]
    assert found == [(1, 0.1), (2, 0.2), (4, 0.4)]


# ---- metrics


def test_metrics_round_trip(tmp_path):
    values = {
        "third": 1 / 3,
        "single": np.float32(0.1),
        "array": jnp.arange(2),
        "nan": float("nan"),
        "none": None,
    }
    with Run(tmp_path, {}) as run:
        run.log({"env_steps": 1, **values, "time": {"sps": np.inf}})
        first = read_metrics(tmp_path)  # flushed: to be seen while the run goes on
        run.log({"env_steps": 2})
    assert first == read_metrics(tmp_path)[:1] and len(read_metrics(tmp_path)) == 2
    line = first[0]
    assert line["third"] == 1 / 3 and np.float32(line["single"]) == np.float32(0.1) and line["array"] == [0, 1]
    assert line["nan"] is None and line["none"] is None and line["time"] == {"sps": None}
    with pytest.raises(TypeError), Run(tmp_path, {}) as run:
        run.log({"object": object()})


def test_truncation_drops_what_came_after_the_checkpoint(tmp_path):
    with Run(tmp_path, {}) as run:
        for step in (10, 20, 30):
            run.log({"env_steps": step, "update": step // 10, "loss": 0.1 * step})
        kept = (tmp_path / METRICS).read_bytes().splitlines()[:2]
        run.truncate_after(20)
        assert (tmp_path / METRICS).read_bytes().splitlines() == kept
        run.truncate_after(1, key="update")
        run.log({"env_steps": 40, "update": 4})
    assert [line["env_steps"] for line in read_metrics(tmp_path)] == [10, 40]


def test_line_torn_by_a_kill_is_dropped(tmp_path):
    with Run(tmp_path, {}) as run:
        run.log({"env_steps": 1})
        run.log({"env_steps": 2})
    with open(tmp_path / METRICS, "a") as file:
        file.write('{"env_steps": 3, "lo')
    assert [line["env_steps"] for line in read_metrics(tmp_path)] == [1, 2]
    with Run(tmp_path, {}) as run:
        run.log({"env_steps": 3})
    assert [line["env_steps"] for line in read_metrics(tmp_path)] == [1, 2, 3]


def test_damaged_files_are_named(tmp_path):
    Run(tmp_path, {}).close()
    (tmp_path / METRICS).write_text('{"env_steps": 1}\ngarbage\n{"env_steps": 2}\n')
    with pytest.raises(UserError, match="line 2"):
        read_metrics(tmp_path)
    (tmp_path / CONFIG).write_text("{")
    with pytest.raises(UserError, match=CONFIG):
        Run(tmp_path, {})
    with pytest.raises(UserError, match="is it the directory of a run"):
        read_metrics(tmp_path / "nowhere")


def test_summary_replaces_the_one_before(tmp_path):
    with Run(tmp_path, {}) as run:
        run.write_summary({"achievements_per_episode": np.float32(2.5)})
        run.write_summary({"achievements_per_episode": jnp.float32(3.5)})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"achievements_per_episode": 3.5}


# ---- progress


class Terminal(io.StringIO):
    """A text file which says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("make", [io.StringIO, Terminal])
def test_progress_shows_compiling_at_once_and_then_numbers(make):
    file = make()
    with Progress(1000, file=file) as progress:
        assert "compiling" in file.getvalue() and "0/1,000 steps" in file.getvalue()
        progress.update(100)
        progress.waiting(12)
        time.sleep(0.02)
        progress.update(200, 3.14159, 1234, 56)
        progress.write("a note")
    last = file.getvalue().splitlines()[-1]
    for part in (
        "200/1,000 steps",
        "steps/s",
        "left",
        "3.14 achievements/episode",
        "1,234 scenes",
        "56 queries waiting",
    ):
        assert part in last
    assert "a note" in file.getvalue()


def test_progress_without_a_terminal_prints_rarely():
    file = io.StringIO()
    with Progress(1000, file=file) as progress:
        for step in range(1000):
            progress.update(step)
    assert len(file.getvalue().splitlines()) == 2  # the first and the last


# ---- checkpoints


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
        "kernel": jnp.asarray(rng.standard_normal((64, 64)), jnp.float32).at[0, 0].set(jnp.nan).at[0, 1].set(-0.0),
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
    """Tell whether two trees are equal bit for bit."""

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
        assert same_bits(state, make_state(3)) and host == {"goals": ["chop tree"], "step": 3} == checkpoints.host()
        assert jax.random.uniform(state.key) == jax.random.uniform(jax.random.key(3))
        state, _ = checkpoints.restore(jax.eval_shape(lambda: make_state(0)), step=2)
        without_host_array = state.replace(params={**state.params, "host": make_state(2).params["host"]})
        assert same_bits(without_host_array, make_state(2))
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
    files = [f for f in (tmp_path / "whole" / "1").rglob("*") if f.is_file() and f.stat().st_size > 0]
    largest = max(files, key=lambda file: file.stat().st_size)
    metadata = next(file for file in files if file.parent.name == "host" and file.name == "metadata")
    for victim, spoil in (
        (largest, lambda data: data[: len(data) // 2]),
        (
            largest,
            lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :],
        ),
        (metadata, lambda data: data[: len(data) // 2]),
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
        checkpoints.save(step, {"a": jnp.full((500, 500), step), "b": jnp.full(9, step)}, {"step": step})
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
        assert step == checkpoints.latest_step() and (state["a"] == step).all() and (state["b"] == step).all()


def test_restore_to_several_devices(tmp_path):
    code = """
import sys
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from lab.checkpoint import Checkpoints
mesh = jax.make_mesh((2,), ("worlds",))
split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("worlds",), ()))
state = {"x": jax.device_put(jnp.arange(8.0).reshape(4, 2), split), "p": jax.device_put(jnp.ones(3), whole),
         "k": jax.device_put(jax.random.split(jax.random.key(0), 4), split)}
with Checkpoints(sys.argv[1]) as checkpoints:
    checkpoints.save(1, state, {})
    restored, _ = checkpoints.restore(state)
for name in state:
    assert restored[name].sharding.is_equivalent_to(state[name].sharding, state[name].ndim), name
    assert (restored[name] == state[name]).all()
"""
    flags = "--xla_force_host_platform_device_count=2"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-2000:]


# ---- films


def make_frame(step: int = 0, **changes) -> Frame:
    """Make a frame with a picture of coloured blocks."""
    rng = np.random.default_rng(step % 3)
    image = np.kron(rng.integers(0, 255, (3, 3, 3), np.uint8), np.ones((24, 24, 1), np.uint8))
    values = dict(
        image=image,
        step=step,
        scene="You see grass, tree and cow. You have in your inventory wood.",
        goals=(("chop tree", False), ("eat cow", False)),
        action="chop tree",
        caption="chop tree",
        reward=0.0,
        rewarded_goal=None,
        achievements=("collect wood",),
        new_achievement=None,
    )
    return Frame(**{**values, **changes})


def test_film_has_all_frames_with_their_pictures(tmp_path):
    frames = [make_frame(step, new_achievement="collect wood" if step == 2 else None) for step in range(6)]
    make_film(frames, tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as gif:
        assert gif.n_frames == 6 and gif.info["loop"] == 0
        durations = []
        for step, frame in enumerate(frames):
            gif.seek(step)
            durations.append(gif.info["duration"])
            shown, wanted = np.asarray(gif.convert("RGB"), int), np.asarray(draw_frame(frame), int)
            assert shown.shape == wanted.shape
            game = np.abs(shown - wanted)[:, : shown.shape[0]]
            assert game.max() <= 40 and np.abs(shown - wanted).mean() < 4  # few colours, but the right ones
    assert durations[2] > durations[1] and durations[-1] > durations[0] and durations[0] in (120, 130)
    assert [file.name for file in tmp_path.iterdir()] == ["film.gif"]


def test_film_marks_what_was_achieved_rewarded_and_unlocked():
    plain = np.asarray(draw_frame(make_frame()), int)

    def changed(**changes):
        return np.argwhere(np.abs(np.asarray(draw_frame(make_frame(**changes)), int) - plain).sum(-1) > 0)

    achieved = changed(goals=(("chop tree", True), ("eat cow", False)))
    second = changed(goals=(("chop tree", False), ("eat cow", True)))
    rewarded = changed(rewarded_goal="eat cow")
    assert len(achieved) and len(second)
    assert second[:, 0].min() > achieved[:, 0].max()  # another line of the list
    assert rewarded[:, 0].min() > achieved[:, 0].max()  # that line is lit,
    assert rewarded[:, 0].max() > second[:, 0].max()  # and the reward names it
    assert len(changed(new_achievement="collect wood")) and len(changed(reward=1.0))


def test_film_texts_stay_in_their_places():
    long = "extraordinarily " * 30
    frame = make_frame(
        step=10**6,
        scene=long,
        goals=tuple((f"{long} {i}", i % 2 == 0) for i in range(40)),
        action=long,
        caption="x" * 300,
        rewarded_goal=f"{long} 33",
        achievements=tuple(f"achievement number {i}" for i in range(60)),
    )
    picture = np.asarray(draw_frame(frame), int)
    rim = np.abs(picture - np.array(film.BACKGROUND)).sum(-1) > 0
    assert not rim[:, -film.MARGIN + 8 :].any() and not rim[-3:, picture.shape[0] :].any()
    assert not rim[:, picture.shape[0] : picture.shape[0] + film.MARGIN - 6].any()


def test_wrapping_and_clipping():
    assert film.wrap("", 100, 14, 3) == []
    lines = film.wrap("one two three four five six seven eight nine ten", 90, 14, 2)
    assert len(lines) == 2 and lines[1].endswith("…")
    for line in [*lines, film.clip("w" * 100, 90, 14), *film.wrap("w" * 100 + " end", 90, 14, 4)]:
        assert 0 < film._width(line, 14) <= 90
    assert film.clip("short", 90, 14) == "short"


def test_goals_beyond_the_room_are_counted():
    goals = [(f"goal {i}", i < 6) for i in range(10)]
    assert film.choose_goals(goals, None, 10) == (goals, 0)
    kept, left_out = film.choose_goals(goals, "goal 3", 4)
    assert [goal for goal, _ in kept] == ["goal 3", "goal 6", "goal 7"] and left_out == 7


# ---- plots


def log_runs(path: Path, names: tuple[str, ...] = ("collect wood", "place table")) -> list[Path]:
    """Log two little runs."""
    for seed in (0, 1):
        with Run(path / str(seed), {"seed": seed}) as run:
            for i in range(1, 30):
                rates = dict.fromkeys(names, i / 30) if i > 3 else None
                mean = sum(rates.values()) if rates else None
                line = {
                    "env_steps": 100 * i,
                    "episodes": 2,
                    "achievements_per_episode": mean,
                    "success_rates": rates,
                }
                run.log(line)
    return [path / "0", path / "1"]


def ink(path: Path) -> float:
    """Return the share of pixels that are not white."""
    with Image.open(path) as image:
        return float((np.asarray(image.convert("L")) < 250).mean())


def test_plots_draw_the_runs(tmp_path):
    runs = log_runs(tmp_path)
    with Run(tmp_path / "empty", {}) as run:
        run.log({"env_steps": 1, "episodes": 0, "achievements_per_episode": None, "success_rates": None})
    plots.learning_curve(runs[0], tmp_path / "one.png")
    plots.learning_curve(runs, tmp_path / "two.png")
    plots.learning_curve(tmp_path / "empty", tmp_path / "none.png")
    plots.compare_curves({"llm": runs, "oracle": runs[0], "empty": tmp_path / "empty"}, tmp_path / "compare.png")
    assert ink(tmp_path / "one.png") > 1.2 * ink(tmp_path / "none.png") > 0 and ink(tmp_path / "two.png") > 0.01
    assert ink(tmp_path / "compare.png") > 0.01 and not list(tmp_path.glob("*.tmp"))


def test_smoothing_weighs_by_episodes_and_bridges_gaps():
    steps, values = np.array([0.0, 1.0, 1e9]), np.array([0.0, 1.0, 5.0])
    weights = np.array([1.0, 3.0, 1.0])
    smoothed = plots.smooth(steps, values, weights, np.array([0.5, 4e8, 1e9]), 1.0)
    np.testing.assert_allclose(smoothed, [0.75, 1.0, 5.0])


# ---- command line


@dataclass(frozen=True)
class Args:
    """Arguments of a toy script."""

    how: str = "well"


def toy_main(args: Args) -> None:
    """End as told."""
    if args.how == "error":
        raise UserError("no such thing:\nmend it")
    if args.how == "interrupt":
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    "arguments, code, said",
    [
        ([], 0, ""),
        (["--how", "error"], 2, "error: no such thing: mend it\n"),
        (["--how", "interrupt"], 130, "to go on from the last checkpoint: python toy.py --how interrupt"),
        (["--colour", "red"], 2, "--colour"),
    ],
)
def test_exit_codes(monkeypatch, capsys, arguments, code, said):
    monkeypatch.setattr(sys, "argv", ["toy.py", *arguments])
    left = 0
    try:
        run_cli(toy_main, Args)
    except SystemExit as exit_:
        left = exit_.code
    error = capsys.readouterr().err
    assert left == code and said in error and "Traceback" not in error


def test_interrupt_names_the_run_directory_chosen_for_the_user(monkeypatch, capsys, tmp_path):
    def main(args):
        with Run(tmp_path / "chosen", {}):
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["toy.py"])
    with pytest.raises(SystemExit, match="130"):
        run_cli(main, Args)
    assert f"python toy.py --run-dir {tmp_path / 'chosen'}" in capsys.readouterr().err

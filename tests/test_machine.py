"""What machines bring along: devices, caches, backends, terminals, disks; each told in a line."""

import errno
import io
import os
import pwd
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import jax
import pytest

from lab import machine
from lab.checkpoint import Checkpoints
from lab.cli import run_cli
from lab.errors import UserError
from lab.run import Run
from tests.toy.world import ToyWorld
from tests.training import train

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Args:
    """Arguments of a script that has none."""


def python(*words: str, **environment: str) -> subprocess.CompletedProcess:
    """Run Python in the repository's folder with other variables in the environment."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_jax_must_have_a_device():
    done = python("-c", "from lab.machine import set_up_jax; set_up_jax()", JAX_PLATFORMS="cuda")
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("lab.errors.UserError: JAX_PLATFORMS=cuda: JAX finds no such device")
    assert last.endswith("or set JAX_PLATFORMS=cpu")


def test_jax_must_compute_in_32_bits():
    with jax.enable_x64(True), pytest.raises(UserError, match="^JAX_ENABLE_X64 is set.*unset it"):
        machine.set_up_jax()


def no_home(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let the user have no entry in the table of users, as in a container."""
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)


def home_is_full(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let nothing be written below the user's home: here it is a file."""
    (folder / "home").touch()
    monkeypatch.setenv("HOME", str(folder / "home"))


@pytest.mark.parametrize("spoil", [no_home, home_is_full])
def test_without_a_cache_a_run_goes_on_and_a_model_is_not_converted(
    monkeypatch, capsys, tmp_path, spoil
):
    before = jax.config.jax_compilation_cache_dir
    spoil(monkeypatch, tmp_path)
    machine.keep_programs()
    assert jax.config.jax_compilation_cache_dir == before
    assert capsys.readouterr().err.startswith("compiled programs are not kept: no cache in ~/.cac")
    with pytest.raises(UserError, match="set HOME to a folder of yours"):
        machine.cache_folder("models")


def test_backend_of_a_notebook_does_not_matter():
    done = python("-c", "import lab.plots", MPLBACKEND="module://no_such_package.backend_inline")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_terminals_of_any_encoding(monkeypatch, encoding):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "argv", ["toy.py"])
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    run_cli(lambda args: print("2.5 ± 0.1 … 木"), Args)
    sys.stdout.flush()
    said = {"ascii": "2.5 +- 0.1 ... ?", "cp1252": "2.5 ± 0.1 … ?", "utf-8": "2.5 ± 0.1 … 木"}
    assert written.getvalue().decode(encoding).strip() == said[encoding]


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/x/metrics.jsonl")
LOCKED = PermissionError(errno.EACCES, os.strerror(errno.EACCES), "runs")
IN_A_LIBRARY = ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device [source]")
NO_MEMORY = RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 400000 bytes.")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FULL, "error: No space left on device: runs/x/metrics.jsonl: free some space; the same"),
        (LOCKED, "error: Permission denied: runs: give a path that can be written"),
        (IN_A_LIBRARY, "error: No space left on device: free some space"),
        (NO_MEMORY, "error: Out of memory: give fewer --num-envs"),
    ],
)
def test_faults_of_the_machine_are_one_line(monkeypatch, capsys, error, said):
    def main(args):
        raise error

    monkeypatch.setattr(sys, "argv", ["toy.py"])
    with pytest.raises(SystemExit, match="2"):
        run_cli(main, Args)
    told = capsys.readouterr().err
    assert told.startswith(said) and told.count("\n") == 1


def test_other_errors_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["toy.py"])
    with pytest.raises(ZeroDivisionError):
        run_cli(lambda args: 1 / 0, Args)


def test_disk_that_fills_at_a_checkpoint_leaves_the_one_before(
    monkeypatch, capsys, caplog, tmp_path
):
    """A limit to the size of files stands for a full disk."""
    fields = {"total_timesteps": 4 * 8 * 6, "checkpoint_every": 2, "goal_source": "oracle"}
    log, limit = Run.log, resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self, metrics):
        log(self, metrics)
        if metrics["update"] == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (512, limit[1]))

    monkeypatch.setattr(sys, "argv", ["toy.py"])
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # put back what a failure mutes
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="2"):
        patch.setattr(Run, "log", fill)
        try:
            run_cli(lambda args: train(patch, ToyWorld(), tmp_path, "run", **fields), Args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    told = [line for line in capsys.readouterr().err.splitlines() if line[:1] != "["]  # progress
    assert len(told) == 1 and told[0].startswith("error: File too large") and not caplog.records
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() == 2
    _, _, lines = train(monkeypatch, ToyWorld(), tmp_path, "run", **fields)
    assert [line["update"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_wandb_without_a_key_is_one_line_and_leaves_nothing(monkeypatch, tmp_path):
    def init(**_):
        raise RuntimeError("api_key not configured (no-tty). call wandb.login(key=[your_api_key])")

    wandb = ModuleType("wandb")
    wandb.init, wandb.__spec__ = init, object()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with pytest.raises(UserError, match="--track wandb .*api_key not configured.*WANDB_API_KEY"):
        Run(tmp_path / "run", {"seed": 1}, track="wandb")
    with Run(tmp_path / "run", {"seed": 2}):
        pass


def test_sentence_encoder_reports_to_nobody(tmp_path):
    """onnxruntime keeps a database at home of what it is going to send."""
    code = "from goals.sentence_encoder import OnnxNetwork; OnnxNetwork().encode(['chop tree'])"
    done = python("-c", code, HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert not [path for path in tmp_path.rglob("*") if "onnxruntime" in path.name]


def test_baselines_run_as_files():
    done = python("baselines/ppo_rnd.py", "--num-envs", "0")
    assert done.returncode == 2 and done.stderr.startswith("error: --num-envs 0: give")

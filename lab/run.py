"""A run's directory, and tracking by TensorBoard or wandb.

It holds config.json, metrics.jsonl, evaluations.jsonl and summary.json.
"""

import hashlib
import importlib
import importlib.util
import itertools
import json
import math
import os
import platform
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np

from lab.errors import UserError, one_line

try:
    import fcntl
except ImportError:  # not on Windows: there two processes in one run directory go unnoticed
    fcntl = None

PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "chex", "numpy", "orbax-checkpoint"),
    *("transformers", "onnxruntime"),
)
CONFIG, METRICS, SUMMARY, LOCK = "config.json", "metrics.jsonl", "summary.json", ".lock"
EVALUATIONS = "evaluations.jsonl"
TEMPORARY = ".tmp"


class Run:
    """One run's directory, made anew or opened again to go on.

    `config` holds the arguments, `extra` other facts to record (prompt hashes, language model, the
    name of the score). To open an existing run every field named in `identity` (of `config` or
    `extra`; default: all of `config`) must be equal, save those in `free`. `packages` are PyPI
    names whose versions are recorded beside those of PACKAGES. Raises UserError, before anything is
    written, for another configuration, for a directory of something else, for a run that another
    process is in, and for a tracker not installed. `path` is the directory; `resuming` says whether
    the run was there before.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike,
        config: Mapping[str, Any],
        extra: Mapping[str, Any] | None = None,
        identity: Collection[str] | None = None,
        free: Collection[str] = (),
        track: str = "none",
        script: str | os.PathLike | None = None,
        packages: Collection[str] = (),
    ):
        self.path = Path(run_dir)
        script = Path(sys.argv[0] if script is None else script)
        _check_tracker(track)
        arguments, extra = to_json(config), to_json(extra or {})
        identity = arguments if identity is None else identity
        names = [name for name in identity if name not in free]
        self.resuming = _is_run(self.path)
        if self.resuming:
            record = read_json(self.path / CONFIG)
            _check_same(self.path, record, {**extra, **arguments}, names)
        self._lock = _lock(self.path)
        facts = {**_environment(script, packages), **extra}
        if self.resuming:
            changed = _differences(record["arguments"], arguments)
            news = {"arguments": changed, **_differences(record, facts)}
            record.setdefault("resumed", []).append(news)
        else:
            record = {"run_id": uuid.uuid4().hex[:12], "arguments": arguments, **facts}
        write_json(self.path / CONFIG, record)
        self._files: dict[str, TextIO] = {}  # open for appending, by name
        if self.resuming:
            self.truncate_after(math.inf)
        self._tracker = None
        if track != "none":
            try:
                self._tracker = TRACKERS[track](self.path, record, self.resuming)
            except UserError:
                self.discard()  # so that the next try need not be of the same configuration
                self.close()
                raise

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, _, error: BaseException | None, __) -> None:
        if isinstance(error, KeyboardInterrupt):
            error.add_note(f"--run-dir {self.path}")  # lab.cli tells the user
        self.close()

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl; it has "env_steps".

        What depends on the clock belongs under "time": all else repeats exactly.
        """
        self._append(METRICS, metrics)

    def log_evaluation(self, statistics: Mapping[str, Any]) -> None:
        """Append a held-out evaluation to evaluations.jsonl; it has "env_steps".

        Log it before the checkpoint of the same step: a resumed run then has each exactly once.
        """
        self._append(EVALUATIONS, statistics, prefix="evaluation/")

    def truncate_after(self, env_steps: float) -> None:
        """Drop what was logged beyond `env_steps`, those of the checkpoint that is resumed."""
        self._close_files()
        for name in (METRICS, EVALUATIONS):
            file = self.path / name
            if file.exists():
                kept = [line for line in _read_lines(file) if line["env_steps"] <= env_steps]
                write_text(file, "".join(json.dumps(line) + "\n" for line in kept))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json, replacing the one before in one instant."""
        write_json(self.path / SUMMARY, to_json(summary))

    def discard(self) -> None:
        """Take back a new run of which nothing was logged; a resumed one stays."""
        if not self.resuming and not (self.path / METRICS).exists():
            self.close()
            for name in (CONFIG, LOCK):
                (self.path / name).unlink()
            with suppress(OSError):  # it may hold more by now
                self.path.rmdir()

    def close(self) -> None:
        """Close the files and the tracker and let other processes in; may be called again."""
        self._close_files()
        self._tell_tracker(lambda tracker: tracker.close())
        self._tracker = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _append(self, name: str, content: Mapping[str, Any], prefix: str = "") -> None:
        """Append one line to a file, and send its numbers to the tracker under `prefix`."""
        line = to_json(content)
        if name not in self._files:
            self._files[name] = open(self.path / name, "a", encoding="utf-8")  # noqa: SIM115
        self._files[name].write(json.dumps(line, allow_nan=False) + "\n")
        self._files[name].flush()
        numbers = int(line["env_steps"]), dict(_flatten(line, prefix))
        self._tell_tracker(lambda tracker: tracker.log(*numbers))

    def _tell_tracker(self, tell: Callable[[Any], None]) -> None:
        """Call the tracker, if there is one; when it fails the run goes on without."""
        try:
            if self._tracker is not None:
                tell(self._tracker)
        except Exception as error:  # whatever its package raises: the run has all it needs
            self._tracker = None
            said = f"tracking has failed ({one_line(error)}) and ended: {self.path} has all of it"
            print(said, file=sys.stderr, flush=True)

    def _close_files(self) -> None:
        """Close the files of lines; the next line opens its own again."""
        for file in self._files.values():
            file.close()
        self._files.clear()


def new_run_dir(stem: str | os.PathLike) -> Path:
    """Make a directory of this name, or of the first "name-2", "name-3" ... that is not there.

    Raises UserError where none can be made.
    """
    for number in itertools.count(1):
        path = Path(stem if number == 1 else f"{stem}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise _cannot_write(path, error) from None
        return path


def read_metrics(run_dir: str | os.PathLike) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl, oldest first, without a last line torn by a kill.

    NaN was logged as None.
    """
    file = Path(run_dir) / METRICS
    if not file.exists():
        raise UserError(f"no {METRICS} in {run_dir}: is it the directory of a run?")
    return _read_lines(file)


def read_evaluations(run_dir: str | os.PathLike) -> list[dict[str, Any]]:
    """Return the held-out evaluations made during training, oldest first; none is an empty list."""
    file = Path(run_dir) / EVALUATIONS
    return _read_lines(file) if file.exists() else []


def read_config(run_dir: str | os.PathLike) -> dict[str, Any]:
    """Return what config.json records; the arguments stand under "arguments"."""
    file = Path(run_dir) / CONFIG
    if not file.exists():
        raise UserError(f"no {CONFIG} in {run_dir}: is it the directory of a run?")
    return read_json(file)


def read_json(file: Path) -> dict[str, Any]:
    """Parse a JSON file; raises UserError naming it when it is damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file} is damaged ({error}): fix it or choose another --run-dir"
        ) from None


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write readable JSON so that at any instant the file is the old or the new one."""
    write_text(file, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_text(file: Path, text: str) -> None:
    """Write a file so that at any instant it is the old or the new one."""
    temporary = file.with_name(file.name + TEMPORARY)
    with open(temporary, "w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, file)


def to_json(value: Any) -> Any:
    """Turn arrays, paths, sets, tuples into what JSON knows.

    Numbers round-trip; NaN and inf become None.
    """
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(to_json(item) for item in value)
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return to_json(np.asarray(value).tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"cannot log a {type(value).__name__}")


def _read_lines(file: Path) -> list[dict[str, Any]]:
    """Parse a file of JSON lines; raises UserError naming a damaged one."""
    lines, parsed = file.read_text(encoding="utf-8", errors="replace").split("\n"), []
    for number, line in enumerate(lines[:-1], start=1):  # the last piece is empty, or torn
        try:
            parsed.append(json.loads(line))
        except json.JSONDecodeError:
            raise UserError(
                f"{file} line {number} is damaged: delete it to go on without it"
            ) from None
    return parsed


def _is_run(path: Path) -> bool:
    """Return whether a run is there.

    Raises UserError for a file or a directory of something else.
    """
    if "\\" in str(path) and os.sep != "\\":  # which the writers of arrays take for a slash
        raise UserError(f"--run-dir {path} has a backslash in it: choose another --run-dir")
    try:
        str(path).encode()
    except UnicodeEncodeError:  # which the writers of arrays do not take
        name = ascii(str(path))
        said = f"--run-dir {name} has bytes in it that are no text: choose another --run-dir"
        raise UserError(said) from None
    if not path.exists():
        return False
    if not path.is_dir():
        raise UserError(f"{path} is a file: choose another --run-dir")
    found = {item.name for item in path.iterdir()}
    if CONFIG in found:
        return True
    foreign = found - {LOCK, CONFIG + TEMPORARY}  # which a run killed at its birth leaves behind
    if foreign:
        raise UserError(f"{path} holds no run but {min(foreign)}: choose another --run-dir")
    return False


def _check_same(
    path: Path, record: Mapping[str, Any], wanted: Mapping[str, Any], names: Collection[str]
) -> None:
    """Raise UserError naming up to three fields that differ, with both values."""
    missing = "(absent)"
    recorded = {**record, **record.get("arguments", {})}
    pairs = [(name, recorded.get(name, missing), wanted.get(name, missing)) for name in names]
    differing = [f"{name} is {old!r} there, {new!r} here" for name, old, new in pairs if old != new]
    if differing:
        more = f", and {len(differing) - 3} more" if len(differing) > 3 else ""
        listed = "; ".join(differing[:3]) + more
        raise UserError(
            f"{path} holds a run of another configuration ({listed}): choose another --run-dir"
        )


def _cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot write to {path} ({error.strerror}): choose another --run-dir")


def _lock(path: Path) -> TextIO:
    """Take the run for this process, until closed or killed.

    Raises UserError when another process has it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        handle = open(path / LOCK, "w", encoding="utf-8")  # noqa: SIM115, held open on purpose
    except OSError as error:
        raise _cannot_write(path, error) from None
    if fcntl is not None:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            handle.close()
            raise UserError(
                f"another process is running in {path}: choose another --run-dir"
            ) from None
        except OSError:  # a file system without locks
            pass
    return handle


def _environment(script: Path, packages: Collection[str]) -> dict[str, Any]:
    """Collect what a result depends on besides the arguments."""
    script = script.resolve()
    versions = {name: _version(name) for name in (*PACKAGES, *packages)}
    folder, root = script.parent, Path(__file__).resolve().parent.parent
    # New results are no other code.
    status = _git(folder, "status", "--porcelain", "--", ":/", ":(top,exclude)results")
    devices = jax.devices()
    return {
        "script": (script.relative_to(root) if script.is_relative_to(root) else script).as_posix(),
        "script_file": script.as_posix(),
        "script_sha256": sha256(script),
        "start_time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "git_commit": _git(folder, "rev-parse", "HEAD"),
        "git_dirty": None if status is None else bool(status),
        "python": platform.python_version(),
        "packages": {name: version for name, version in versions.items() if version is not None},
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "device_kind": devices[0].device_kind,
        "device_count": len(devices),
    }


def sha256(file: Path) -> str | None:
    """Return the hash of a file, None without one (a script typed at a prompt)."""
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def _git(folder: Path, *command: str) -> str | None:
    """Return git's answer, or None without git, a repository or a commit."""
    try:
        command = ("git", "-C", str(folder), *command)
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    """Return an installed package's version without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _flatten(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of a nested line as ("success_rates/collect wood", 0.5)."""
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield prefix + name, float(value)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is new in `new`."""
    return {name: value for name, value in new.items() if name not in old or old[name] != value}


def _check_tracker(track: str) -> None:
    """Raise UserError for a tracker that is unknown, or whose package is not installed."""
    if track not in ("none", *TRACKERS):
        raise UserError(f"--track {track} is unknown: choose one of none, {', '.join(TRACKERS)}")
    if track != "none" and importlib.util.find_spec(track) is None:
        raise UserError(
            f"--track {track} needs a package that is not installed: pip install {track}"
        )


class TensorBoard:
    """Write event files with TensorBoard's own writer, without TensorFlow or PyTorch."""

    def __init__(self, path: Path, record: dict[str, Any], resuming: bool):
        self._event = importlib.import_module("tensorboard.compat.proto.event_pb2")
        self._summary = importlib.import_module("tensorboard.compat.proto.summary_pb2").Summary
        writer = importlib.import_module("tensorboard.summary.writer.event_file_writer")
        self._writer = writer.EventFileWriter(str(path / "tensorboard"))
        self._first = resuming

    def log(self, env_steps: int, numbers: dict[str, float]) -> None:
        """Write one event at `env_steps`."""
        if self._first:  # makes TensorBoard forget what a killed process wrote from here on
            start = self._event.SessionLog(status=self._event.SessionLog.START)
            event = self._event.Event(wall_time=time.time(), step=env_steps, session_log=start)
            self._writer.add_event(event)
            self._first = False
        values = [
            self._summary.Value(tag=name, simple_value=number) for name, number in numbers.items()
        ]
        event = self._event.Event(
            wall_time=time.time(), step=env_steps, summary=self._summary(value=values)
        )
        self._writer.add_event(event)

    def close(self) -> None:
        """Write what is waiting."""
        self._writer.close()


class WeightsAndBiases:
    """Send the lines to wandb; a resumed run goes on under the same id."""

    def __init__(self, path: Path, record: dict[str, Any], resuming: bool):
        wandb = importlib.import_module("wandb")
        try:
            self._run = wandb.init(
                project="ellm",
                name=path.name,
                id=record["run_id"],
                resume="allow",
                dir=str(path),
                config={name: value for name, value in record.items() if name != "resumed"},
            )
        except Exception as error:  # wandb raises many kinds; most often it has no key
            help_ = "set WANDB_API_KEY (or wandb login), or WANDB_MODE=offline"
            said = str(error).partition("\n")[0]
            raise UserError(f"--track wandb cannot begin ({said}): {help_}") from error
        self._run.define_metric("*", step_metric="env_steps")

    def log(self, env_steps: int, numbers: dict[str, float]) -> None:
        """Send one line; `env_steps` is among the numbers and is the axis."""
        self._run.log({**numbers, "env_steps": env_steps})

    def close(self) -> None:
        """Send what is waiting."""
        self._run.finish()


TRACKERS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}

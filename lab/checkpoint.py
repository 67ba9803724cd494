"""Checkpoints of all that a run needs to go on: arrays by orbax, counters and texts as JSON."""

import json
import logging
import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from lab.errors import UserError, one_line

# Each save would warn that there is no database of arrays to put together: `_open` wants none.
logging.getLogger("absl").addFilter(lambda record: "merge of OCDBT" not in record.getMessage())

# A failed write is told by `save`: asyncio would tell of each of its parts.
logging.getLogger("asyncio").setLevel(logging.CRITICAL)

HEADERS = "arrays/*/.zarray"  # where orbax writes the shape of each array

logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax logs what it then raises


class Checkpoints:
    """The last `keep` checkpoints under `directory`, numbered by step.

    Each is written beside and then put in place: a kill at any instant leaves the old or the new
    one whole. `save` returns when the data are on disk: the caller may donate the state's buffers
    next.
    """

    def __init__(self, directory: str | os.PathLike, keep: int = 2):
        self.path = Path(directory).absolute()
        self._keep, self._writes = keep, False
        self._manager = self._open()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def latest_step(self) -> int | None:
        """Return the step of the newest whole checkpoint, None without one."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, host: dict[str, Any]) -> bool:
        """Write `state` and `host`; return whether anything was written.

        `state` is a pytree of arrays, typed PRNG keys included; `host` is what JSON can hold.
        Nothing is written when the newest checkpoint already has this step. Raises UserError where
        what is on disk afterwards is not what was saved, ValueError for a step before the newest
        one, TypeError for a leaf that is not an array.
        """
        latest = self.latest_step()
        if latest is not None and step <= latest:
            if step == latest:
                return False
            raise ValueError(f"step {step} comes before the newest checkpoint, {latest}")
        if not self._writes:
            self._manager.close()
            self._writes = True
            self._manager = self._open()
        names, leaves = _named_leaves(state)
        manifest = [_describe(name, leaf) for name, leaf in zip(names, leaves, strict=True)]
        for entry, leaf in zip(manifest, leaves, strict=True):
            entry["key"] = str(jax.random.key_impl(leaf)) if _is_key(leaf) else None
        arrays = {_slot(i): _to_array(leaf) for i, leaf in enumerate(leaves) if leaf.size}
        for i, entry in enumerate(manifest):
            entry["crc32"] = _crc32(arrays[_slot(i)]) if _slot(i) in arrays else None
        content = {"manifest": manifest, "host": json.loads(json.dumps(host))}
        arguments = ocp.args.Composite(
            arrays=ocp.args.StandardSave(arrays), host=ocp.args.JsonSave(content)
        )
        with _one_voice():
            self._manager.save(step, args=arguments, force=True)
            self._manager.wait_until_finished()
        self._check_written(step, arrays, content)
        return True

    def host(self, step: int | None = None) -> dict[str, Any]:
        """Return the `host` alone of `step` (default: the newest).

        Raises UserError as `restore` does.
        """
        return self._content(self._existing(step))["host"]

    def restore(self, target: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Return the state saved at `step` (default: the newest), bit for bit, and its `host`.

        `target` has the structure, shapes, dtypes and shardings wanted, in arrays or
        jax.ShapeDtypeStruct. Raises UserError when there is no checkpoint, when it does not fit
        `target`, and when it is damaged.
        """
        step = self._existing(step)
        place, content = self.path / str(step), self._content(step)
        names, leaves = _named_leaves(target)
        saved = [
            {name: entry[name] for name in ("name", "shape", "dtype")}
            for entry in content["manifest"]
        ]
        saved_as = [(entry["crc32"], entry["key"]) for entry in content["manifest"]]
        described = [_describe(name, leaf) for name, leaf in zip(names, leaves, strict=True)]
        misfit = _find_misfit(saved, described)
        if misfit:
            raise UserError(
                f"the checkpoint {place} is of another program or configuration "
                f"({misfit}): choose another --run-dir"
            )
        wanted = {_slot(i): _to_abstract(leaf) for i, leaf in enumerate(leaves) if leaf.size}
        arrays = self._read(step, arrays=ocp.args.StandardRestore(wanted))["arrays"]
        restored = []
        for i, (name, leaf) in enumerate(zip(names, leaves, strict=True)):
            checksum, key = saved_as[i]
            array = arrays[_slot(i)] if leaf.size else _empty(leaf)
            if checksum is not None and _crc32(array) != checksum:
                raise _damaged(place, f"checksum of {name}")
            restored.append(array if key is None else _to_key(array, key, leaf))
        return jax.tree.unflatten(jax.tree.structure(target), restored), content["host"]

    def restore_part(self, field: str, target: Any) -> Any:
        """Return one field of the newest state, bit for bit; nothing else of it is read.

        `target` as in `restore`. Raises UserError as `restore`.
        """
        step = self._existing(None)
        place, manifest = self.path / str(step), self._content(step)["manifest"]
        names, leaves = _named_leaves(target)
        names = [f".{field}{name}" for name in names]
        slots = {entry["name"]: i for i, entry in enumerate(manifest)}
        saved = [
            {key: entry[key] for key in ("name", "shape", "dtype")}
            for entry in manifest
            if entry["name"].startswith((f".{field}[", f".{field}."))
        ]
        wanted = [_describe(name, leaf) for name, leaf in zip(names, leaves, strict=True)]
        misfit = _find_misfit(saved, wanted)
        if misfit:
            raise UserError(f"the parameters in {place} do not fit ({misfit})")
        places = {
            _slot(slots[name]): _to_abstract(leaf) for name, leaf in zip(names, leaves, strict=True)
        }
        kinds = {
            slot: ocp.ArrayRestoreArgs(sharding=x.sharding, global_shape=x.shape, dtype=x.dtype)
            for slot, x in places.items()
        }
        part = ocp.args.PyTreeRestore(item=places, restore_args=kinds, partial_restore=True)
        handlers = {"arrays": ocp.PyTreeCheckpointHandler(use_ocdbt=False)}
        options = ocp.CheckpointManagerOptions(read_only=True)
        try:
            with (
                _one_voice(),
                ocp.CheckpointManager(
                    self.path, options=options, item_handlers=handlers
                ) as manager,
            ):
                arrays = manager.restore(step, args=ocp.args.Composite(arrays=part))["arrays"]
        except Exception as error:  # orbax and tensorstore raise many kinds
            raise _damaged(place, error) from error
        found = []
        for name in names:
            array, checksum = arrays[_slot(slots[name])], manifest[slots[name]]["crc32"]
            if checksum is not None and _crc32(array) != checksum:
                raise _damaged(place, f"checksum of {name}")
            found.append(array)
        return jax.tree.unflatten(jax.tree.structure(target), found)

    def close(self) -> None:
        """Release the directory."""
        self._manager.close()

    def _open(self) -> ocp.CheckpointManager:
        """Open the directory; a reader must not clear away what another process is writing."""
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._keep,
            create=True,
            enable_async_checkpointing=False,
            cleanup_tmp_directories=self._writes,
        )
        # Orbax's default, one database of all arrays, is put together by a pattern, which finds
        # nothing in a path such as "run[1]".
        handlers = {
            "arrays": ocp.StandardCheckpointHandler(use_ocdbt=False),
            "host": ocp.JsonCheckpointHandler(),
        }
        return ocp.CheckpointManager(self.path, options=options, item_handlers=handlers)

    def _check_written(self, step: int, arrays: dict[str, Any], content: dict[str, Any]) -> None:
        """Raise UserError if orbax wrote elsewhere or less; the numbers are checked when read."""
        place = self.path / str(step)
        try:
            found = {path.parent.name: json.loads(path.read_text()) for path in place.glob(HEADERS)}
        except (OSError, ValueError):
            found = {}
        shapes = {name: list(array.shape) for name, array in arrays.items()}
        is_whole = {name: header.get("shape") for name, header in found.items()} == shapes
        if not is_whole or self._content(step) != content:
            raise UserError(
                f"the checkpoint {place} was not written whole: choose another --run-dir, "
                "of plain characters and on a local disk"
            )

    def _existing(self, step: int | None) -> int:
        """Return `step`, or the newest for None; raises UserError when it is not there."""
        step = self.latest_step() if step is None else step
        if step is None or step not in self._manager.all_steps():
            wanted = "" if step is None else f" of step {step}"
            raise UserError(f"no checkpoint{wanted} in {self.path}")
        return step

    def _content(self, step: int) -> dict[str, Any]:
        """Read what stands beside the arrays: `host`, and the manifest of the leaves."""
        content = self._read(step, host=ocp.args.JsonRestore())["host"]
        if not isinstance(content, dict) or set(content) != {"manifest", "host"}:
            raise _damaged(self.path / str(step), "its manifest is missing")
        return content

    def _read(self, step: int, **arguments) -> Any:
        """Let orbax read some items; whatever goes wrong inside means a damaged checkpoint."""
        try:
            with _one_voice():
                return self._manager.restore(step, args=ocp.args.Composite(**arguments))
        except Exception as error:  # orbax and tensorstore raise many kinds
            raise _damaged(self.path / str(step), error) from error


@contextmanager
def _one_voice() -> Iterator[None]:
    """Mute what the threads of orbax print of a failure, which is raised here as well."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    yield
    sys.unraisablehook = hook  # but not after a failure: its threads have not ended yet


def _slot(index: int) -> str:
    """Name a leaf inside the file; fixed width keeps the order."""
    return f"{index:05d}"


def _named_leaves(tree: Any) -> tuple[list[str], list[Any]]:
    """Return the path of each leaf, as ".params['kernel']", and the leaves."""
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    return [jax.tree_util.keystr(path) for path, _ in pairs], [leaf for _, leaf in pairs]


def _is_key(leaf: Any) -> bool:
    """Return whether a leaf holds typed PRNG keys, not numbers."""
    is_array = isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)
    return is_array and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _describe(name: str, leaf: Any) -> dict[str, Any]:
    """Return what a leaf must have in common with its saved self."""
    if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct | np.ndarray | np.generic):
        kind = type(leaf).__name__
        raise TypeError(f"{name} is a {kind}: put it into `host`, or make it an array")
    return {"name": name, "shape": list(leaf.shape), "dtype": str(leaf.dtype)}


def _to_array(leaf: Any) -> jax.Array | np.ndarray:
    """Return the numbers to store; of a PRNG key its uint32 words."""
    if _is_key(leaf):
        return jax.random.key_data(leaf)
    return np.asarray(leaf) if isinstance(leaf, np.generic) else leaf


def _to_abstract(leaf: Any) -> Any:
    """Return what orbax shall make: the stored shape and dtype, on the devices of `leaf`."""
    if _is_key(leaf):
        words = jax.eval_shape(jax.random.key_data, leaf)
        # A key's sharding has one axis fewer than its words, so the words are placed afterwards.
        return jax.ShapeDtypeStruct(words.shape, words.dtype, sharding=_default_sharding())
    if isinstance(leaf, np.ndarray | np.generic):
        return np.zeros(leaf.shape, leaf.dtype)
    sharding = getattr(leaf, "sharding", None) or _default_sharding()
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _to_key(words: jax.Array, implementation: str, leaf: Any) -> jax.Array:
    """Turn restored words into PRNG keys placed as `leaf`."""
    key = jax.random.wrap_key_data(words, impl=implementation)
    sharding = getattr(leaf, "sharding", None)
    return key if sharding is None else jax.device_put(key, sharding)


def _empty(leaf: Any) -> Any:
    """Make an array without elements, which orbax refuses to store."""
    abstract = _to_abstract(leaf)
    if isinstance(abstract, np.ndarray):
        return abstract
    return jax.device_put(np.zeros(abstract.shape, abstract.dtype), abstract.sharding)


def _default_sharding() -> jax.sharding.Sharding:
    """Return the first device of this process."""
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _crc32(array: Any) -> int | None:
    """Return the checksum of the bytes; None if other hosts hold parts of the array."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return None
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _find_misfit(saved: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> str:
    """Return what the first leaf that differs is there and here, "" if none does."""
    if saved == wanted:
        return ""
    here, there = ({entry["name"]: entry for entry in entries} for entries in (wanted, saved))
    for name in [*here, *there]:
        old, new = there.get(name), here.get(name)
        if old != new:
            break
    else:
        name, old, new = "the order of its parts", None, None

    def show(entry: dict[str, Any] | None) -> str:
        return "nothing" if entry is None else f"{entry['dtype']}{entry['shape']}"

    return f"{name}: {show(old)} there, {show(new)} here"


def _damaged(place: Path, reason: BaseException | str) -> UserError:
    """Return the error for a checkpoint that cannot be read."""
    why = one_line(reason) if isinstance(reason, BaseException) else reason
    return UserError(
        f"checkpoint {place} is damaged ({why}): remove it to go on from the one before"
    )

"""Checkpoints on disk; the only module that knows orbax.

A work directory holds checkpoints/STEP/ with its items: params, ema where the run averages
them, rest (optimizer state and counters) and meta (the config and the digests as JSON). They
are separate items so that reading the weights alone reads a third of the bytes.
"""

import errno
import functools
import glob
import json
import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint._src.path.atomicity import CommitFileTemporaryPath
from orbax.checkpoint._src.serialization import tensorstore_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy, save_decision_policy

from videomae_jax import paths
from videomae_jax.devices.distributed import everyone, say
from videomae_jax.devices.sharding import path_name
from videomae_jax.errors import StorageGone, UserError
from videomae_jax.paths import SCHEMES, as_path, explain, is_folder, is_remote, move_folder, names
from videomae_jax.training.step import TrainState
from videomae_jax.training.workdir import CHECKPOINTS

# Of tensorstore's requests to a bucket: about 50 seconds in all.
RETRIES = {"max_retries": 6, "initial_delay": "1s", "max_delay": "16s"}

SAVE, RESTORE = ocp.args.StandardSave, ocp.args.StandardRestore


class Restored(NamedTuple):
    """A state that was read, with its step and the config it was trained with."""

    step: int
    state: TrainState
    config: ConfigDict


class Checkpoints:
    """The checkpoints of one work directory, saved in the background.

    Whether to save at a step is decided by the caller; the newest `keep` are kept. A save
    that was cut short leaves only a temporary folder, which is never taken for a checkpoint
    and is removed at the next start.
    """

    def __init__(self, workdir: str, *, keep: int):
        self.folder = _absolute(workdir) / CHECKPOINTS
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.LatestN(keep),
            save_decision_policy=save_decision_policy.FixedIntervalPolicy(1),
            cleanup_tmp_directories=True,
        )
        self._manager = _open(self.folder, options)

    def restore(
        self, abstract_state: TrainState, *, check: Callable[[ConfigDict], None]
    ) -> Restored | None:
        """Read the newest checkpoint that is whole into the shapes and shardings given.

        check: raises UserError for a config whose state has other shapes. One that cannot be
        read, or whose digests are not those it was saved with, is passed over with a warning and
        renamed STEP.damaged. None where there is no checkpoint at all; raises UserError where
        all are damaged, and leaves them as they are.
        """
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            restored, problem = None, ""
            try:
                restored = self._read(step, abstract_state, check)
            except UserError:
                raise
            except Exception as error:  # of many kinds, depending on what is damaged
                _raise_outage(error, self.folder)
                problem = _first_line(error)
            # Use a checkpoint only if all processes can read it.
            if all(everyone(restored is not None)):
                self._set_aside(damaged)
                return restored
            damaged[step] = problem or "another process cannot read it"
        if damaged:
            raise UserError(
                f"no checkpoint of {self.folder} can be read: "
                + "; ".join(f"step {step}, {problem}" for step, problem in damaged.items())
            )
        return None

    def _read(self, step, abstract_state, check) -> Restored:
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        meta = self._manager.restore(step, args=args)["meta"]
        config = config_from_json(meta["config"])
        check(config)
        args = {name: RESTORE(item) for name, item in _items(abstract_state).items()}
        items = self._manager.restore(step, args=ocp.args.Composite(**args))
        check_digests({name: items[name] for name in args}, meta)
        ema = items["ema"] if "ema" in args else None
        return Restored(step, TrainState(params=items["params"], ema=ema, **items["rest"]), config)

    def _set_aside(self, damaged: dict[int, str]) -> None:
        for step, problem in damaged.items():
            new = f"{step}.damaged"
            say(f"checkpoint {step} is damaged and now called {self.folder / new}: {problem}")
            if jax.process_index() == 0:
                move_folder(self.folder / str(step), self.folder / new)
        if damaged:
            everyone(True)  # until the first process has renamed
            self._manager.reload()

    def save(self, step: int, state: TrainState, config: ConfigDict) -> None:
        """Start saving; returns once the state may be overwritten."""
        if not is_remote(self.folder) and not self.folder.is_dir():
            # Orbax would make another one, without the checkpoints that were in it.
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.folder))
        items = _items(state)
        meta = {"config": json.loads(config.to_json()), "digests": digests(items)}
        args = {name: SAVE(item) for name, item in items.items()}
        self._manager.save(step, args=ocp.args.Composite(**args, meta=ocp.args.JsonSave(meta)))

    def verify(self, step: int, abstract_state: TrainState) -> None:
        """Read a finished save back; raises UserError if it is not what was saved.

        All of its metadata, and the values of the parameters, a third of its bytes.
        """
        everyone(True)  # until the first process, which completes a save, has waited for it
        problem = ""
        args = ocp.args.Composite(
            meta=ocp.args.JsonRestore(), params=RESTORE(abstract_state.params)
        )
        try:
            # Another manager, which takes milliseconds: in a bucket the one that saved refuses
            # `item_metadata` on every process but the first, as only the first tells it that a
            # save is complete.
            with _open(self.folder, ocp.CheckpointManagerOptions()) as manager:
                restored = manager.restore(step, args=args)
                metadata = manager.item_metadata(step)
            check_digests({"params": restored["params"]}, restored["meta"])
            for name, item in _items(abstract_state).items():
                shapes = [leaf.shape for leaf in jax.tree.leaves(metadata[name])]
                if shapes != [leaf.shape for leaf in jax.tree.leaves(item)]:
                    raise ValueError(f"{name} is not complete")
        except Exception as error:  # of many kinds, depending on what is damaged
            _raise_outage(error, self.folder)
            problem = _first_line(error)
        if not all(everyone(not problem)):
            raise UserError(
                f"checkpoint {self.folder / str(step)} cannot be read back: "
                f"{problem or 'another process cannot read it'}"
            )

    def wait(self) -> None:
        """Wait for the save in flight, if there is one."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for the save in flight, and close, also if that save fails."""
        try:
            self.wait()
        finally:
            self._manager.close()


def load_params(path: str, *, item: str = "params") -> tuple[Any, ConfigDict]:
    """Read (params, config) from a work directory or one of its checkpoint folders.

    item: "params", or "ema" for the moving average of a run that keeps one.
    params: float32 arrays on the default device. A work directory means its newest checkpoint.
    Raises UserError where it is damaged.
    """
    folder, step = _locate(path)
    with _open(folder, ocp.CheckpointManagerOptions(create=False)) as manager:
        steps = sorted(manager.all_steps())
        step = manager.latest_step() if step is None else step
        if step is None:
            raise UserError(f"no complete checkpoint in {path!r}: train until the first save")
        metadata = manager.item_metadata(step).get(item)
        if metadata is None:
            raise UserError(f"{path!r} has no {item}: the run kept no such weights")
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
            metadata,
        )
        args = ocp.args.Composite(**{item: RESTORE(abstract)}, meta=ocp.args.JsonRestore())
        try:
            restored = manager.restore(step, args=args)
            # Of the host, so that it does not matter which mesh is in use.
            host = jax.tree.map(np.asarray, restored[item])
            check_digests({item: host}, restored["meta"])
        except Exception as error:  # of many kinds, depending on what is damaged
            _raise_outage(error, folder)
            older = [f"; give an older one, such as {folder / str(n)}" for n in steps if n < step]
            raise UserError(
                f"checkpoint {folder / str(step)} is damaged: {_first_line(error)}"
                f"{older[-1] if older else ''}"
            ) from None
    return restored[item], config_from_json(restored["meta"]["config"])


def load_run_config(path: str) -> ConfigDict:
    """Read the config alone of what `load_params` reads.

    Of a work directory: from the newest checkpoint whose config can be read.
    """
    folder, step = _locate(path)
    problem = "train until the first save"
    with _open(folder, ocp.CheckpointManagerOptions(create=False)) as manager:
        steps = manager.all_steps() if step is None else [step]
        for number in sorted(steps, reverse=True):
            try:
                args = ocp.args.Composite(meta=ocp.args.JsonRestore())
                return config_from_json(manager.restore(number, args=args)["meta"]["config"])
            except Exception as error:  # of many kinds, depending on what is damaged
                _raise_outage(error, folder)
                problem = _first_line(error)
    raise UserError(f"no complete checkpoint in {path!r}: {problem}")


def has_checkpoint(workdir: str) -> bool:
    """Whether a work directory has a checkpoint, whole or damaged, to resume from."""
    return any(name.isdigit() for name in names(as_path(workdir) / CHECKPOINTS))


def _locate(path: str) -> tuple[Path, int | None]:
    """Return the folder of checkpoints, and the step if `path` is the folder of one step."""
    folder = _absolute(path)
    if folder.name.isdigit() and is_folder(folder / "params"):
        return folder.parent, int(folder.name)
    if not is_folder(folder / CHECKPOINTS):
        raise UserError(f"no checkpoint in {path!r}: give the --workdir of a training run")
    return folder / CHECKPOINTS, None


def save_params(path: str, params: Any, config: ConfigDict) -> None:
    """Write weights without a run: a new work directory `path` that `load_params` reads."""
    meta = {"config": json.loads(config.to_json()), "digests": digests({"params": params})}
    args = ocp.args.Composite(params=SAVE(params), meta=ocp.args.JsonSave(meta))
    with _open(_absolute(path) / CHECKPOINTS, ocp.CheckpointManagerOptions()) as manager:
        manager.save(0, args=args)


def _open(folder: Any, options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManager:
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax logs what it raises, three times
    # Orbax looks for the files to merge by a pattern that its folder is a part of. A folder named
    # like a pattern gets files that need no merging; reading knows either.
    ocdbt = not glob.has_magic(str(folder))
    if is_remote(folder):
        _teach_buckets()
        # In a bucket renaming is copying: a last object says that a checkpoint is whole.
        options.temporary_path_class = CommitFileTemporaryPath
    handlers = {
        "params": ocp.StandardCheckpointHandler(use_ocdbt=ocdbt),
        "ema": ocp.StandardCheckpointHandler(use_ocdbt=ocdbt),
        "rest": ocp.StandardCheckpointHandler(use_ocdbt=ocdbt),
        "meta": ocp.JsonCheckpointHandler(),
    }
    return ocp.CheckpointManager(folder, options=options, item_handlers=handlers)


def _absolute(path: str) -> Path:
    return as_path(path) if is_remote(path) else Path(path).absolute()


def _raise_outage(error: Exception, folder: Path) -> None:
    """Raise the UserError of a bucket that denies or does not answer: nothing is damaged."""
    problem = explain(error, folder) if is_remote(folder) else None
    if problem and not isinstance(problem, StorageGone):
        raise problem from None


@functools.cache
def _teach_buckets() -> None:
    """Make orbax read and write arrays in S3 too, and give up after about a minute.

    It describes where an array is to tensorstore, which has a driver for each service; orbax
    itself knows that of gs:// alone, and lets it repeat a request for a quarter of an hour.
    """
    os.environ.setdefault("TENSORSTORE_CURL_CONNECT_TIMEOUT_SECONDS", str(paths.CONNECT))
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", str(paths.SILENCE))
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")
    describe = tensorstore_utils.build_kvstore_tspec

    def describe_bucket(directory: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        scheme = directory.partition(":")[0]
        if scheme not in SCHEMES:
            return describe(directory, *args, **kwargs)
        spec = describe("gs" + directory.removeprefix(scheme), *args, **kwargs)
        bucket = spec["base"] if spec["driver"] == "ocdbt" else spec
        if isinstance(bucket, str):  # gs://NAME/PATH, before orbax 0.12
            name, _, path = bucket.partition("://")[2].partition("/")
            bucket = spec["base"] = {"driver": "gcs", "bucket": name, "path": path}
        if scheme == "s3":
            bucket.update(_s3_place())
        bucket[f"{bucket['driver']}_request_retries"] = RETRIES
        return spec

    tensorstore_utils.build_kvstore_tspec = describe_bucket


def _s3_place() -> dict[str, Any]:
    """Return what tensorstore does not read from the environment as other clients of S3 do."""
    place: dict[str, Any] = {"driver": "s3"}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3", os.environ.get("AWS_ENDPOINT_URL")):
        place["endpoint"] = endpoint
    if region := os.environ.get("AWS_REGION", os.environ.get("AWS_DEFAULT_REGION")):
        place["aws_region"] = region
    if "AWS_ACCESS_KEY_ID" in os.environ:  # otherwise it looks in files first, and says so
        place["aws_credentials"] = {"type": "environment"}
    return place


def check_digests(items: dict[str, Any], meta: dict) -> None:
    """Raise ValueError that names the arrays which are not what was saved.

    Old checkpoints have no digests and are not checked.
    """
    if "digests" not in meta:
        return
    saved = meta["digests"]
    changed = [name for name, number in digests(items).items() if saved[name] != number]
    if changed:
        raise ValueError(f"{', '.join(changed[:3])}: not as it was saved ({len(changed)} arrays)")


def config_from_json(tree: dict) -> ConfigDict:
    """Rebuild a config; JSON has no tuples, our configs have no lists."""
    # Older runs had only these kinds.
    older: dict[str, Any] = {"positions": "1d"}
    if "decoder" in tree.get("model", ()):
        older |= {"decoder_attention": "self"}
    elif tree.get("task") in ("classify", "probe"):
        older |= {"multi_label": False}
    if "model" in tree:
        tree = {**tree, "model": {**older, **tree["model"]}}
    if "optimizer" in tree:
        tree = {**tree, "optimizer": {"kind": "adamw", **tree["optimizer"]}}
    if tree.get("task") in ("pretrain", "classify"):
        tree = {"teacher": "", "teacher_model": {}, **tree}
    if tree.get("teacher_model"):
        teacher = tree["teacher_model"]
        model = {"positions": "1d", **teacher["model"]}
        tree = {**tree, "teacher_model": {**teacher, "model": model}}

    def rebuild(node):
        if isinstance(node, dict):
            return {key: rebuild(value) for key, value in node.items()}
        return tuple(map(rebuild, node)) if isinstance(node, list) else node

    return ConfigDict(rebuild(tree)).lock()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _items(state: TrainState) -> dict[str, Any]:
    rest = state._asdict()
    items = {"params": rest.pop("params"), "ema": rest.pop("ema"), "rest": rest}
    return {name: item for name, item in items.items() if item is not None}


# Odd constants of the murmur3 hash.
MULTIPLY = (0x85EBCA6B, 0xC2B2AE35)
# Values that are hashed at once on the host. They stay in the cache of a core: of 28 M values in
# one piece the digest takes 18 times as long.
CHUNK = 1 << 16


def digests(tree: Any) -> dict[str, int]:
    """Return {"encoder/norm/scale": number, ...}: the same on any mesh, in any order of adding.

    The sum of the bits of every value, as an integer, times an odd hash of its index, modulo
    2^32. Any one changed value changes it, since the hash, being odd, can be divided by. Arrays of
    NumPy are not moved to a device, and nothing is compiled for them.
    """
    host = all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(tree))
    numbers = jax.tree.map(_host_digest, tree) if host else jax.device_get(_digests(tree))
    return {path_name(path): int(n) for path, n in jax.tree_util.tree_leaves_with_path(numbers)}


def _host_digest(leaf: np.ndarray) -> int:
    words = leaf.ravel().view(_unsigned(leaf))
    offsets, total = np.arange(CHUNK, dtype=np.uint32), 0
    for first in range(0, words.size, CHUNK):
        part = words[first : first + CHUNK].astype(np.uint32, copy=False)
        index = offsets[: part.size] + np.uint32(first % 2**32)
        total += int((part * _odd_hash(index)).sum(dtype=np.uint32))
    return total % 2**32


@jax.jit
def _digests(tree):
    return jax.tree.map(_digest, tree)


def _digest(leaf: jax.Array) -> jax.Array:
    words = jax.lax.bitcast_convert_type(leaf, _unsigned(leaf))
    index = jnp.zeros(leaf.shape, jnp.uint32)
    for axis in range(leaf.ndim):
        stride = math.prod(leaf.shape[axis + 1 :])
        index += jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis) * np.uint32(stride)
    return jnp.sum(words.astype(jnp.uint32) * _odd_hash(index), dtype=jnp.uint32)


def _unsigned(leaf: jax.Array | np.ndarray) -> np.dtype:
    """Return the unsigned integer as wide as a value."""
    return np.dtype(f"uint{8 * leaf.dtype.itemsize}")


def _odd_hash(index: Any) -> Any:
    """Return the hash of indices, uint32 of JAX, or of NumPy, which are overwritten."""
    index ^= index >> 16
    for constant in MULTIPLY:
        index *= np.uint32(constant)
        index ^= index >> 14
    return index | 1

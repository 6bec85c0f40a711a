"""Checkpoints on disk; the only module that knows orbax.

A work directory holds checkpoints/STEP/ with its items: params, ema where the run averages
them, rest (optimizer state and counters) and meta (the config as JSON). Apart, so that whoever
wants the weights need not read three times as much.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint.checkpoint_managers import preservation_policy, save_decision_policy

from videomae_jax.errors import UserError
from videomae_jax.training.step import TrainState

FOLDER = "checkpoints"
SAVE, RESTORE = ocp.args.StandardSave, ocp.args.StandardRestore


class Checkpoints:
    """The checkpoints of one work directory, saved in the background.

    Whether to save at a step is decided by the caller; the newest `keep` are kept. A save
    that was cut short leaves only a temporary folder, which is never taken for a checkpoint
    and is removed at the next start.
    """

    def __init__(self, workdir: str, *, keep: int):
        self.folder = Path(workdir).absolute() / FOLDER
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.LatestN(keep),
            save_decision_policy=save_decision_policy.FixedIntervalPolicy(1),
            cleanup_tmp_directories=True,
        )
        self._manager = _open(self.folder, options)

    @property
    def latest(self) -> int | None:
        """The step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def config(self, step: int) -> ConfigDict:
        """Return the config a checkpoint was trained with."""
        restored = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
        return config_from_json(restored["meta"]["config"])

    def restore(self, step: int, abstract_state: TrainState) -> TrainState:
        """Read a whole state into the shapes and shardings of `abstract_state`."""
        args = {name: RESTORE(item) for name, item in _items(abstract_state).items()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**args))
        return TrainState(params=restored["params"], ema=restored.get("ema"), **restored["rest"])

    def save(self, step: int, state: TrainState, config: ConfigDict) -> None:
        """Start saving; returns once the state may be overwritten."""
        meta = {"config": json.loads(config.to_json())}
        args = {name: SAVE(item) for name, item in _items(state).items()}
        args = ocp.args.Composite(**args, meta=ocp.args.JsonSave(meta))
        self._guard(self._manager.save, step, args=args)

    def wait(self) -> None:
        """Wait for the save in flight, if there is one."""
        self._guard(self._manager.wait_until_finished)

    def close(self) -> None:
        """Wait, and stop saving."""
        self.wait()
        self._manager.close()

    def _guard(self, call, *args, **kwargs):
        try:
            return call(*args, **kwargs)
        except Exception as error:
            # A full disk surfaces as OSError from Python and as ValueError from tensorstore.
            if not isinstance(error, OSError) and "No space left" not in str(error):
                raise
            cause = "no space left on the device" if "No space left" in str(error) else error
            raise UserError(
                f"cannot save to {self.folder}: {cause}; "
                f"the last complete checkpoint is step {self.latest}"
            ) from None


def load_params(path: str, *, item: str = "params") -> tuple[Any, ConfigDict]:
    """Read (params, config) from a work directory or one of its checkpoint folders.

    item: "params", or "ema" for the moving average of a run that keeps one.
    params: float32 arrays on the default device. A work directory means its newest checkpoint.
    """
    folder = Path(path).absolute()
    if folder.name.isdigit() and (folder / "params").is_dir():
        folder, step = folder.parent, int(folder.name)
    else:
        folder, step = folder / FOLDER, None
    if not folder.is_dir():
        raise UserError(f"no checkpoint in {path!r}: give the --workdir of a training run")
    with _open(folder, ocp.CheckpointManagerOptions(create=False)) as manager:
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
        restored = manager.restore(step, args=args)
    return restored[item], config_from_json(restored["meta"]["config"])


def save_params(path: str, params: Any, config: ConfigDict) -> None:
    """Write weights without a run: a new work directory `path` that `load_params` reads."""
    meta = {"config": json.loads(config.to_json())}
    args = ocp.args.Composite(params=SAVE(params), meta=ocp.args.JsonSave(meta))
    with _open(Path(path).absolute() / FOLDER, ocp.CheckpointManagerOptions()) as manager:
        manager.save(0, args=args)


def _open(folder: Any, options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManager:
    handlers = {
        "params": ocp.StandardCheckpointHandler(),
        "ema": ocp.StandardCheckpointHandler(),
        "rest": ocp.StandardCheckpointHandler(),
        "meta": ocp.JsonCheckpointHandler(),
    }
    return ocp.CheckpointManager(folder, options=options, item_handlers=handlers)


def config_from_json(tree: dict) -> ConfigDict:
    """Rebuild a config; JSON has no tuples, our configs have no lists."""

    def rebuild(node):
        if isinstance(node, dict):
            return {key: rebuild(value) for key, value in node.items()}
        return tuple(map(rebuild, node)) if isinstance(node, list) else node

    return ConfigDict(rebuild(tree)).lock()


def check_space(workdir: str, *, needed: int) -> None:
    """Raise UserError when `workdir` has less than `needed` bytes free."""
    free = shutil.disk_usage(workdir).free
    if free < needed:
        raise UserError(
            f"{workdir} has {free / 1e9:.2g} GB free, a checkpoint needs {needed / 1e9:.2g} GB: "
            "free some or use another --workdir"
        )


def _items(state: TrainState) -> dict[str, Any]:
    rest = state._asdict()
    items = {"params": rest.pop("params"), "ema": rest.pop("ema"), "rest": rest}
    return {name: item for name, item in items.items() if item is not None}

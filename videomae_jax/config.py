"""Load configs: a recipe of the package or a file, then overrides `--config.key=value`."""

import difflib
import importlib.util
import math
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from videomae_jax.errors import UserError

_PACKAGE = Path(__file__).parent


def in_package(name: str) -> Path:
    """Return the folder configs/ or launch/.

    setup.cfg maps them into the installed package. In a checkout they are beside the package.
    """
    return next(p / name for p in (_PACKAGE, _PACKAGE.parent) if (p / name).is_dir())


RECIPES = in_package("configs")


class Limit(NamedTuple):
    """The legal numbers of some keys.

    keys: a regular expression for dotted keys. least, most: inclusive, but `most` is exclusive
    if `below` is True.
    """

    keys: str
    least: float
    most: float = math.inf
    below: bool = False


LIMITS = (
    Limit(r"batch_size|repeats|accumulation|chunks|model\.head\.(hidden|dim)", 1),
    Limit(r"(log|eval|save)_every|keep_checkpoints", 1),
    Limit(r"max_skipped_steps|(watchdog|heartbeat)_seconds|data\.ahead|knn\.videos", 1),
    Limit(r"clip\.(frames|stride|height|width)|augment\.group", 1),
    Limit(r"clip\.source_(height|width)", 0),
    Limit(r"model\.(encoder|decoder)\.(width|depth|heads|mlp_width)|model\.patch", 1),
    Limit(r"(warmup_)?(steps|epochs)|data\.(threads|memory_gb)|knn\.k|model\.classes", 0),
    Limit(r"lr|base_lr|min_lr|optimizer\.(weight_decay|clip_norm)", 0),
    Limit(r"augment\.(operations|magnitude|deviation|mixup|cutmix)", 0),
    Limit(r"boxes\.(jitter|extend)|augment\.(hue|saturation|value)|clip\.short_side|roi\.ratio", 0),
    Limit(r"boxes\.max|roi\.size", 1),
    Limit(r"clip\.rate", 0.1),
    Limit(r"seed", 0, 2**32, below=True),
    Limit(r"data\.max_bad_share|boxes\.min_score|augment\.(erase|switch)", 0, 1),
    Limit(r"augment\.(jitter|colours|grey|blur|solarize)", 0, 1),
    Limit(r"temperature", 1e-3),
    Limit(r"data\.holdout|mask\.decoder_ratio|optimizer\.b[12]|ema_decay", 0, 1, below=True),
    Limit(r"label_smoothing|drop_path|head_dropout", 0, 1, below=True),
    Limit(r"augment\.min_area", 1e-6, 1),
    Limit(r"model\.std|optimizer\.eps", 1e-12),
)


class LoadedConfig(NamedTuple):
    """A config, and the dotted keys of the values that the user chose."""

    config: ConfigDict
    given: set[str]


def load_config(spec: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Load a config that a user named, and apply overrides such as "--config.seed=1".

    spec: "NAME[:ARGUMENTS]" for a recipe of the package, such as "pretrain:b,k400", or
    "PATH.py[:ARGUMENTS]" for a file, which may import modules of its own folder. A path
    configs/NAME.py that does not exist means the recipe.
    Returns a locked config; overrides have the types of the values they replace. Raises
    UserError for an unknown file, argument or key, and for an illegal value.
    """
    is_file = re.fullmatch(r"(.*?\.py)(?::(.*))?", spec, re.DOTALL)
    if not is_file:
        name, _, arguments = spec.partition(":")
        return load_recipe(name, arguments, overrides)
    path, arguments = Path(is_file[1]), is_file[2] or ""
    if path.is_file() and path.resolve().parent != RECIPES.resolve():
        with _import_from(path.parent):
            return _read_config(path, arguments, overrides)
    if path.is_file() or (path.parent == Path("configs") and path.stem in recipe_names()):
        return load_recipe(path.stem, arguments, overrides)
    raise UserError(f"config {is_file[1]!r} does not exist: {_suggest(path.stem)}")


def load_config_and_given(spec: str, overrides: Sequence[str] = ()) -> LoadedConfig:
    """Load a config as `load_config` does, with the keys that the user gave.

    Those are the keys of the overrides, and the keys in which a file of the user's differs from
    every recipe that it loads. A file that loads no recipe gives all keys.
    """
    with _record_recipes() as recipes:
        config = load_config(spec, overrides)
    own = {
        key
        for key, value in flatten(config).items()
        if all(recipe.get(key) != value for recipe in recipes)
    }
    return LoadedConfig(config, own | {_override_key(override) for override in overrides})


def load_recipe(name: str, arguments: str = "", overrides: Sequence[str] = ()) -> ConfigDict:
    """Load a recipe of the package, and never a file of the current directory.

    name, arguments: such as "pretrain" and "b,k400". See `load_config` for the overrides, the
    result and the errors.
    """
    if name not in recipe_names():
        raise UserError(f"config {name!r} is no recipe and no .py file: {_suggest(name)}")
    config = _read_config(RECIPES / f"{name}.py", arguments, overrides)
    for recording in _recordings:
        recording.append(flatten(config))
    return config


_recordings: list[list[dict[str, object]]] = []  # of `_record_recipes`, those in use


@contextmanager
def _record_recipes() -> Iterator[list[dict[str, object]]]:
    """Collect the recipes that `load_recipe` returns inside, flat and unchanged."""
    recording: list[dict[str, object]] = []
    _recordings.append(recording)
    try:
        yield recording
    finally:
        _recordings.pop()


def recipe_names() -> list[str]:
    """Return the names of the recipes in the package."""
    return sorted(path.stem for path in RECIPES.glob("*.py") if path.stem != "__init__")


def _suggest(name: str) -> str:
    near = difflib.get_close_matches(name, recipe_names(), n=1)
    return f"did you mean {near[0]}?" if near else f"the recipes are {', '.join(recipe_names())}"


def _read_config(path: Path, arguments: str, overrides: Sequence[str]) -> ConfigDict:
    module = _import_file(path)
    if not hasattr(module, "get_config"):
        raise UserError(f"{path} has no function get_config: define one that returns a ConfigDict")
    config = module.get_config(arguments) if arguments else module.get_config()
    _check_keys(overrides, config)

    # The flag of ml_collections parses the values and converts their types. It uses private flag
    # values, because the global ones would keep the overrides of one call for the next.
    flag_values = flags.FlagValues()
    command = ["videomae", *_drop_replaced(overrides)]
    holder = config_flags.DEFINE_config_dict(
        "config", config, flag_values=flag_values, sys_argv=command
    )
    try:
        rest = flag_values(command)[1:]
    except flags.UnrecognizedFlagError as error:
        raise UserError(f"--{error.flagname} is unknown: overrides begin with --config.") from None
    except flags.IllegalFlagValueError as error:
        key = str(error).partition("--config.")[2].partition("=")[0]
        default = flatten(config)[key]
        value = str(error).partition("=")[2].partition(":")[0]
        raise UserError(
            f"--config.{key}={value} is not of type {type(default).__name__}: "
            f"the config has {default!r}"
        ) from None
    if rest:
        raise UserError(f"{rest[0]!r} is not understood: overrides look like --config.key=value")
    check_limits(holder.value)
    return holder.value


def check_limits(config: ConfigDict) -> None:
    """Raise UserError for an illegal number, with the nearest legal one in the message."""
    leaves = flatten(config)
    for key, value in leaves.items():
        values = value if isinstance(value, tuple) else (value,)
        numbers = [n for n in values if isinstance(n, (int, float))]
        if not all(map(math.isfinite, numbers)):
            raise UserError(f"{key} is {value}: give a number")
        for limit in (limit for limit in LIMITS if re.fullmatch(limit.keys, key)):
            for n in numbers:
                if n < limit.least or n > limit.most or (limit.below and n == limit.most):
                    if limit.most == math.inf:
                        upper = "or more"
                    else:
                        upper = f"to {'below ' if limit.below else ''}{limit.most:.10g}"
                    raise UserError(f"{key} {n}: use {limit.least:g} {upper}")
    for key in ("model.patch", "model.position_grid"):
        if leaves.get(key) and len(leaves[key]) != 3:
            raise UserError(f"{key} {leaves[key]}: give 3 numbers, of time, height, width")
    for key, count, words in (
        ("boxes.jitter", 4, "out and in along x, out and in along y"),
        ("boxes.extend", 2, "along x and y"),
    ):
        if key in leaves and len(leaves[key]) != count:
            raise UserError(f"{key} {leaves[key]}: give {count} numbers, {words}")
    for part in ("model.encoder", "model.decoder"):
        width, heads = (leaves.get(f"{part}.{name}", 1) for name in ("width", "heads"))
        if width % heads:
            legal = [n for n in range(1, width + 1) if width % n == 0]
            near = min(legal, key=lambda n: abs(n - heads))
            raise UserError(f"{part}.width {width} does not divide by {heads} heads: use {near}")
    if "views" in leaves:
        parse_views(leaves["views"])
    rate = leaves.get("lr") or leaves.get("base_lr") or 0
    if leaves.get("min_lr", 0) > rate > 0:
        raise UserError(f"min_lr {leaves['min_lr']:g} is above the rate: use 0 to {rate:g}")


def machine_keys() -> dict[str, Any]:
    """Return the top-level keys that depend on the machine and not on the recipe."""
    return dict(
        max_skipped_steps=10,  # end the run after this many non-finite steps in a row
        mesh=dict(
            # Groups of devices connected by a slower network, which only the data axis crosses;
            # -1 asks the devices.
            slices=-1,
            data=-1,  # parts of the batch; -1 takes the devices that the other axes leave
            fsdp=1,  # parts of the batch, and of the parameters and the optimizer state
            tensor=1,  # parts of the heads and of the hidden units of each block
        ),
        watchdog_seconds=600,  # end a process that completes no step for this long
        heartbeat_seconds=100,  # a process that is silent for this long counts as dead
        run=dict(
            dtype="auto",  # of the computation: bfloat16 on accelerators, else float32
            attention="auto",  # implementation: xla, chunked, splash (TPU), cudnn (GPU)
            scan=False,  # loop over blocks to compile faster; deep CPU and TPU models do
            remat="none",  # none, dots or full: recompute more activations, to save memory
        ),
        log_every=20,  # steps from one line of the log to the next
        eval_every=1000,  # steps from one evaluation of the held-out videos to the next
        save_every=500,  # steps from one checkpoint to the next
        keep_checkpoints=3,  # the newest ones; older ones are removed
    )


def model_keys(
    patch: int,
    *,
    mean: tuple[float, ...] = (0.485, 0.456, 0.406),
    std: tuple[float, ...] = (0.229, 0.224, 0.225),
) -> dict[str, Any]:
    """Return the keys under `model` that every model has, apart from its encoder.

    patch: height and width in pixels. mean, std: those of ImageNet by default.
    """
    return dict(
        patch=(2, patch, patch),  # frames, height and width of a patch
        mean=mean,  # of pixels / 255; one number per channel
        std=std,  # of pixels / 255; one number per channel
        # Grid to interpolate positions from. () recomputes them; in detection it is the grid of
        # the training clips.
        position_grid=(),
        positions="1d",  # the paper's, by the index of a patch; 3d: by time, row and column
    )


def training_keys(
    *,
    epochs: int,
    warmup_epochs: int,
    base_lr: float,
    min_lr: float,
    b2: float,
    weight_decay: float,
    clip_norm: float = 0.0,
) -> dict[str, Any]:
    """Return the top-level keys of the length of a run, its learning rate and its optimizer."""
    return dict(
        epochs=epochs,  # passes over the videos
        warmup_epochs=warmup_epochs,  # in which the learning rate rises from 0
        steps=0,  # length of the run in steps; if not 0, replaces epochs
        warmup_steps=0,  # with steps, replaces warmup_epochs
        base_lr=base_lr,  # the learning rate is base_lr * batch_size / 256; 0 if lr is given
        lr=0.0,  # the learning rate itself; 0 if base_lr is given
        min_lr=min_lr,  # end of the cosine schedule; scaled like the learning rate
        optimizer=dict(
            kind="adamw",  # muon: orthogonal momenta of matrices, AdamW elsewhere
            b1=0.9,  # decay of the mean of gradients
            b2=b2,  # decay of the mean of their squares
            eps=1e-8,  # added to the root of that mean
            weight_decay=weight_decay,  # of matrices
            clip_norm=clip_norm,  # of the global gradient norm; 0 is off
        ),
    )


def feed_keys() -> dict[str, Any]:
    """Return the keys under `data` that depend on the machine and not on the data set."""
    return dict(
        max_bad_share=0.05,  # end the run if more than this fraction of videos is unreadable
        decoder="pyav",  # pyav, or torchcodec, decord, if installed: they return the same frames
        threads=0,  # decoder threads; 0 is one per core
        ahead=2,  # batches to prefetch on the host, and as many on the devices
        memory_gb=0.0,  # cache of decoded videos in main memory; 0 decodes every clip
    )


def parse_views(text: str) -> tuple[int, int]:
    """Return (clips, crops) of such as "5x3"; raises UserError for anything else."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not match:
        raise UserError(f"views {text!r} is not CLIPSxCROPS: use such as 5x3")
    return int(match[1]), int(match[2])


def parse_choices(arguments: str, **choices: Sequence[str]) -> tuple[str, ...]:
    """Split arguments such as "b,k400" into one value per keyword.

    choices: the legal values of each argument, in order. Missing arguments at the end get the
    first legal value. Raises UserError for too many arguments or an illegal value.
    """
    given = [part.strip() for part in arguments.split(",")] if arguments else []
    if len(given) > len(choices):
        raise UserError(
            f"config argument {arguments!r} has {len(given)} parts: "
            f"give at most {len(choices)}, {','.join(choices).upper()}"
        )
    values = []
    for position, (name, legal) in enumerate(choices.items()):
        value = given[position] if position < len(given) else legal[0]
        if value not in legal:
            raise UserError(f"{name} {value!r} is unknown: use one of {', '.join(legal)}")
        values.append(value)
    return tuple(values)


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Return {dotted key: value} for every leaf."""
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            leaves |= flatten(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = value
    return leaves


def _check_keys(overrides: Sequence[str], config: ConfigDict) -> None:
    known = flatten(config)
    for override in overrides:
        key = _override_key(override)
        if override.startswith("--config.") and key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.4) or [next(iter(known))]
            raise UserError(f"config has no key {key!r}: did you mean --config.{near[0]}?")


def _drop_replaced(overrides: Sequence[str]) -> list[str]:
    """Drop overrides of a key that a later one sets; the flag would join both values of a tuple."""
    last = {_override_key(override): index for index, override in enumerate(overrides)}
    return [
        override
        for index, override in enumerate(overrides)
        if "=" not in override or last[_override_key(override)] == index
    ]


def _override_key(override: str) -> str:
    """Return "clip.frames" of "--config.clip.frames=8"."""
    return override.partition("=")[0].removeprefix("--config.")


def _import_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"videomae_config_{path.stem}", path)
    assert spec and spec.loader  # every .py file has them
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def _import_from(folder: Path) -> Iterator[None]:
    """Put a folder first in the import path, within this context.

    Its modules are removed from `sys.modules` afterwards, because a config of another folder may
    have modules of the same names.
    """
    before = set(sys.modules)
    sys.path.insert(0, str(folder.resolve()))
    try:
        yield
    finally:
        sys.path.remove(str(folder.resolve()))
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and Path(file).parent == folder.resolve():
                del sys.modules[name]


def differences(old: ConfigDict, new: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Return {dotted key: (old value, new value)} for every leaf that differs; None if absent."""
    before, after = flatten(old), flatten(new)
    keys = sorted(before.keys() | after.keys())
    pairs = {key: (before.get(key), after.get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}

"""Write a run to the hub, with a model card made from it."""

import csv
import io
import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from videomae_jax import __version__
from videomae_jax.errors import UserError
from videomae_jax.interop import hub
from videomae_jax.interop.checkpoint_files import Checkpoint, save_checkpoint
from videomae_jax.interop.safetensors_file import read_json
from videomae_jax.interop.sources import on_hub
from videomae_jax.paths import exists, full_path, is_folder, read_bytes
from videomae_jax.training.checkpoint import load_run_config
from videomae_jax.training.workdir import CHECKPOINTS, CLASSES, METRICS, read_metrics

FORMATS = ("hf", "native")
PIPELINE = {"classify": "video-classification"}  # tasks that the hub has a name for
# Metrics in the last held-out line of a run, and in the JSON of `videomae evaluate`.
METRIC_NAMES = {"top1": "top-1", "top5": "top-5", "map": "mAP", "hit": "most probable class right"}
ONE_CLIP = "one clip of each held-out video, during training"


def publish(
    target: str,
    checkpoint: Checkpoint,
    *,
    source: str,
    to: str = "hf",
    scores: str | None = None,
    licence: str | None = None,
) -> list[str]:
    """Write a checkpoint and its card to a repository of the hub; return lines about it.

    source: the work directory or file it was read from. to: one of `FORMATS`. scores: a file of
    `videomae evaluate --json`. licence: an id of the hub; None takes that of the model the run
    started from, if it is one of the hub. Raises UserError for what cannot be written, see
    `hub.upload`.
    """
    if to not in FORMATS:
        raise UserError(f"a repository of the hub holds a folder: use --to {' or '.join(FORMATS)}")
    base = first_source(checkpoint.config)
    if licence is None and base:
        licence = hub.licence_of(base)
    repository = hub.parse_address(target).repository
    run, _ = _find_run(source)
    card = model_card(
        checkpoint,
        repository,
        to=to,
        run=run if run and exists(run / METRICS) else None,
        results=read_scores(source, scores),
        base=base,
        licence=licence or "",
    )
    with tempfile.TemporaryDirectory(prefix="videomae_") as folder:
        save_checkpoint(f"{folder}/model", checkpoint, to=to)
        Path(folder, "model/README.md").write_text(card, encoding="utf-8")
        written, kept = hub.upload(
            target, Path(folder, "model"), message=f"Add a model of videomae_jax {__version__}"
        )
    lines = [f"wrote {written} ({to})"]
    if kept:
        lines.append("note: the repository has a README.md, which was kept: its scores may be old")
    elif not licence:
        lines.append("note: the card names no licence: give --licence ID, such as apache-2.0")
    return lines


def read_scores(source: str, file: str | None) -> dict[str, dict[str, float]]:
    """Return {protocol: {metric: value, 0 to 1}} of a run, and of a file of `evaluate --json`."""
    results: dict[str, dict[str, float]] = {}
    run, step = _find_run(source)
    if run and exists(run / METRICS):
        rows = read_metrics(str(run))
        rows = [row for row in rows if "eval/loss" in row and row["step"] <= step]
        last = {name: rows[-1].get(f"eval/{name}") for name in METRIC_NAMES} if rows else {}
        results[ONE_CLIP] = {name: value for name, value in last.items() if value is not None}
    if file is not None:
        found = read_json(Path(file))
        if not isinstance(found.get("protocol"), str):
            raise UserError(f"{file} has no protocol: give a file of `videomae evaluate --json`")
        values = {name: _value(found[name]) for name in METRIC_NAMES if name in found}
        results[found["protocol"]] = {n: v for n, v in values.items() if v is not None}
    return {protocol: values for protocol, values in results.items() if values}


def _find_run(source: str) -> tuple[Path | None, float]:
    """Return the work directory that `source` is, or is a step of, and the step.

    The directory is None for weights of others and for "", the start of a run without any; the step
    of a work directory is infinite.
    """
    if source and not on_hub(source):
        folder = full_path(source)
        if is_folder(folder / CHECKPOINTS):
            return folder, math.inf
        if folder.name.isdigit() and folder.parent.name == CHECKPOINTS:
            return folder.parents[1], int(folder.name)
    return None, math.inf


def first_source(config: ConfigDict) -> str:
    """Return the model of the hub that a run started from, through runs of ours; "" if none."""
    seen: set[str] = set()
    start = config.get("init_from", "")
    while start not in seen and _find_run(start)[0]:
        seen.add(start)
        start = load_run_config(start).get("init_from", "")
    return start if hub.is_address(start) else ""


def _value(score: Any) -> float | None:
    """Return a number of `evaluate --json`, which writes some with their intervals."""
    score = score.get("value") if isinstance(score, dict) else score
    return float(score) if isinstance(score, int | float) else None


def model_card(
    checkpoint: Checkpoint,
    repository: str,
    *,
    to: str,
    run: Path | None,
    results: Mapping[str, Mapping[str, float]],
    base: str,
    licence: str,
) -> str:
    """Return the README.md of a model: what it is, its data, recipe, scores and licence.

    run: the work directory of its training; None for a model converted from a file. Of the data it
    has the name alone: a path says who trained where.
    """
    config, name = checkpoint.config, repository.partition("/")[2]
    facts = _facts(checkpoint, base, run)
    rows = [f"| {key} | {_cell(value)} |" for key, value in facts.items()]
    table = [
        f"| {METRIC_NAMES[metric]} | {value:.1%} | {protocol} |"
        for protocol, values in results.items()
        for metric, value in values.items()
    ]
    scores = ["| metric | value | protocol |", "|---|---|---|", *table]
    use = f'import videomae_jax as vm\n\nm = vm.load("hf://{repository}")'
    if to == "hf" and config.task == "classify":
        use += (
            "\n\n# or\nfrom transformers import VideoMAEForVideoClassification\n\n"
            f'model = VideoMAEForVideoClassification.from_pretrained("{repository}")'
        )
    terms = f"{licence}." if licence else "The authors of this model have named none."
    if not base and (config.get("init_from") or run is None):
        terms += " The weights it was made from have a licence of their own."
    if base:
        terms += f" It was made from {base}: what that one forbids is forbidden here too."
    return "\n".join(
        [
            *("---", *_metadata(config, name, results, base, licence), "---", ""),
            *(f"# {name}", "", f"{config.name}, by videomae_jax {__version__}.", ""),
            *("| | |", "|---|---|", *rows, ""),
            *("## Scores", "", *(scores if table else ["None were measured."]), ""),
            *("## Use", "", "```python", use, "```", ""),
            *("## Licence", "", terms, ""),
        ]
    )


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _metadata(
    config: ConfigDict,
    name: str,
    results: Mapping[str, Mapping[str, float]],
    base: str,
    licence: str,
) -> list[str]:
    """Return the lines of YAML that the hub reads; strings are written as JSON, which YAML is."""
    lines = ["library_name: videomae_jax", "tags: [videomae, jax, video]"]
    if licence:
        lines.append(f"license: {json.dumps(licence)}")
    if base:
        lines.append(f"base_model: {json.dumps(hub.parse_address(base).repository)}")
    task = PIPELINE.get(config.task)
    if task:
        lines.append(f"pipeline_tag: {task}")
    if task and results:
        metrics = [
            {
                "type": METRIC_NAMES[metric],
                "name": f"{METRIC_NAMES[metric]}, {protocol}",
                "value": v,
            }
            for protocol, values in results.items()
            for metric, v in values.items()
        ]
        result = {
            "task": {"type": task},
            "dataset": {"name": _data_name(config), "type": "video"},
            "metrics": metrics,
        }
        lines.append(f"model-index: {json.dumps([{'name': name, 'results': [result]}])}")
    return lines


def _facts(checkpoint: Checkpoint, base: str, run: Path | None) -> dict[str, str]:
    """Return the rows of the card's table."""
    config, params = checkpoint.config, checkpoint.params
    clip, encoder = config.clip, config.model.encoder
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    stride = f", stride {clip.stride}" if clip.get("sampling") != "sparse" else ", sparse"
    facts = {
        "task": config.task,
        "encoder": f"{encoder.depth} blocks of width {encoder.width}, {encoder.heads} heads",
        "parameters": f"{count / 1e6:.4g} M",
        "input": f"{clip.frames} frames of {clip.height} x {clip.width}{stride}",
        "pixels": f"mean {tuple(config.model.mean)}, std {tuple(config.model.std)} of [0, 1]",
    }
    if checkpoint.labels:
        facts["classes"] = f"{len(checkpoint.labels)}: {', '.join(checkpoint.labels[:20])}" + (
            ", ..." if len(checkpoint.labels) > 20 else ""
        )
    elif "classes" in config.model and config.model.classes:
        facts["classes"] = str(config.model.classes)
    start = Path(config.get("init_from", "")).name
    if run is None:
        return facts | {"made from": base or "a file of others", "data and recipe": "see there"}
    facts["started from"] = base or start or "random weights"
    facts["data"] = _data_name(config) + _counts(run)
    recipe = {key: config[key] for key in RECIPE if config.get(key)}
    if "steps" in recipe:  # they take precedence
        recipe.pop("epochs", None)
    facts["recipe"] = ", ".join(f"{key} {value:g}" for key, value in recipe.items())
    return facts


RECIPE = ("epochs", "steps", "batch_size", "repeats", "lr", "base_lr", "layer_decay", "seed")


def _counts(run: Path) -> str:
    """Return how many videos a run was trained on and held out; "" if its classes do not say it."""
    if not exists(run / CLASSES):
        return ""
    text = read_bytes(run / CLASSES).decode()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    train, held_out = (sum(int(row[name]) for row in rows) for name in ("train", "held_out"))
    return f": {train:,} labels, {held_out:,} held out"


def _data_name(config: ConfigDict) -> str:
    """Return the name of the list or folder of the training, without its path."""
    return Path(config.data.train).name or "unknown"

"""List the models that others released and that can be read here, with their scores and licences.

With NAME, prints all that is known of a model and where it was read. models:NAME is a checkpoint:
for --checkpoint, init_from, `videomae convert` and `videomae_jax.load`. It is downloaded from the
hub, see docs/hub.md. Every form of file in the list was read with random weights; the released
files themselves were not available.

examples:
  videomae models
  videomae models videomaev2-s-k710-distilled
  videomae models --json models.json
"""

import argparse
from typing import TYPE_CHECKING, Any

from videomae_jax.commands import options

if TYPE_CHECKING:
    from videomae_jax.interop.released import Released


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="a model of the list")
    options.add_json(parser, of="the models")


def main(args: argparse.Namespace) -> None:
    """Run the command."""
    from videomae_jax.interop.released import RELEASED, find_released

    if args.name:
        found = [find_released(args.name)]
        print_model(found[0])
    else:
        found = list(RELEASED.values())
        print_list(found)
    options.write_json(args.json, [as_json(model) for model in found])


def print_list(models: "list[Released]") -> None:
    """Print a line for each model."""
    rows = [("NAME", "TASK", "MB", "CLASSES", "LICENCE", "GET", "SCORES")]
    for model in models:
        size = "?" if model.size_mb is None else f"{model.size_mb:,.0f}"
        get = "hub" if model.address else "by hand"
        classes = str(model.classes or "-")
        rows.append((model.name, model.task, size, classes, model.licence, get, scores_of(model)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print(
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        )


def print_model(model: "Released") -> None:
    """Print all that is known of a model."""
    from videomae_jax.models.vit import SIZES

    encoder = SIZES[model.size].encoder
    size = "unknown" if model.size_mb is None else f"{model.size_mb:,.6g} MB"
    rows = {
        "checkpoint": f"models:{model.name}" if model.address else 'by hand, see "get"',
        "get": model.address or model.page,
        "file": f"{as_json(model)['form_in_words']}; {size}",
        "sha256": model.sha256,
        "task": model.task + (f", {model.classes} classes" if model.classes else ""),
        "encoder": f"ViT-{model.size}: {encoder.depth} blocks of width {encoder.width}",
        "input": f"{model.clip} (frames, height, width)",
        "trained": model.trained,
        "scores": scores_of(model),
        "protocol": model.protocol,
        "licence": model.licence,
        "source": model.source,
        "unverified": model.unverified,
        "verified": "names and shapes, with random weights in this form; the file itself was not",
    }
    print(model.name)
    for name, value in rows.items():
        if value:
            print(f"  {name:<12}{value}")


def scores_of(model: "Released") -> str:
    """Return the scores in one line."""
    return ", ".join(f"{name} {score:.1f}" for name, score in model.scores.items())


def as_json(model: "Released") -> dict[str, Any]:
    """Return a model as JSON types."""
    from videomae_jax.interop.released import FORMS

    verified = {"names_and_shapes": True, "file": False}
    return {**model._asdict(), "form_in_words": FORMS[model.form], "verified": verified}

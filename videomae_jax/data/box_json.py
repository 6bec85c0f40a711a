"""Json files of boxes in the layout of COCO, as AlphAction and VideoMAE write them.

Annotations have "images" (id, movie, timestamp, width, height) and "annotations" (image_id, bbox:
x, y, width, height in pixels, action_ids, person_id). Detections are a list of image_id, bbox and
score; results of COCO detectors have a category_id too, of which 1 is a person. An image_id is
the id of an image of the annotations, or the text "video,second".
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from videomae_jax.data.box_table import Table
from videomae_jax.errors import UserError
from videomae_jax.paths import read_bytes

PERSON = 1  # the category of COCO


class _Image(NamedTuple):
    """The moment of an image, and its width and height in pixels; (1, 1) if unknown."""

    name: str
    second: float
    size: tuple[float, float] = (1.0, 1.0)


def read_json(path: Path, *, images: Path | None) -> Table:
    """Read annotations or detections. images: the annotations that image ids refer to.

    Raises UserError for another layout, and for detections whose images are not known.
    """
    content = _load(path)
    try:
        if isinstance(content, Mapping):
            kind = "json of annotations"
            boxes = [
                box for box in content["annotations"] if box.get("category_id", PERSON) == PERSON
            ]
            known = _images(content)
        else:
            kind = "json of detections"
            boxes = [box for box in content if box.get("category_id", PERSON) == PERSON]
            known = _images(_load(images)) if images and images.suffix == ".json" else {}
        found = [_find(box["image_id"], known, path, images) for box in boxes]
        corners = np.array([box["bbox"] for box in boxes], float).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        sizes = np.array([image.size for image in found], float).reshape(-1, 2)
        actions = ["|".join(map(str, box.get("action_ids", ()))) for box in boxes]
        persons = [box.get("person_id", -1) for box in boxes]
        scores = [box.get("score") for box in boxes]
        return Table(
            kind=kind,
            lines=np.arange(1, len(boxes) + 1),
            names=[image.name for image in found],
            moments=np.array([image.second for image in found], float),
            corners=corners / np.tile(sizes, 2),
            actions=actions,
            persons=np.array(persons, np.int64),
            scores=None if None in scores else np.array(scores, float),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} has neither images and annotations of boxes, nor a list of image_id, bbox and "
            f"score ({type(error).__name__}: {error})"
        ) from None


def _load(path: Path) -> Any:
    try:
        return json.loads(read_bytes(path).decode("utf-8-sig"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None


def _images(content: Mapping) -> dict[Any, _Image]:
    return {
        image["id"]: _Image(
            str(image["movie"]), float(image["timestamp"]), (image["width"], image["height"])
        )
        for image in content["images"]
    }


def _find(identity: Any, known: dict[Any, _Image], path: Path, images: Path | None) -> _Image:
    if identity in known:
        return known[identity]
    name, comma, second = str(identity).rpartition(",")
    if comma:
        return _Image(name, float(second))
    where = f"{images} has no image of that id" if known else "annotations that have images"
    raise UserError(
        f"{path}: image_id {identity!r} is not known: {where}; give annotations as the json with "
        'these images, or ids such as "video,902"'
    )

"""Recipes do not change unnoticed: a digest of all their values, and how to update it."""

import hashlib
import itertools
import json
from pathlib import Path

from videomae_jax.config import flatten, load_recipe

FILE = Path(__file__).parent.parent / "files/recipe_digests.json"
SIZES, DATA = ("tiny", "s", "b", "l", "h"), ("k400", "ssv2", "ucf101", "hmdb51", "custom")
ARGUMENTS = {
    "pretrain": [
        *itertools.product((*SIZES, "g"), DATA, ("v1", "v2", "cross")),
        *itertools.product(("tiny", "s", "b"), ("k400", "ssv2", "custom"), ("amd",)),
    ],
    "finetune": [*itertools.product(SIZES, DATA), ("b", "k400", "e800"), ("b", "ssv2", "e800")],
    "contrast": itertools.product(SIZES, DATA),
    "detect": itertools.product(SIZES, ("ava", "ava_ft", "custom")),
    "probe": itertools.product(("linear", "attentive"), SIZES, DATA),
}


def digests() -> dict[str, str]:
    """Return {recipe: digest of its keys, values and their types}, without the demo's paths."""
    found = {}
    for name, choices in ARGUMENTS.items():
        for choice in choices:
            values = flatten(load_recipe(name, ",".join(choice)))
            found[f"{name}:{','.join(choice)}"] = _digest(values)
    demo = flatten(load_recipe("demo"))
    found["demo"] = _digest({k: v for k, v in demo.items() if k not in ("data.train", "data.eval")})
    return found


def _digest(values):
    return hashlib.sha256(repr(sorted(values.items())).encode()).hexdigest()[:8]


def test_recipes_are_the_recorded_ones():
    recorded, now = json.loads(FILE.read_text()), digests()
    changed = [name for name in recorded | now if recorded.get(name) != now.get(name)]
    assert not changed, "if this is intended: PYTHONPATH=. python tests/configs/test_recipes.py"


if __name__ == "__main__":
    FILE.write_text(json.dumps(digests(), indent=0) + "\n")

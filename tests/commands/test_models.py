"""`videomae models`: the list, one of it, and JSON."""

import json

from runs import fails

from videomae_jax import cli
from videomae_jax.interop.released import RELEASED


def test_the_list_has_a_line_for_each_model(capsys, tmp_path):
    cli.main(["models", "--json", str(tmp_path / "models.json")])
    title, *lines = capsys.readouterr().out.splitlines()
    assert title.split() == ["NAME", "TASK", "MB", "CLASSES", "LICENCE", "GET", "SCORES"]
    assert [line.split()[0] for line in lines] == list(RELEASED)
    # The best starts first.
    assert lines[0].split()[:6] == [
        *("videomaev2-s-k710-distilled", "classify", "44", "710", "Apache-2.0", "hub"),
    ]
    written = json.loads((tmp_path / "models.json").read_text())
    assert [model["name"] for model in written] == list(RELEASED)
    assert written[0]["verified"] == {"names_and_shapes": True, "file": False}
    assert written[0]["scores"]["K400 top-1"] == 83.7


def test_a_model_with_all_that_is_known(capsys):
    cli.main(["models", "videomae-s-k400"])
    said = capsys.readouterr().out
    for words in (
        "https://drive.google.com/file/d/1nU-H1u3eJ-VuyCveU7v-WIOcAVxs5Hww/view",
        "K400 top-1 79.0",
        "5x3 views, after fine-tuning on the same data",
        "CC-BY-NC-4.0",
        "MODEL_ZOO.md of 5cefe18",
        "inferred from others of the project",
        "the file itself was not",
    ):
        assert words in said


def test_an_unknown_model(capsys):
    assert "did you mean 'videomae-b-k400'" in fails(capsys, "models", "videomae-b-k40")

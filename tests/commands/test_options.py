"""Flags that several commands share."""

import json

from videomae_jax.commands import options


def test_a_json_file_is_utf_8_whatever_the_names_in_it(tmp_path):
    """Archives made on Windows have names in other encodings."""
    names = ["\udcc5\udcdc.mp4", "é.mp4"]
    options.write_json(str(tmp_path / "deep/x.json"), names)
    text = (tmp_path / "deep/x.json").read_text(encoding="utf-8")
    assert json.loads(text) == names and "é" in text

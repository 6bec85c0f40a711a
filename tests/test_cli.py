"""What every sub-command shares."""

import io
import sys

import pytest

from videomae_jax import cli


def test_names_that_no_terminal_can_show_are_escaped(monkeypatch):
    """As Python does for stderr; archives made on Windows have such names."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="utf-8"))
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    print("\udcc5\udcdc.mp4", flush=True)
    assert written.getvalue().endswith(b"\\udcc5\\udcdc.mp4\n")

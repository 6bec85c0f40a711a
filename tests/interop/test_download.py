"""Weights and teachers in a bucket that does not answer."""

import pytest

from videomae_jax.config import load_recipe
from videomae_jax.errors import StorageUnavailable
from videomae_jax.interop import download, teacher


def stay_away(path, *_, **__):
    raise StorageUnavailable(f"{path}: the bucket cannot be reached: no answer")


def test_an_outage_while_weights_are_copied_keeps_its_exit_code(monkeypatch):
    monkeypatch.setattr(download.paths, "is_folder", lambda path: False)
    monkeypatch.setattr(download.paths, "exists", stay_away)
    with (
        pytest.raises(StorageUnavailable, match="^gs://b/config.json: the bucket"),
        download.local_weights("gs://b/model.pth"),
    ):
        pass


def test_an_outage_while_a_teacher_is_read_keeps_its_exit_code(monkeypatch):
    monkeypatch.setattr(teacher, "read_config", stay_away)
    config = load_recipe("pretrain", "s,custom").copy_and_resolve_references()
    config.task, config.teacher = "amd", "gs://b/run"
    with pytest.raises(StorageUnavailable, match="^config.teacher: gs://b/run: the bucket"):
        teacher.with_teacher(config)

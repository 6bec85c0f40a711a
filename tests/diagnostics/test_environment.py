"""The commit that a measurement names is that of this project, or none."""

import subprocess

from videomae_jax.diagnostics import environment


def test_the_commit_is_never_that_of_a_repository_around_the_package(tmp_path, monkeypatch):
    git = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message=a"], check=True)
    monkeypatch.setattr(environment, "CHECKOUT", tmp_path)
    commit = environment.describe_environment()["commit"]
    assert commit is not None and len(commit) >= 7
    (tmp_path / "site-packages").mkdir()
    monkeypatch.setattr(environment, "CHECKOUT", tmp_path / "site-packages")
    assert environment.describe_environment()["commit"] is None

"""The documentation names files that exist and commands that the command line understands."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

from videomae_jax import cli
from videomae_jax.config import load_config

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")],
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
TOP = "configs|data|docs|examples|experiments|launch|tests|videomae_jax"
PATH = re.compile(rf"`((?:(?:{TOP})/[\w./-]+)|[a-z_]+/[a-z_]+\.py)`")


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub names them."""
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(page: Path) -> list[str]:
    """Return the `videomae` commands in the fenced blocks of a page, without comments."""
    lines = [
        line
        for language, block in FENCE.findall(page.read_text())
        if language in ("", "bash")
        for line in re.sub(r"\\\n\s*", " ", block).splitlines()
    ]
    return [line for line in lines if line.startswith("videomae ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_that_are_named_exist(page):
    """From the root of the repository, or modules from that of the package."""
    for path in PATH.findall(page.read_text()):
        if "NAME" not in path:
            assert (ROOT / path).exists() or (ROOT / "videomae_jax" / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_parse(page, monkeypatch):
    """The parsers of the command line see them; nothing runs."""
    seen = []
    parse = argparse.ArgumentParser.parse_known_args

    def parse_only(parser, *arguments, **options):
        args, rest = parse(parser, *arguments, **options)
        if "run" in args:
            args.run = seen.append
        return args, rest

    monkeypatch.setattr(cli._Parser, "parse_known_args", parse_only)
    found = commands(page)
    for command in found:
        command = command.replace("[WORKDIR]", "WORKDIR")
        cli.main(shlex.split(command, comments=True)[1:])
        args = seen[-1]
        if getattr(args, "config", None) and "CONFIG" not in args.config:
            load_config(args.config, args.overrides)
    assert len(seen) == len(found)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 900

"""The commands that pages and workflows name, read by the parsers of their programs.

Nothing runs. A command in a block is whole; one in a sentence may lack arguments, or say "...".
"""

import argparse
import configparser
import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from experiments.study.forms import FORMS
from videomae_jax import cli
from videomae_jax.config import load_config

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^ *```([^\n`]*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
SHELL = ("", "bash", "console", "sh")  # languages of blocks that may hold commands
SEPARATORS = ("&&", "||", "|", ";")
LAUNCHER = re.compile(r"launch/[\w.]+")
# What may stand before a command.
BEFORE = re.compile(r"[A-Z_]+=.*|\$|for|do|then|if|exec|sudo")


def read(page: Path) -> str:
    """Return the text of a page; the code of a notebook is in fenced blocks, `!` removed."""
    if page.suffix != ".ipynb":
        return page.read_text()
    texts = []
    for cell in json.loads(page.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            source = "```\n" + re.sub(r"^!", "", source, flags=re.MULTILINE) + "\n```"
        texts.append(source)
    return "\n\n".join(texts)


def blocks(page: Path) -> list[str]:
    """Return the blocks of a page that may hold commands, or the steps of a workflow."""
    if page.suffix == ".yml":
        jobs = yaml.safe_load(page.read_text())["jobs"].values()
        return [step["run"] for job in jobs for step in job.get("steps", ()) if "run" in step]
    return [block for language, block in FENCE.findall(read(page)) if language in SHELL]


def spans(page: Path) -> list[str]:
    """Return what stands between backticks in the text of a page."""
    return [" ".join(span.split()) for span in SPAN.findall(FENCE.sub("", read(page)))]


def commands(text: str) -> list[list[str]]:
    """Return the commands of a text that `Reader` knows, as words, without comments."""
    found = []
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        try:
            words = shlex.split(line.replace("[WORKDIR]", "WORKDIR"), comments=True)
        except ValueError:  # a quote without its other half is no command
            continue
        command: list[str] = []
        for word in [*words, ";"]:
            if word not in SEPARATORS:
                command.append(word)
                continue
            while command and BEFORE.fullmatch(command[0]):
                del command[0]
            if command and Reader.knows(command):
                found.append(command)
            command = []
    return found


def all_options() -> set[str]:
    """Return the options of every sub-command of `videomae`."""
    found = set()

    def look(parser):
        for action in parser._actions:
            found.update(action.option_strings)
            if isinstance(action, argparse._SubParsersAction):
                for command in action.choices.values():
                    look(command)

    parser = cli._Parser()
    cli.add_commands(parser, cli.COMMANDS, package="videomae_jax.commands")
    look(parser)
    return found


def extras() -> list[str]:
    """Return the extras that the package has."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return [*setup["options.extras_require"]]


class Understood(Exception):
    """The parser of a script knows its words; the script must not go on."""


class Reader:
    """Fails for words that the parser of a program, its targets or its files do not know."""

    def __init__(self, monkeypatch, capsys):
        self._patch, self._capsys = monkeypatch, capsys
        self._seen: list[argparse.Namespace] = []
        self._whole = True
        parse, parse_all = cli._Parser.parse_known_args, argparse.ArgumentParser.parse_args

        def parse_command(parser, *given):
            self._relax(parser)
            args, rest = parse(parser, *given)
            if "run" in args:
                args.run = self._seen.append
            return args, rest

        def parse_script(parser, *given):
            self._relax(parser)
            parse_all(parser, *given)
            raise Understood

        monkeypatch.setattr(cli._Parser, "parse_known_args", parse_command)
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_script)

    @classmethod
    def knows(cls, words: list[str]) -> bool:
        """Whether these words are a command that can be read."""
        return Path(words[0]).name in cls.PROGRAMS or any(map(LAUNCHER.fullmatch, words))

    def read(self, words: list[str], *, whole: bool) -> None:
        """Read a command. whole: nothing is missing."""
        self._whole = whole
        if not whole:
            words = [word for word in words if not word.endswith("...")]
        read = self.PROGRAMS.get(Path(words[0]).name, Reader._launcher)
        try:
            read(self, words)
        except SystemExit as error:
            problem = self._capsys.readouterr().err
            assert not error.code, f"{shlex.join(words)}: {problem}"  # 0 is that of --help

    def _relax(self, parser: argparse.ArgumentParser) -> None:
        """Let arguments be missing."""
        if self._whole:
            return
        for action in parser._actions:
            if action.option_strings:
                action.required = False
            elif not isinstance(action, argparse._SubParsersAction):
                action.nargs = {None: "?", "+": "*"}.get(action.nargs, action.nargs)

    def _videomae(self, words: list[str]) -> None:
        if words[1] == "COMMAND":
            return
        self._seen.clear()
        cli.main(words[1:])
        (args,) = self._seen
        config = getattr(args, "config", None)
        if args.prog == "videomae benchmark":  # it has recipes of its own
            recipe = "finetune" if args.task == "finetune" else "pretrain"
            config = f"{recipe}:{args.model},k400"
        if config and "CONFIG" not in config:
            load_config(config, args.overrides)

    def _make(self, words: list[str]) -> None:
        makefile = (ROOT / "Makefile").read_text()
        for word in words[1:]:
            name, equals, value = word.partition("=")
            pattern = rf"^{name} \?=" if equals else rf"^{name}:"
            assert re.search(pattern, makefile, re.MULTILINE), f"make {word}"
            assert name != "FORM" or value in (*FORMS, "FORM"), f"make {word}"

    def _python(self, words: list[str]) -> None:
        if words[1] == "-m" and words[2] == "pytest":
            assert all((ROOT / word).exists() for word in words if "/" in word[1:]), words
            return
        if words[1] == "-m":
            file, arguments = words[2].replace(".", "/") + ".py", words[3:]
        else:
            file, arguments = words[1], words[2:]
        if not file.startswith(("experiments/", "tests/")):
            return  # of the reader
        script = ROOT / file
        assert script.exists(), words
        if "argparse" not in script.read_text():
            assert not arguments, f"{file} takes no arguments"
            return
        # As Python does; the tests have a folder of the same name as a module of experiments/.
        self._patch.setattr(sys, "argv", [file, *arguments])
        self._patch.syspath_prepend(script.parent)
        self._patch.delitem(sys.modules, "commands", raising=False)
        with pytest.raises(Understood):
            runpy.run_path(str(script), run_name="__main__")

    def _pip(self, words: list[str]) -> None:
        for word in words:
            if match := re.fullmatch(r"(?:\.|videomae_jax)\[([\w,-]+)\]", word):
                missing = {*match[1].split(",")} - {*extras(), "NAME"}
                assert not missing, f"{word}: no such extra"

    def _launcher(self, words: list[str]) -> None:
        """Read the files of launch/ in a command of another program, and its config."""
        for word in words:
            if LAUNCHER.fullmatch(word):
                assert (ROOT / word).is_file(), f"{word} does not exist"
        given = [word.removeprefix("--config=") for word in words]
        configs = [word for word in given if re.fullmatch(r"[a-z]+:[\w,]+", word)]
        for config in configs:
            load_config(config, [word for word in words if word.startswith("--config.")])

    PROGRAMS = {
        "videomae": _videomae,
        "make": _make,
        "python": _python,
        "python3": _python,
        "pip": _pip,
    }

"""The parts of the reference that are made from the code when the site is built, as Markdown."""

import argparse
import ast
import io
import re
import tokenize
from pathlib import Path
from typing import Any, NamedTuple

from videomae_jax import cli, config
from videomae_jax.models import vit

# What a key page shows of each recipe: its usual arguments, and others that have more keys.
RECIPES = {
    "pretrain": ("b,k400", "b,k400,amd"),
    "finetune": ("b,k400",),
    "probe": ("linear,b,k400",),
    "contrast": ("b,k400",),
    "detect": ("b,ava",),
}


def commands() -> str:
    """Return a section for each command of the command line, from its parser."""
    return "\n\n".join(_sections(cli.make_parser()))


def _sections(parser: argparse.ArgumentParser) -> list[str]:
    sections = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                sections += [_section(command), *_sections(command)]
    return sections


def _section(parser: argparse.ArgumentParser) -> str:
    usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
    parts = [f"## {parser.prog}", _text(parser.description or ""), f"```\n{_wrap(usage)}\n```"]
    for group in parser._action_groups:
        arguments = [a for a in group._group_actions if a.dest != "help" and a.help]
        if arguments and group.title not in ("positional arguments", "options"):
            parts.append(f"**{(group.title or '').capitalize()}**")
        parts += [_argument(parser, argument) for argument in arguments]
    examples = "\n".join(
        line.strip() for line in (parser.epilog or "").splitlines()[1:] if line.strip()
    )
    return "\n\n".join([*parts, f"```\n{examples}\n```"])


def _argument(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """Return an argument as an item of a definition list."""
    formatter = parser.formatter_class(parser.prog)
    value = formatter._format_args(action, formatter._get_default_metavar_for_optional(action))
    if not action.option_strings:
        names = [formatter._format_args(action, action.dest)]
    else:
        names = [f"{name} {value}".strip() for name in action.option_strings]
    needed = ", required" if action.required and action.option_strings else ""
    title = ", ".join(f"`{name}`" for name in names) + needed
    return f"{title}\n: {_text(formatter._expand_help(action))}"


def _wrap(usage: str, width: int = 76) -> str:
    """Break a usage line before options, as argparse does."""
    lines = [""]
    for part in re.findall(r"\[[^\]]*\](?:\.\.\.)?|\([^)]*\)|\S+", usage):
        if len(lines[-1]) + len(part) >= width:
            lines.append("   ")
        lines[-1] += f" {part}" if lines[-1] else part
    return "\n".join(lines)


def _text(text: str) -> str:
    """Return help as Markdown: `code` and --options are code, and pages become links."""
    pieces = re.split(r"(`[^`]*`|(?<![\w-])--[a-z][\w.=-]*\w)", text)
    pieces[::2] = [re.sub(r"([\\*_<>|$\[\]])", r"\\\1", piece) for piece in pieces[::2]]
    pieces[1::2] = [f"`{piece.strip('`')}`" for piece in pieces[1::2]]
    return re.sub(r"docs/(\w+\.md)", r"[docs/\1](../\1)", "".join(pieces))


def config_keys() -> str:
    """Return tables of the keys: those that are alike in every recipe, then the others of each."""
    recipes = {name: _recipe(name) for name in RECIPES}
    shared = set.intersection(*(set(keys.items()) for keys in recipes.values()))
    first = next(iter(recipes.values()))
    tables = [_table("Every recipe", {k: v for k, v in first.items() if (k, v) in shared})]
    for name, keys in recipes.items():
        own = {key: entry for key, entry in keys.items() if (key, entry) not in shared}
        tables.append(_table(f"`{name}:{RECIPES[name][0]}`", own))
    return "\n\n".join(tables)


class Key(NamedTuple):
    """A key of a recipe. kind: its type and its legal values."""

    kind: str
    default: str
    comment: str


def _recipe(name: str) -> dict[str, Key]:
    """Return the keys of a recipe, in the order of its source."""
    leaves: dict[str, Any] = {}
    for arguments in RECIPES[name]:
        leaves = config.flatten(config.load_recipe(name, arguments)) | leaves
    comments = recipe_comments(name)
    keys = sorted(leaves, key=list(comments).index)
    return {key: Key(_type(key, leaves[key]), _code(leaves[key]), comments[key]) for key in keys}


def _table(title: str, keys: dict[str, Key]) -> str:
    rows = [f"## {title}\n", "| key | type | default | meaning |", "|---|---|---|---|"]
    for key, entry in keys.items():
        meaning = entry.comment.rstrip(".")
        if meaning[1:2].islower():
            meaning = meaning[0].lower() + meaning[1:]
        rows.append(f"| `{key}` | {entry.kind} | {entry.default} | {_text(meaning)} |")
    return "\n".join(rows)


def _type(key: str, value: Any) -> str:
    kind = type(value).__name__
    if isinstance(value, tuple) and value:
        kind = f"tuple of {type(value[0]).__name__}"
    for limit in config.LIMITS:
        if re.fullmatch(limit.keys, key):
            if limit.most == float("inf"):
                return f"{kind}, {limit.least:g} or more"
            return f"{kind}, {limit.least:g} to {'below ' if limit.below else ''}{limit.most:.10g}"
    return kind


def _code(value: Any) -> str:
    if isinstance(value, float):
        return f"`{value:.4g}`"
    if isinstance(value, tuple) and len(value) > 4:
        return f"{len(value)} values"
    if isinstance(value, tuple):
        return f"`({', '.join(_code(item).strip('`') for item in value)})`"
    return f"`{value!r}`"


def recipe_comments(name: str) -> dict[str, str]:
    """Return {dotted key: comment} of a recipe of the package, from its source."""
    file = _Source(config.RECIPES / f"{name}.py")
    # The probe changes the recipe of fine-tuning.
    comments = recipe_comments("finetune") if name == "probe" else file.returned("get_config")
    return comments | file.assigned("get_config")


class _Source:
    """The comments of a Python file, by the line that they explain."""

    def __init__(self, path: Path):
        text = path.read_text()
        self._tree = ast.parse(text)
        self._beside: dict[int, str] = {}
        self._alone: dict[int, str] = {}
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                alone = not token.line[: token.start[1]].strip()
                place = self._alone if alone else self._beside
                place[token.start[0]] = token.string.lstrip("# ")

    def _of(self, first: int, last: int) -> str:
        """Return the comment of lines: the lines above that are comments, and the one beside."""
        above = []
        while first - 1 in self._alone:
            first -= 1
            above.insert(0, self._alone[first])
        return " ".join([*above, *filter(None, [self._beside.get(last)])])

    def _function(self, name: str) -> ast.FunctionDef:
        return next(
            node
            for node in self._tree.body
            if isinstance(node, ast.FunctionDef) and node.name == name
        )

    def returned(self, name: str) -> dict[str, str]:
        """Return the comments of the nested dict(...) that a function returns."""
        value = self._function(name).body[-1].value
        while value.func.id != "dict":  # ConfigDict(dict(...))
            (value,) = value.args
        return self._dict(value, "")

    def assigned(self, name: str) -> dict[str, str]:
        """Return the comments of assignments to `config.KEY` in a function."""
        found = {}
        for node in ast.walk(self._function(name)):
            if isinstance(node, ast.Assign) and (comment := self._of(node.lineno, node.end_lineno)):
                target = ast.unparse(node.targets[0])
                if target.startswith("config."):
                    found[target.removeprefix("config.")] = comment
        return found

    def fields(self, name: str, prefix: str) -> dict[str, str]:
        """Return the comments of the fields of a dataclass."""
        (node,) = (n for n in self._tree.body if isinstance(n, ast.ClassDef) and n.name == name)
        fields = [field for field in node.body if isinstance(field, ast.AnnAssign)]
        return {f"{prefix}{f.target.id}": self._of(f.lineno, f.end_lineno) for f in fields}

    def _dict(self, call: ast.Call, prefix: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for keyword in call.keywords:
            value, key = keyword.value, f"{prefix}{keyword.arg}"
            called = ast.unparse(value.func) if isinstance(value, ast.Call) else ""
            if keyword.arg is None and called:  # **machine_keys()
                shared = _Source(Path(config.__file__)).returned(called)
                found |= {f"{prefix}{name}": text for name, text in shared.items()}
            elif keyword.arg is None:  # **({"teacher_ratio": 0.75} if recipe == "amd" else {})
                dicts = [node for node in ast.walk(value) if isinstance(node, ast.Dict)]
                names = [name.value for node in dicts for name in node.keys]
                found |= {f"{prefix}{name}": self._of(value.lineno, value.lineno) for name in names}
            elif called == "dict":
                found |= self._dict(value, f"{key}.")
            elif called == "dataclasses.asdict":
                found |= _Source(Path(vit.__file__)).fields("Size", f"{key}.")
            else:
                found[key] = self._of(keyword.lineno, value.end_lineno)
        return found

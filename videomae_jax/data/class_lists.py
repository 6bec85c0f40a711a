"""Class lists of action detection: .pbtxt as AVA has it, or a text file of names."""

import re
from pathlib import Path

from videomae_jax.data.manifest import MOST_LABELS
from videomae_jax.data.text_files import read_text, split_lines
from videomae_jax.errors import UserError
from videomae_jax.paths import full_path

_FIELD = re.compile(r"""\b(name|id|label_id)\s*:\s*(?:"([^"]*)"|'([^']*)'|(\d+))""")


def read_class_list(path: str | Path) -> dict[int, str]:
    """Return the names of classes by their ids, which count from 1.

    A .pbtxt has blocks with a `name` and an `id` (or `label_id`). Other files have one class a
    line, `name`, `id,name` or `name,id`, with or without a header; without ids they are numbered
    from 1. A list may lack some ids, like that of the evaluated classes of AVA. Raises
    UserError for a file without classes, and for an id or a name that is in it twice.
    """
    path = full_path(path)
    text = read_text(path)
    pairs = _read_blocks(text) or _read_lines(text, path)
    names: dict[int, str] = {}
    for number, name in pairs:
        if not 1 <= number <= MOST_LABELS:
            raise UserError(f"{path}: class {number} {name!r}: ids are 1 to {MOST_LABELS:,}")
        if number in names or name in names.values():
            raise UserError(f"{path}: class {number} {name!r}: give each id and each name once")
        names[number] = name
    if not names:
        raise UserError(f"{path} lists no classes: give a .pbtxt, or one name a line")
    return names


def name_classes(names: dict[int, str]) -> tuple[str, ...]:
    """Return the names of ids 1, 2, ... to the largest; an id without a name is named by itself."""
    return tuple(names.get(number, str(number)) for number in range(1, max(names) + 1))


def _read_blocks(text: str) -> list[tuple[int, str]]:
    """Return (id, name) of the blocks of a .pbtxt, whatever the order in a block."""
    pairs, number, name = [], None, None
    for field in _FIELD.finditer(text):
        if field[1] == "name":
            name = field[2] if field[2] is not None else field[3]
        elif field[4]:
            number = int(field[4])
        if number is not None and name is not None:
            pairs.append((number, name))
            number = name = None
    return pairs


def _read_lines(text: str, path: Path) -> list[tuple[int, str]]:
    lines = [line.strip() for line in split_lines(text) if line.strip()]
    first = re.compile(r"(\d+)\s*[,;:\t ]\s*(.+)")
    last = re.compile(r"(.+?)\s*[,;\t]\s*(\d+)")
    for pattern, number, name in ((first, 1, 2), (last, 2, 1)):
        found = [pattern.fullmatch(line) for line in lines]
        # The first line may be a header.
        if found[1:] and all(found[1:]) or all(found):
            return [(int(m[number]), m[name].strip("\"' ")) for m in found if m]
    return [(row, line.strip("\"'")) for row, line in enumerate(lines, 1)]

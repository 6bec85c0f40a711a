"""Text files that people write: lists of videos, tables and class lists."""

import codecs
import os
import re
from collections.abc import Iterable

from videomae_jax import paths
from videomae_jax.errors import UserError

# What is left of bytes that are not text.
_NOT_TEXT = re.compile("[\0\udc80-\udcff]")


def read_text(path: str | os.PathLike[str], *, strict: bool = True, size: int = -1) -> str:
    """Return the text of a file in UTF-8, or in UTF-16 with a byte order mark.

    strict: False keeps bytes that are not text as surrogates, as names of files may have any bytes.
    size: how many bytes are read, -1 for all. Raises UserError for a file that cannot be read, and
    for one that is not text if `strict`.
    """
    try:
        data = paths.read_bytes(path, 0, size)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    # What Windows PowerShell writes for `>`, and Notepad for "Unicode".
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = data.decode("utf-16", "replace")
    else:
        text = data.decode("utf-8-sig", "surrogateescape")
    if strict and not is_text(text):
        raise UserError(f"{path} is not a text file in UTF-8")
    return text


def is_text(text: str) -> bool:
    """Return whether no part of what `read_text` returned was other bytes than text."""
    return not _NOT_TEXT.search(text)


def split_lines(text: str) -> list[str]:
    """Split text at line breaks alone; `str.splitlines` also splits at characters of names."""
    return re.split(r"\r\n|\n|\r", text)


def write_lines(path: str | os.PathLike[str], lines: Iterable[str]) -> None:
    """Write text, one line each, and make the folder. Raises UserError if that fails."""
    text = "".join(f"{line}\n" for line in lines)
    with paths.writing(path):
        paths.make_folder(paths.as_path(path).parent)
        with paths.to_write(path) as file:
            file.write_bytes(text.encode("utf-8", "surrogateescape"))

"""The error for mistakes that the user can fix, and helpers for its messages."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in a flag, a config, a file or the set-up of the machine.

    The message is one or two lines: the cause, the value that was given and the nearest legal
    one. Commands print it without a traceback and exit with 1. Any other exception is a bug and
    keeps its traceback.
    """

    exit_code = 1


class StorageError(UserError):
    """A bucket is gone or denies access: a restart would not help."""


class StorageGone(StorageError):
    """A bucket, or an object that must be in it, is not there."""


class StorageUnavailable(UserError):
    """A bucket did not answer for as long as requests are repeated: a restart may help."""

    exit_code = 134


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return the end of a message, "; did you mean 'NAME'?", or "" if no name is similar."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def divide_batch(batch_size: int, parts: int, *, by: str) -> int:
    """Return the rows of each of `parts` equal parts of a batch.

    by: the parts in words, such as "8 devices". Raises UserError if they are not whole, with the
    nearest legal batch sizes.
    """
    if batch_size < 1 or batch_size % parts:
        below = batch_size // parts * parts
        near = f"{below} or {below + parts}" if below > 0 else f"{parts}"
        raise UserError(f"batch {batch_size} is not divisible by {by}: use {near}")
    return batch_size // parts

"""Where a checkpoint is: a local path, an address of the hub, or the name of a released model."""

import sys
from typing import NamedTuple

from videomae_jax.interop import hub
from videomae_jax.interop.released import MODELS_PREFIX, address_of, heads_of


class Source(NamedTuple):
    """A local file or folder. address: its pinned address on the hub, or "".

    num_heads: attention heads of the encoder of a released model, whose file may say a wrong
    number; None of others.
    """

    path: str
    address: str = ""
    num_heads: int | None = None


def find_source(path: str, *, report: bool = False) -> Source:
    """Return a local copy of what `path` means, and download it if it is not local.

    path: a local path, hf://OWNER/NAME[@REVISION][/PATH], or models:NAME of `videomae models`.
    report: print the commit and the licence of an address without a commit, on stderr. Raises
    UserError, in one line, for what cannot be downloaded.
    """
    if not on_hub(path):
        return Source(path)
    copy = hub.download(address_of(path))
    if report and not (hub.is_address(path) and hub.parse_address(path).pinned):
        print(describe(path, copy), file=sys.stderr)
    return Source(copy.path, str(copy.address), heads_of(copy.address))


def on_hub(path: str) -> bool:
    """Whether a path means a model of the hub."""
    return path.startswith((hub.PREFIX, MODELS_PREFIX))


def pin(path: str) -> tuple[str, str]:
    """Return the pinned address that `path`, a model of the hub, means now, and a line about it.

    An address may mean another commit from day to day; a run stores the one that it read.
    """
    copy = hub.download(address_of(path))
    return str(copy.address), describe(path, copy)


def same_model(path: str, pinned: str) -> bool:
    """Whether `path`, a model of the hub, may have been pinned as `pinned`."""
    if not hub.is_address(pinned):
        return False
    new, old = hub.parse_address(address_of(path)), hub.parse_address(pinned)
    same = (new.repository, new.path) == (old.repository, old.path)
    return same and not (new.pinned and new.revision != old.revision)


def describe(path: str, copy: hub.Copy) -> str:
    """Return a line that names the commit and the licence of a copy."""
    if copy.licence is None:
        return f"{path} is {copy.address}, from the cache: the hub was not reached"
    return f"{path} is {copy.address}, licence: {copy.licence or 'its card names none'}"

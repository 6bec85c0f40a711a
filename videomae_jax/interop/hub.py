"""Models of the Hugging Face hub: their addresses, a local copy of one, and the way back.

An address is hf://OWNER/NAME[@REVISION][/PATH]. huggingface_hub downloads into its own cache, with
its own settings: HF_HOME, HF_TOKEN, HF_HUB_OFFLINE, HF_ENDPOINT. Only files of weights and the
JSON beside them are downloaded, never code.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from videomae_jax.errors import UserError, did_you_mean
from videomae_jax.interop.transformers_folder import JSON_FILES, WEIGHTS

PREFIX = "hf://"
FORM = "hf://OWNER/NAME[@REVISION][/PATH]"
# Revisions have no slash, but for those of pull requests and of automatic conversions.
_ADDRESS = re.compile(
    r"hf://([\w.-]+/[\w.-]+)(?:@(refs/(?:pr|convert)/[^/@]+|[^/@]+))?(?:/+([^@]*?))?/*"
)
_COMMIT = re.compile("[0-9a-f]{40}")
_SHARD = re.compile(r".*-\d+-of-\d+\.\w+")
ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
SHOWN = 4  # names in a message


class Address(NamedTuple):
    """A place on the hub. revision: a commit, branch or tag; "" is the default branch."""

    repository: str
    revision: str = ""
    path: str = ""

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{PREFIX}{self.repository}{revision}{'/' if self.path else ''}{self.path}"

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit, which never means anything else."""
        return bool(_COMMIT.fullmatch(self.revision))


class Copy(NamedTuple):
    """A local copy. address: its place on the hub, pinned.

    licence: that the card of the repository names, "" for none, None without a connection.
    """

    path: str
    address: Address
    licence: str | None


def is_address(path: str) -> bool:
    """Whether a path is an address of the hub."""
    return path.startswith(PREFIX)


def parse_address(text: str) -> Address:
    """Read an address; raise UserError for one of another form."""
    match = _ADDRESS.fullmatch(text)
    if match is None or ".." in PurePosixPath(match[3] or "").parts:
        raise UserError(f"{text} is no address of the hub: give {FORM}")
    return Address(match[1], match[2] or "", match[3] or "")


def download(text: str) -> Copy:
    """Download the weights at an address into the cache of the hub, unless they are there.

    A repository or folder of it means the file of weights that a transformers folder has, a work
    directory of ours, or its only other file of weights. Without a connection, the files of the
    cache are used. Raises UserError, in one line, if there are none, and for a repository,
    revision or file that does not exist, cannot be read or holds no weights.
    """
    address = parse_address(text)
    library = _import(text)
    licence: str | None = None
    with _explained(address):
        try:
            info = library.HfApi().model_info(address.repository, revision=address.revision or None)
            names, licence = [file.rfilename for file in info.siblings], _licence(info)
        except Exception as error:
            if not _is_offline(error):
                raise
            names = _cached_names(library, address, error)
    target, wanted = _choose(names, address)
    with _explained(address):
        folder = library.snapshot_download(
            address.repository,
            revision=address.revision or None,
            allow_patterns=[_literal(name) for name in wanted],
            local_files_only=licence is None,
        )
    pinned = address._replace(revision=Path(folder).name)
    return Copy(str(Path(folder, target)), pinned, licence)


def licence_of(text: str) -> str:
    """Return the licence that the card of a repository names; "" if it names none."""
    address = parse_address(text)
    with _explained(address):
        return _licence(_import(text).HfApi().model_info(address.repository))


def upload(text: str, folder: Path, *, message: str) -> tuple[str, bool]:
    """Add the files of a folder to a repository, in one commit; make the repository if missing.

    A new repository is private. Its README.md is kept if it has one. Returns the address of the
    new commit and whether the README.md was kept. Raises UserError, in one line, without a token,
    or without the right to write.
    """
    address = parse_address(text)
    if address.path:
        raise UserError(f"{text} has a path in the repository: give hf://{address.repository}")
    api = _import(text).HfApi()
    with _explained(address, writing=True):
        api.create_repo(address.repository, private=True, exist_ok=True)
        kept = api.file_exists(address.repository, "README.md", revision=address.revision or None)
        commit = api.upload_folder(
            repo_id=address.repository,
            folder_path=folder,
            revision=address.revision or None,
            commit_message=message,
            ignore_patterns=["README.md"] if kept else None,
        )
    return str(Address(address.repository, commit.oid)), kept


def _import(text: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(f"{text} needs huggingface_hub: pip install 'videomae_jax[hub]'") from None
    return huggingface_hub


def _licence(info: Any) -> str:
    return str((info.card_data or {}).get("license") or "")


def _choose(names: Iterable[str], address: Address) -> tuple[str, list[str]]:
    """Return the file or folder to read, of the files in a repository, and the files it needs."""
    names, path = sorted(names), address.path
    if path in names:
        if not path.endswith((*ENDINGS, ".index.json")):
            raise UserError(f"{address} is no file of weights: give one of {', '.join(ENDINGS)}")
        return path, _with_neighbours(path, names)
    start = f"{path}/" if path else ""
    inside = [name for name in names if name.startswith(start)]
    if not inside:
        raise UserError(f"{address} does not exist in the repository{did_you_mean(path, names)}")
    for name in WEIGHTS:
        if start + name in names:
            return path, _with_neighbours(start + name, names)
    if any(re.match(r"(checkpoints/\d+|params)/", name[len(start) :]) for name in inside):
        return path, inside  # a work directory of ours, or one of its steps
    found = [name for name in inside if name.endswith(ENDINGS)]
    if len(found) == 1:
        return found[0], _with_neighbours(found[0], names)
    if not found:
        raise UserError(f"{address} holds no weights: none of its files ends in {_or(ENDINGS)}")
    files = [str(address._replace(path=name)) for name in found[:SHOWN]]
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    raise UserError(f"{address} holds {len(found)} files of weights: give one, {_or(files)}{more}")


def _with_neighbours(file: str, names: list[str]) -> list[str]:
    """Return a file of weights, the JSON beside it and, of an index, the parts."""
    folder = PurePosixPath(file).parent
    beside = [name for name in names if PurePosixPath(name).parent == folder]
    wanted = [name for name in beside if PurePosixPath(name).name in JSON_FILES]
    if file.endswith(".index.json"):
        ending = PurePosixPath(file.removesuffix(".index.json")).suffix
        wanted += [n for n in beside if _SHARD.fullmatch(n) and n.endswith(ending)]
    return [file, *wanted]


def _cached_names(library: Any, address: Address, cause: Exception) -> list[str]:
    """Return the files of a revision that are in the cache. cause: why it is looked into."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = library.snapshot_download(
            address.repository, revision=address.revision or None, local_files_only=True
        )
    except LocalEntryNotFoundError as error:
        # Newer versions know that it is a part of the repository, which is what we download.
        folder = getattr(error, "snapshot_path", None)
        if folder is None:
            raise error from cause
    root = Path(folder)
    return [str(file.relative_to(root)) for file in root.rglob("*") if file.is_file()]


def _literal(name: str) -> str:
    """Return a pattern that only this name matches."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _or(names: Iterable[str]) -> str:
    return " or ".join(names)


def _status(error: BaseException | None) -> int | None:
    """Return the status with which a server answered; None if none did."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _is_offline(error: Exception) -> bool:
    """Whether an error means that the hub was not reached, or not in order."""
    from huggingface_hub import errors

    status = _status(error)
    # Which library reports a lost connection depends on the version: httpx or httpx2.
    lost = isinstance(error, errors.OfflineModeIsEnabled | errors.HTTPError | OSError)
    return lost if status is None else status >= 500


@contextmanager
def _explained(address: Address, *, writing: bool = False) -> Iterator[None]:
    """Turn the errors of huggingface_hub into a UserError of one line."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{address.repository}"
    log_in = "log in with `hf auth login` or set HF_TOKEN"
    try:
        yield
        return
    except UserError:
        raise
    except errors.GatedRepoError:
        text = f"access to it is restricted: accept its conditions at {page}, then {log_in}"
    except errors.RevisionNotFoundError:
        text = f"no such revision{_revisions(address)}"
    except errors.RepositoryNotFoundError:
        text = f"no such repository, or it is private: check the name, or {log_in}"
    except errors.LocalEntryNotFoundError as error:
        text = f"not in the cache, {constants.HF_HUB_CACHE}, and {_why(error)}"
    except Exception as error:
        text = _words(error, log_in, writing=writing)
        if not text:
            raise
    raise UserError(f"{address}: {text}")


def _words(error: Exception, log_in: str, *, writing: bool) -> str:
    """Return what an answer of the hub or of the disk means; "" for an error of another kind."""
    from huggingface_hub import errors

    status = _status(error)
    if status in (401, 403):
        right = "a token that may write there" if writing else "a token that may read it"
        return f"the hub refuses access ({status}): {log_in}, with {right}"
    if status is not None:
        return f"the hub answers {status}: {_first_line(error)}"
    if isinstance(error, errors.OfflineModeIsEnabled | errors.HTTPError | ConnectionError):
        return f"the hub cannot be reached: {_first_line(error)}"
    if isinstance(error, OSError):
        return f"cannot be stored: {error.strerror or _first_line(error)}"
    return ""


def _why(error: Exception) -> str:
    """Return why nothing could be downloaded."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids downloads: unset it, or download it first"
    if status := _status(error.__cause__):
        return f"{constants.ENDPOINT} answers {status}: try again later"
    return f"{constants.ENDPOINT} cannot be reached: check the connection"


def _revisions(address: Address) -> str:
    """Return the end of a message that names the branches and tags of a repository."""
    import huggingface_hub

    with _explained(address):
        refs = huggingface_hub.HfApi().list_repo_refs(address.repository)
    names = [ref.name for ref in (*refs.branches, *refs.tags)]
    return f": use {_or(names[:SHOWN])}{did_you_mean(address.revision, names)}"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__

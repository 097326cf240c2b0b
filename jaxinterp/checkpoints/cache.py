"""The cache folder: where fetched weights are kept, and how a file gets there whole or not at all."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from jaxinterp.errors import FetchError

BLOCK = 1 << 20
VARIABLE = "JAXINTERP_CACHE"


def cache_folder() -> Path:
    """$JAXINTERP_CACHE, else ~/.cache/jaxinterp; it need not exist."""
    return Path(os.environ.get(VARIABLE) or Path.home() / ".cache" / "jaxinterp").expanduser()


def weights_folder(name: str) -> Path:
    """Where the weights of a registry entry are kept."""
    return cache_folder() / "weights" / name


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A temporary folder inside `folder`, removed whatever happens; a full disk becomes a FetchError.

    Leftovers of a process that was killed are removed too, so an interrupted fetch starts afresh.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("fetch-*"):
            if not _alive(left):
                shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=f"fetch-{os.getpid()}-", dir=folder, ignore_cleanup_errors=True) as made:
            yield Path(made)
    except OSError as error:
        if isinstance(error, FetchError):
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FetchError(f"The disk is full: there is no room in {folder}. Free some, or move the cache with {VARIABLE}.") from None
        raise FetchError(f"{folder} cannot be written: {error.strerror or error}. Move the cache with {VARIABLE}.") from None


def _alive(left: Path) -> bool:
    """Whether the process that made a scratch folder still runs."""
    try:
        os.kill(int(left.name.split("-")[1]), 0)
    except (ValueError, IndexError, ProcessLookupError):
        return False
    except OSError:
        return True
    return True


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verified(path: Path, sha256: str, size: int) -> bool:
    """Whether a file has that digest. It is read once; afterwards its size and time of change stand for its contents."""
    try:
        stat = path.stat()
    except OSError:
        return False
    if stat.st_size != size:
        return False
    stamp = {"path": str(path.resolve()), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": sha256}
    record = cache_folder() / "verified" / f"{sha256}.json"
    with contextlib.suppress(OSError, ValueError):
        if json.loads(record.read_text()) == stamp:
            return True
    if sha256_of(path) != sha256:
        return False
    with contextlib.suppress(OSError):  # a cache that cannot be written costs the next load another digest, no more
        record.parent.mkdir(parents=True, exist_ok=True)
        partial = record.with_suffix(f".{os.getpid()}.tmp")
        partial.write_text(json.dumps(stamp))
        os.replace(partial, record)
    return True

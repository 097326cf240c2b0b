"""The peers' own environment, made once in the cache folder, and the process in it that takes part in a benchmark."""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import log
from jaxinterp.checkpoints.cache import cache_folder

REQUIREMENTS = Path(__file__).with_name("peers.txt")


class NoPeers(Exception):
    """The peers' environment cannot be made or used."""


def peer_python() -> Path:
    """The interpreter of the peers' environment, which is made if it is not there; its name follows from the pins.

    Raises:
        NoPeers: pip failed; what it said was shown.
    """
    pins = REQUIREMENTS.read_text()
    name = f"{hashlib.sha256(pins.encode()).hexdigest()[:12]}-{sys.version_info.major}.{sys.version_info.minor}"
    folder = cache_folder() / "peers" / name
    python, finished = folder / "bin" / "python", folder / "finished"
    if finished.exists() and python.exists():
        return python
    log(f"making an environment for the peers in {folder} (once; torch is large) ...")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    torch = next(line for line in pins.splitlines() if line.startswith("torch=="))
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in ([sys.executable, "-m", "venv", str(folder)], [*install, torch], [*install, "--requirement", str(REQUIREMENTS)]):
        if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
            raise NoPeers(
                f"The peers' environment could not be made: `{' '.join(command[1:])}` failed. Without a network, name an interpreter that "
                "has them (--peer-python PATH) or leave them out (--no-peers)."
            )
    finished.touch()
    return python


class Peer:
    """The peer's process (peer.py), started when it is first needed. One request at a time."""

    def __init__(self, python: Path, device: str) -> None:
        """Starts it.

        Args:
            python: its interpreter.
            device: where its models run, "cpu" or "cuda".
        """
        self.python, self.device = python, device
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
        script = Path(__file__).with_name("peer.py")
        # what libraries print: shown if the process ends before its time
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115  it lives as long as the process
        self._process = subprocess.Popen(
            [str(python), str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True, env=environment
        )
        hello = self.call("hello")
        self.versions: dict[str, str] = hello["versions"]
        self.threads: int = hello["threads"]

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, name: str, **arguments: Any) -> Any:
        """One request and its answer.

        Raises:
            NoPeers: the request failed, or the process is gone.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        line = ""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"call": name, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            self._said.seek(0)
            raise NoPeers(f"The peer ({self.python}) ended in {name}:\n{self._said.read()[-2000:]}")
        answer = json.loads(line)
        if "error" in answer:
            raise NoPeers(f"The peer ({self.python}) failed in {name}:\n{answer['error']}")
        return answer["answer"]

    def prepare(self, work: str, **arguments: Any) -> "PeerWork":
        """A piece of work ("module.function" of a file beside peer.py), ready to be timed."""
        return PeerWork(self, self.call("prepare", work=work, args=arguments | {"device": self.device}))

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._said.close()


class PeerWork:
    """Work that the peer has prepared."""

    def __init__(self, peer: Peer, number: int) -> None:
        self._peer, self._number = peer, number

    @property
    def once(self) -> Callable[[], float]:
        """Does it once; returns the seconds that it took there."""
        return lambda: float(self._peer.call("seconds", number=self._number))

    def arrays(self) -> dict[str, np.ndarray]:
        """What it gives."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "arrays.npz"
            self._peer.call("result", number=self._number, file=str(file))
            with np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}

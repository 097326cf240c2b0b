"""The hub: fetched from a stub of it on this machine, found in the client's cache, and refused in one sentence."""

import http.server
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxinterp.checkpoints import hub
from jaxinterp.checkpoints.load import load
from jaxinterp.checkpoints.save import save
from jaxinterp.errors import CheckpointError, FetchError
from jaxinterp.model.language_model import LanguageModel
from tests.checkpoints.hf_configs import LLAMA
from tests.checkpoints.test_load_save import assert_equal, model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LanguageModel]:
    folder, lm = tmp_path_factory.mktemp("hub") / "m", model(LLAMA)
    save(lm, folder)
    return folder, lm


def client_cache(root: Path, folder: Path, repo: str = "owner/name") -> Path:
    """A cache as the hub's client leaves it."""
    kept = root / f"models--{repo.replace('/', '--')}"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text(COMMIT)
    shutil.copytree(folder, kept / "snapshots" / COMMIT)
    return kept / "snapshots" / COMMIT


def test_what_is_in_the_clients_cache_loads_without_a_network(tmp_path: Path, checkpoint: tuple[Path, LanguageModel]):
    folder, lm = checkpoint
    snapshot = client_cache(tmp_path, folder)
    for revision in (None, "main", COMMIT):
        assert hub.fetch("owner/name", cache_dir=tmp_path, revision=revision, local_files_only=True) == snapshot
    assert hub.fetch("owner/name", cache_dir=tmp_path) == snapshot
    assert_equal(load("owner/name", cache_dir=tmp_path), lm)


def test_half_a_checkpoint_in_the_cache_does_not_count(tmp_path: Path, checkpoint: tuple[Path, LanguageModel]):
    snapshot = client_cache(tmp_path, checkpoint[0])
    (snapshot / "model.safetensors").unlink()
    assert hub.cached("owner/name", cache_dir=tmp_path) is None
    with pytest.raises(FetchError, match="owner/name is not in the hub client's cache, and nothing may be fetched"):
        hub.fetch("owner/name", cache_dir=tmp_path, local_files_only=True)


def test_another_revision_does_not_count(tmp_path: Path, checkpoint: tuple[Path, LanguageModel]):
    client_cache(tmp_path, checkpoint[0])
    assert hub.cached("owner/name", revision="v2", cache_dir=tmp_path) is None


@pytest.mark.parametrize("repo", ["a/b/c", "-bad-", "x" * 200])
def test_an_id_that_cannot_be_one_is_refused(repo: str, tmp_path: Path):
    with pytest.raises(FetchError, match="not the id of a hub repository"):
        hub.fetch(repo, cache_dir=tmp_path)


@pytest.mark.parametrize(
    "names, message", [(["config.json", "pytorch_model.bin"], "only pytorch_model.bin, a pickle"), (["README.md"], "it holds none")]
)
def test_a_repository_without_safetensors_is_refused(names: list[str], message: str):
    with pytest.raises(CheckpointError, match=message):
        hub._needed("owner/name", names)


def test_only_what_loading_needs_is_fetched():
    names = [
        "config.json",
        "model.safetensors",
        "onnx/model.onnx",
        "pytorch_model.bin",
        "tokenizer.json",
        "README.md",
        "consolidated.safetensors",
    ]
    assert hub._needed("o/n", names) == ["config.json", "model.safetensors", "tokenizer.json"]
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    assert hub._needed("o/n", ["config.json", *shards, "consolidated.safetensors"]) == ["config.json", *shards]


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as fetching a repository takes."""

    folder: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.asked.append(path)
        files = {file.name: file.read_bytes() for file in self.folder.iterdir()}
        if path.startswith("/api/models/owner/name/tree/"):
            listed = [
                {"type": "file", "path": name, "size": len(data), "oid": f"{number:040}"}
                for number, (name, data) in enumerate(files.items())
            ]
            self.answer(json.dumps(listed).encode())
        elif path in ("/api/models/owner/name", "/api/models/owner/name/revision/main"):
            self.answer(json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}).encode())
        elif path.startswith("/owner/name/resolve/") and path.rsplit("/", 1)[-1] in files:
            name = path.rsplit("/", 1)[-1]
            self.answer(files[name], {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"})
        else:
            code = {"gated": "GatedRepo"}.get(path.rsplit("/", 1)[-1], "RepoNotFound")
            self.answer(b"{}", {"X-Error-Code": code}, 403 if code == "GatedRepo" else 404)

    def answer(self, body: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(checkpoint: tuple[Path, LanguageModel], tmp_path: Path) -> Iterator[tuple[str, type[Hub]]]:
    folder = shutil.copytree(checkpoint[0], tmp_path / "repository")
    (folder / "README.md").write_text("not needed")
    handler = type("Served", (Hub,), {"folder": folder, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()


FETCH = """
import sys
from jaxinterp.checkpoints.hub import fetch
from jaxinterp.errors import JaxinterpError
try:
    print(fetch(sys.argv[1], cache_dir=sys.argv[2]))
except JaxinterpError as error:
    print("refused:", error)
"""


def in_a_process(endpoint: str, repo: str, cache: Path, **more: str) -> str:
    """Fetches with the hub's client pointed at another endpoint, which it reads when it is imported."""
    environment = {
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PATH": "/usr/bin:/bin",
        "HF_HOME": str(cache / "home"),
        **more,
    }
    done = subprocess.run(
        [sys.executable, "-c", FETCH, repo, cache],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_repository_is_fetched_once(served: tuple[str, type[Hub]], checkpoint: tuple[Path, LanguageModel], tmp_path: Path):
    endpoint, handler = served
    folder = Path(in_a_process(endpoint, "owner/name", tmp_path / "cache"))
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert_equal(load(folder), checkpoint[1])
    assert_equal(load("owner/name", cache_dir=tmp_path / "cache"), checkpoint[1])
    fetched = [path for path in handler.asked if path.endswith("model.safetensors")]
    assert in_a_process(endpoint, "owner/name", tmp_path / "cache") == str(folder)
    assert [path for path in handler.asked if path.endswith("model.safetensors")] == fetched


def test_what_the_hub_refuses_is_said(served: tuple[str, type[Hub]], tmp_path: Path):
    assert "refused: The hub has no repository owner/absent" in in_a_process(served[0], "owner/absent", tmp_path)
    assert "refused: owner/gated is gated: accept its terms" in in_a_process(served[0], "owner/gated", tmp_path)


def test_offline_mode_is_said(served: tuple[str, type[Hub]], tmp_path: Path):
    assert "the hub cannot be reached (OfflineModeIsEnabled" in in_a_process(served[0], "owner/name", tmp_path, HF_HUB_OFFLINE="1")
    assert served[1].asked == []


def test_a_hub_that_cannot_be_reached_is_said_quickly(tmp_path: Path):
    start = time.monotonic()
    answer = in_a_process("http://127.0.0.1:9", "owner/name", tmp_path)
    assert answer.startswith("refused: owner/name is not in the hub client's cache, and the hub cannot be reached")
    assert answer.count("\n") == 0
    assert time.monotonic() - start < 15

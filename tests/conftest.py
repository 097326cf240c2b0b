"""What every test runs under: eight CPU devices, strict JAX, warnings as errors, shapes checked at each call."""

import gc
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before jax is imported: eight devices cost one device's tests nothing, and a mesh needs no subprocess.
os.environ["JAX_PLATFORMS"] = os.environ.get("JAXINTERP_TEST_PLATFORM", "cpu")
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 "
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"  # tests compile more than they compute
).strip()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# One folder of compiled programs, for the tests and for the commands that they start.
os.environ.setdefault("JAXINTERP_CACHE", str(Path.home() / ".cache" / "jaxinterp"))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(os.environ["JAXINTERP_CACHE"]) / "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import numpy as np
import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-typecheck", action="store_true", help="do not check jaxtyping's shapes with beartype at each call")


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--no-typecheck") and importlib.util.find_spec("beartype"):
        from jaxtyping import install_import_hook

        import tests.typecheck  # noqa: F401  the hook finds it by name

        # Modules imported from now on get their signatures checked; the import hook stays for the session.
        install_import_hook(
            [f"jaxinterp.{floor}" for floor in ("model", "data", "runs", "checkpoints", "methods", "views")], "tests.typecheck.check"
        )
    jax.config.update("jax_numpy_rank_promotion", "raise")


MAPPINGS = Path("/proc/self/maps")
MOST_MAPPINGS = 30_000
"""Memory mappings from which compiled programs are let go: each has some, and Linux kills a process that asks for more than 65,530."""


@pytest.fixture(autouse=True, scope="module")
def _few_mappings() -> Iterator[None]:
    yield
    if MAPPINGS.exists() and MAPPINGS.read_bytes().count(b"\n") > MOST_MAPPINGS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def seed() -> int:
    """The one seed: `jax.random.key(seed)` and `np.random.default_rng(seed)`."""
    return 20240607


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture
def key(seed: int) -> jax.Array:
    return jax.random.key(seed)


@pytest.fixture(scope="session")
def smollm2() -> Any:
    """SmolLM2-135M-Instruct as the package index holds it: known numbers are of these quantised weights, not of the hub's.

    Skipped where the file is not on this machine (`make demo` fetches it), an error where JAXINTERP_REQUIRE_WEIGHTS is set.
    """
    from jaxinterp.checkpoints import fetch, registry
    from jaxinterp.checkpoints.cache import weights_folder
    from jaxinterp.checkpoints.load import load

    name = "smollm2-135m-instruct"
    source = next(source for source in registry.entries()[name].sources if isinstance(source, fetch.WheelFile))
    kept = weights_folder(name) / source.file
    found = kept if kept.exists() else fetch.installed(source)
    if found is not None:
        return load(found)
    if os.environ.get("JAXINTERP_REQUIRE_WEIGHTS"):
        pytest.fail(f"{kept} is not there, and JAXINTERP_REQUIRE_WEIGHTS is set")
    pytest.skip("SmolLM2 is not in the cache: `make demo` fetches it")

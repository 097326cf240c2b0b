"""jaxinterp doctor: what this machine has, whether its arithmetic is right, and what its fast matmuls round away."""

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxinterp.cli.common import FAILED, Debug, Dtype, Json, emit, emit_json, use_compile_cache, working

if TYPE_CHECKING:
    from jaxinterp.views import View

NAME = "doctor"
EXAMPLE = "jaxinterp doctor"

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "safetensors", "gguf", "tokenizers", "huggingface_hub", "matplotlib")
MANTISSA = {23: "float32", 10: "TF32", 7: "bfloat16"}  # bits after the leading one
BITS = {"float32": 23, "bfloat16": 7, "float16": 10, "float64": 52}


def command(dtype: Dtype = "float32", as_json: Json = False, debug: Debug = False) -> None:
    """Versions, devices, memory, caches; whether a matmul agrees with NumPy, and what the device does by default."""
    from jaxinterp.views import Section, report

    use_compile_cache()
    if dtype == "float64":
        import jax

        jax.config.update("jax_enable_x64", True)
    with working("measuring"):
        found = {"versions": versions(), "machine": machine(), "matmul": matmul(dtype), "caches": caches()}
    problems = problems_of(found)
    if as_json:
        emit_json(found | {"problems": problems})
    else:
        parts = [Section(name, "", (_two_columns(part),)) for name, part in found.items()]
        verdict = "\n".join(f"! {problem}" for problem in problems) or "Nothing is wrong."
        emit(report("doctor", [*parts, Section("verdict", verdict)]))
    if problems:
        raise SystemExit(FAILED)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter here."""
    import jaxinterp

    found = {"python": platform.python_version(), "jaxinterp": jaxinterp.__version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """Devices, cores and memory."""
    import jax

    from jaxinterp.runs.plan import free_memory, nbytes

    devices = jax.devices()
    free, _ = free_memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "devices": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})",
        "cores": cores,
        "free memory": "unknown" if free is None else nbytes(free),
        "64-bit types": "on" if jax.config.values["jax_enable_x64"] else "off (--dtype float64 turns them on)",
    }


def matmul(dtype: str) -> dict[str, Any]:
    """How far a product is from NumPy's in float64, at full precision and by default, and the bits that the default keeps."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    rng = np.random.default_rng(0)
    left, right = (jnp.asarray(rng.standard_normal((256, 256)), dtype) for _ in range(2))
    exact = np.asarray(left, np.float64) @ np.asarray(right, np.float64)
    found: dict[str, Any] = {"type": dtype}
    for name in ("highest", "default"):
        product = np.asarray(jnp.matmul(left, right, precision=name), np.float64)
        found[f"largest relative error, {name}"] = float(np.abs(product - exact).max() / np.abs(exact).max())
    bits = kept_bits(dtype)
    found["bits kept by default"] = bits
    name = MANTISSA.get(bits, f"{bits} bits") if dtype == "float32" else dtype
    found["by default this device multiplies in"] = name + (
        "" if name == dtype else '; jaxinterp asks for precision="highest" unless told otherwise'
    )
    found["jax_default_matmul_precision"] = str(jax.config.values["jax_default_matmul_precision"] or "not set")
    return found


def kept_bits(dtype: str) -> int:
    """How many bits after the leading one a default matmul keeps of its inputs: 1 + 2^-k times the identity, largest k that survives."""
    import jax.numpy as jnp
    import numpy as np

    powers = np.arange(1, BITS[dtype] + 1)
    values = np.zeros((256, 256))
    values[:, : len(powers)] = 1 + 2.0**-powers
    product = np.asarray(jnp.matmul(jnp.asarray(values, dtype), jnp.eye(256, dtype=dtype), precision="default"), np.float64)
    survived = product[0, : len(powers)] == values[0, : len(powers)]
    return int(powers[survived].max()) if survived.any() else 0


def caches() -> dict[str, Any]:
    """Where weights and compiled programs are kept, and whether there is room."""
    import jax

    from jaxinterp.checkpoints.cache import cache_folder
    from jaxinterp.runs.plan import nbytes

    folder = cache_folder()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    compiled = jax.config.values["jax_compilation_cache_dir"]
    return {
        "weights": str(folder),
        "used": nbytes(_size(folder)),
        "writable": os.access(existing, os.W_OK),
        "free on that disk": nbytes(shutil.disk_usage(existing).free),
        "compiled programs": str(compiled),
    }


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.exists() else 0


def problems_of(found: dict[str, dict[str, Any]]) -> list[str]:
    """What would make results wrong or commands fail, in sentences."""
    problems = []
    error, kind = found["matmul"]["largest relative error, highest"], found["matmul"]["type"]
    allowed = 8 * 2.0 ** -BITS[kind]
    if not error <= allowed:
        problems.append(f"A {kind} matmul at full precision is off by {error:.1e}; expected at most {allowed:.1e}.")
    if not found["caches"]["writable"]:
        problems.append(f"The cache folder {found['caches']['weights']} cannot be written; set JAXINTERP_CACHE to one that can.")
    return problems


def _two_columns(part: dict[str, Any]) -> "View":
    from jaxinterp.views import table

    return table("", {"": ("text", list(part)), " ": ("text", list(map(_text, part.values())))})


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.1e}" if isinstance(value, float) else str(value)

"""Loading a sharded checkpoint of 2 GB made from random weights: time beside reading its bytes, and memory beside its size.

    python -m benchmarks.sharded [FOLDER]

Each load is a process of its own. The bar of time is 1.5 times that of reading the same files once (both from the page
cache); the bar of anonymous memory is the model's size plus 1.3 times its largest leaf.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORK = """
import json, sys, time
from pathlib import Path
import jax, numpy as np, jaxinterp as ji
def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon", "VmHWM"))}["RssAnon"]
import threading
peak, done = [0], threading.Event()
def watch():
    while not done.wait(0.005):
        peak[0] = max(peak[0], anonymous())
folder = sys.argv[1]
jax.devices()
before = anonymous()
threading.Thread(target=watch, daemon=True).start()
begin = time.perf_counter()
lm = ji.load(folder, dtype="float32")
jax.block_until_ready(lm.params)
seconds = time.perf_counter() - begin
done.set()
sizes = [leaf.nbytes for leaf in jax.tree.leaves(lm.params)]
print(json.dumps({"seconds": seconds, "peak": peak[0] - before, "model": sum(sizes), "largest": max(sizes)}))
"""


def make(folder: Path) -> None:
    """A Llama of 2 GB of float32 weights in shards of at most 500 MB."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import jaxinterp as ji
    from jaxinterp.checkpoints import save

    config = ji.TransformerConfig(
        n_layers=20, d_model=1408, n_heads=22, d_head=64, n_kv_heads=22, d_mlp=3840, d_vocab=24_000, n_ctx=2048, rotary=(ji.Rotary(64),)
    )  # fmt: skip
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape, np.float32) * 0.02), ji.parameter_shapes(config))
    save.SHARD_BYTES = 500_000_000
    ji.save(ji.LanguageModel(params, config), folder)


def read(folder: Path) -> float:
    """Seconds to read every byte of the weights once."""
    block = bytearray(1 << 24)
    begin = time.perf_counter()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(block):
                pass
    return time.perf_counter() - begin


def main() -> int:
    """Makes the checkpoint, loads it five times beside reading it, and prints the figures; 1 if one is missed."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(scratch) / "model"
        if not folder.exists():
            subprocess.run(
                [sys.executable, "-c", f"from benchmarks.sharded import make; from pathlib import Path; make(Path({str(folder)!r}))"],
                check=True,
            )
        read(folder)
        rounds = []
        for _ in range(5):
            reading = read(folder)
            done = subprocess.run([sys.executable, "-c", WORK, str(folder)], check=True, capture_output=True, text=True)
            rounds.append(json.loads(done.stdout.splitlines()[-1]) | {"reading": reading})
    ratio = sorted(one["seconds"] / one["reading"] for one in rounds)[len(rounds) // 2]
    over = max((one["peak"] - one["model"]) / one["largest"] for one in rounds)
    print(
        f"load / reading its bytes: {ratio:.2f}x (at most 1.5x)   "
        + ", ".join(f"{one['seconds']:.2f}/{one['reading']:.2f} s" for one in rounds)
    )
    print(f"anonymous memory beyond the model: {over:.2f} leaves (at most 1.3); model {rounds[0]['model'] / 1e9:.2f} GB")
    return int(ratio > 1.5 or over > 1.3)


if __name__ == "__main__":
    raise SystemExit(main())

"""Loading needs little more memory than the model: no second copy of any leaf, and no torch or transformers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jaxinterp.checkpoints.families import read_config
from jaxinterp.checkpoints.layout import sizes_of
from jaxinterp.checkpoints.load import weight_dtype
from jaxinterp.checkpoints.mapping import file_tensors, plan
from jaxinterp.model.parameters import parameter_shapes
from tests.checkpoints.hf_configs import LLAMA

LARGE = LLAMA | {"vocab_size": 40_000, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 8}
SMALL = LLAMA

MEASURE = """
import json, sys, threading, time
import jax
from jaxinterp.checkpoints.load import load

def anonymous():
    with open("/proc/self/status") as status:
        return 1024 * int(next(line for line in status if line.startswith("RssAnon")).split()[1])

small, large = sys.argv[1:]
jax.block_until_ready(load(small).params)
before, peak, running = anonymous(), 0, True

def watch():
    global peak
    while running:
        peak = max(peak, anonymous())
        time.sleep(0.002)

watcher = threading.Thread(target=watch)
watcher.start()
lm = load(large)
jax.block_until_ready(lm.params)
running = False
watcher.join()
leaves = [leaf.nbytes for leaf in jax.tree.leaves(lm.params)]
foreign = [name for name in ("torch", "transformers", "safetensors", "huggingface_hub") if name in sys.modules]
print(json.dumps({"model": sum(leaves), "largest": max(leaves), "peak": peak - before, "foreign": foreign}))
"""


def empty_checkpoint(folder: Path, values: dict) -> Path:
    """A folder whose weights are zeros that take no room on the disk."""
    config, family = read_config(values, weight_dtype("float32"), "config.json")
    header, offset = {}, 0
    for name, writers in file_tensors(plan(parameter_shapes(config), family.table, sizes_of(config))).items():
        shape = writers[0][0].file_shape
        size = 4
        for length in shape:
            size *= length
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values))
    raw = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + offset)
    return folder


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the process's memory from /proc")
def test_peak_memory_is_the_model_itself(tmp_path: Path):
    small, large = empty_checkpoint(tmp_path / "small", SMALL), empty_checkpoint(tmp_path / "large", LARGE)
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", MEASURE, small, large], capture_output=True, text=True, cwd=root, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["model"] > 250e6
    # 1.3 times the largest leaf is what may be needed on top; a copy of that leaf alone would already be more than half of it
    assert seen["model"] <= seen["peak"] * 1.05
    assert seen["peak"] <= seen["model"] + 0.5 * seen["largest"]
    assert not seen["foreign"]

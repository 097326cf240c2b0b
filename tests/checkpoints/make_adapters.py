"""Makes the committed adapters: `python -m tests.checkpoints.make_adapters`, where torch, transformers and peft are installed.

Each is a PEFT adapter with random weights beside a model of the parity fixtures, with the logits of PEFT's merged model.
"""

import json
import shutil
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM

from tests.parity import fixtures

FOLDER = Path(__file__).parent.parent / "fixtures" / "adapters"
ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama_everything": (
        "llama_gqa_biases",
        {
            "r": 3, "lora_alpha": 7, "use_rslora": True, "bias": "all", "modules_to_save": ["lm_head"],
            "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens"],
            "rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 1},
            "alpha_pattern": {"up_proj": 5, "^model.layers.0.self_attn.o_proj": 2},
        },
    ),
    "gpt2": ("gpt2", {"r": 2, "lora_alpha": 4, "fan_in_fan_out": True, "target_modules": ["c_attn", "c_proj", "c_fc"]}),
    "phi3_fused": ("phi3", {"r": 2, "lora_alpha": 3, "target_modules": ["qkv_proj", "o_proj", "gate_up_proj"]}),
}  # fmt: skip


def make(name: str) -> None:
    """Writes one adapter's folder."""
    base, settings = ADAPTERS[name]
    fixture = fixtures.load(base)
    with tempfile.TemporaryDirectory() as folder:
        model = AutoModelForCausalLM.from_pretrained(fixture.write_folder(Path(folder)), dtype=torch.float32, attn_implementation="eager")
    tuned = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    with torch.no_grad():
        for key, parameter in tuned.named_parameters():
            if parameter.requires_grad:
                random = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(parameter.shape)
                parameter += torch.tensor(0.3 * random, dtype=torch.float32)
        target = FOLDER / name
        shutil.rmtree(target, ignore_errors=True)
        tuned.save_pretrained(target)
        (target / "README.md").unlink()
        config = json.loads((target / "adapter_config.json").read_text()) | {"base_model_name_or_path": base}
        (target / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
        mask = torch.tensor(fixture.batch.mask)
        inputs = {"input_ids": torch.tensor(fixture.batch.ids), "attention_mask": mask.long()}
        inputs["position_ids"] = torch.tensor(fixture.batch.positions)
        beside = tuned(**inputs).logits[mask]
        merged = tuned.merge_and_unload()(**inputs).logits[mask]
    assert (beside - merged).abs().max() < 1e-4 * merged.abs().max()
    save_file({"logits": merged.numpy()}, target / "logits.safetensors")
    for file in target.iterdir():
        file.chmod(0o644)


if __name__ == "__main__":
    for name in ADAPTERS:
        make(name)
    print(f"{sum(path.stat().st_size for path in FOLDER.rglob('*')) / 1024:.0f} KiB in {FOLDER}, by peft {peft.__version__}")

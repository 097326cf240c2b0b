"""transformers reads what we save and we read what it saves: the same weights, the same config, the same logits."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxinterp.checkpoints.families import read_config
from jaxinterp.checkpoints.load import load
from jaxinterp.checkpoints.save import save
from jaxinterp.model.language_model import LanguageModel
from jaxinterp.model.tokens import Tokens
from jaxinterp.model.transformer import forward
from tests import tiny
from tests.checkpoints.hf_configs import MODELS, WRONG_IN_TRANSFORMERS

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]

IDS = np.arange(24).reshape(2, 12) * 7 % 50


@pytest.mark.parametrize("name", MODELS)
def test_both_ways(name: str, tmp_path: Path):
    torch: Any = pytest.importorskip("torch")
    transformers: Any = pytest.importorskip("transformers")
    config, _ = read_config(MODELS[name], np.dtype(np.float32), "config.json")
    lm = LanguageModel(params=tiny.params(config), config=config)
    save(lm, tmp_path / "ours")
    (architecture,) = json.loads((tmp_path / "ours" / "config.json").read_text())["architectures"]
    theirs, info = getattr(transformers, architecture).from_pretrained(
        tmp_path / "ours", attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")), info
    with torch.no_grad():
        out = theirs(torch.tensor(IDS))
    trace = forward(lm.params, Tokens.from_ids(IDS), config, sites=("resid_post",))
    reference = (out.last_hidden_state if trace.logits is None else out.logits).numpy()
    ours = np.asarray(trace["resid_post"][-1] if trace.logits is None else trace.logits)
    error = np.linalg.norm(ours - reference, axis=-1) / np.linalg.norm(reference, axis=-1)
    assert error.max() < 5e-5 or name in WRONG_IN_TRANSFORMERS
    theirs.save_pretrained(tmp_path / "theirs")
    back = load(tmp_path / "theirs")
    assert back.config == config
    jax.tree.map(np.testing.assert_array_equal, back.params, lm.params)

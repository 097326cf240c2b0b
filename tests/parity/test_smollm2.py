"""Real weights: golden numbers of SmolLM2-135M-Instruct on indirect object identification, and transformers beside them."""

from pathlib import Path

import numpy as np
import pytest

import jaxinterp as ji
from jaxinterp.model.language_model import LanguageModel
from tests.parity.report import Findings

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
PAIRS = [
    tuple(line.split())
    for line in (
        "Mary John Tom store drink", "Anna James Paul park ball", "Sarah Paul Mary school book", "David Lisa Anna office ring",
        "Emma Mark Sarah store book", "Tom Kate David park drink", "Lisa David Emma school ball", "John Sarah Mark office ring",
    )
]  # fmt: skip

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def smollm2(smollm2_file: Path) -> LanguageModel:
    return ji.load(str(smollm2_file), local_files_only=True)


def _difference(lm: LanguageModel, prompts: list[str], right: str, wrong: str, **options: object) -> np.ndarray:
    """logit(right) - logit(wrong) at the last token of each prompt [B]."""
    trace = ji.run(lm, prompts, **options)  # pyright: ignore[reportArgumentType]
    logits = np.asarray(trace.logits)[np.arange(len(prompts)), np.asarray(trace.tokens.last)]
    return logits[:, lm.to_id(right)] - logits[:, lm.to_id(wrong)]


@pytest.mark.parametrize(
    ("bos", "expected", "within"),
    [("model", (6.1196, -5.4853), 5e-4), ("<|im_start|>", (5.29, -5.05), 6e-3), ("<|endoftext|>", (3.72, -7.83), 6e-3)],
)
def test_indirect_object(smollm2: LanguageModel, bos: str, expected: tuple[float, float], within: float) -> None:
    assert _difference(smollm2, [CLEAN, CORRUPT], " Mary", " John", bos=bos) == pytest.approx(expected, abs=within)


def test_capital_of_france(smollm2: LanguageModel) -> None:
    trace = ji.run(smollm2, "The capital of France is")
    logits = np.asarray(trace.logits)[0, -1].astype(np.float64)
    probability = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    assert int(probability.argmax()) == smollm2.to_id(" Paris")
    assert probability.max() == pytest.approx(0.773, abs=6e-4)


def test_direct_logit_attribution_sums_to_the_difference(smollm2: LanguageModel) -> None:
    """Every component's share, read off one run: the heads that matter most, and the whole."""
    trace = ji.run(smollm2, CLEAN, sites=["embed", "head_out", "mlp_out", "ln_final_scale"])
    scale = float(np.asarray(trace["ln_final_scale"])[0, -1, 0])
    embedding = np.asarray(smollm2.params["embed"]["W_E"])
    direction = (
        (embedding[smollm2.to_id(" Mary")] - embedding[smollm2.to_id(" John")]) * np.asarray(smollm2.params["ln_final"]["w"]) / scale
    )
    heads = np.asarray(trace["head_out"])[:, 0, -1] @ direction
    mlps = np.asarray(trace["mlp_out"])[:, 0, -1] @ direction
    named = {(23, 3): 2.86, (29, 1): 1.73, (24, 4): -1.07, (29, 0): -1.01, (23, 0): 0.82, (23, 1): 0.78}
    assert {head: float(heads[head]) for head in named} == pytest.approx(named, abs=6e-3)
    assert heads.sum() + mlps.sum() + np.asarray(trace["embed"])[0, -1] @ direction == pytest.approx(6.1196, abs=2e-3)


def test_activation_patching(smollm2: LanguageModel) -> None:
    """(patched - corrupt) / (clean - corrupt) when the corrupt run takes one value from the clean run."""
    clean = ji.run(smollm2, CLEAN, sites=["resid_pre", "z"])
    resid, z = np.asarray(clean["resid_pre"]), np.asarray(clean["z"])
    second, last = int(smollm2.find(CLEAN, " John", which=1)[0]), clean.tokens.ids.shape[1] - 1

    def effect(edit: ji.edits.Edit) -> float:
        return float((_difference(smollm2, [CORRUPT], " Mary", " John", edits=edit)[0] + 5.4853) / (6.1196 + 5.4853))

    stream = {
        (0, second): 1.00,
        (19, second): 1.00,
        (20, second): 0.91,
        (21, second): 0.61,
        (22, second): 0.62,
        (23, second): 0.58,
        (24, last): 0.92,
    }
    seen = {place: effect(ji.edits.replace("resid_pre", resid[place[0]], layer=place[0], position=place[1])) for place in stream}
    assert seen == pytest.approx(stream, abs=6e-3)
    heads = {(23, 3): 0.58, (29, 1): 0.27, (24, 4): -0.25, (20, 0): 0.22, (29, 0): -0.20, (17, 4): 0.18}
    seen = {head: effect(ji.edits.replace("z", z[head[0]], layer=head[0], head=head[1])) for head in heads}
    assert seen == pytest.approx(heads, abs=6e-3)


def test_zero_ablation_of_heads_on_eight_pairs(smollm2: LanguageModel) -> None:
    """Means over the pairs, measured in float64."""

    def mean(subject: int, *edits: ji.edits.Edit) -> float:
        texts = [f"Then, {pair[0]} and {pair[1]} went to the {pair[3]}. {pair[subject]} gave a {pair[4]} to" for pair in PAIRS]
        trace = ji.run(smollm2, texts, edits=edits)
        logits = np.asarray(trace.logits)[np.arange(8), np.asarray(trace.tokens.last)]
        right, wrong = ([smollm2.to_id(f" {pair[index]}") for pair in PAIRS] for index in (0, 1))
        return float((logits[np.arange(8), right] - logits[np.arange(8), wrong]).mean())

    def zero(layer: int, head: int) -> ji.edits.Edit:
        return ji.edits.zero("z", layer=layer, head=head)

    seen = [mean(1), mean(0), mean(1, zero(23, 3)), mean(1, zero(23, 3), zero(29, 1)), mean(1, zero(24, 4)), mean(1, zero(5, 2))]
    assert seen == pytest.approx([5.8743, -4.9006, 3.0158, 2.2414, 5.5556, 5.8420], abs=5e-4)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_logits_equal_transformers(smollm2: LanguageModel, smollm2_file: Path, findings: Findings) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2_file.parent, gguf_file=smollm2_file.name, dtype=torch.float32, attn_implementation="eager"
    )
    tokens = smollm2.to_tokens([CLEAN, CORRUPT])
    with torch.no_grad():
        theirs = model(torch.tensor(tokens.ids.astype(np.int64))).logits.numpy()
    ours = np.asarray(ji.run(smollm2, tokens).logits)
    largest = float(np.abs(ours - theirs).max())
    right, wrong = smollm2.to_id(" Mary"), smollm2.to_id(" John")
    differences = ours[:, -1, right] - ours[:, -1, wrong]
    findings.real_weights.append(
        f"SmolLM2-135M-Instruct from its GGUF file (Q4_1 and Q8_0), both loaders: logits differ by at most {largest:.1e}; "
        f"logit differences on the indirect object pair {differences[0]:+.4f} and {differences[1]:+.4f}."
    )
    assert largest <= 1e-4
    assert differences == pytest.approx((6.1196, -5.4853), abs=5e-4)

"""Input attribution against captum's definitions, on a transformers model with the same weights: `make parity`."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

import jaxinterp as ji
from tests.parity import fixtures, ours

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

ANSWERS, STEPS, SAMPLES = (3, 5), 12, 6


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def setting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A model on both sides in float64, embeddings of two prompts and of a baseline, and the metric of embeddings in torch."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("captum")
    from transformers import AutoModelForCausalLM

    from tests.parity.reference import precision_of

    folder = fixtures.load(request.param).write_folder(tmp_path_factory.mktemp(request.param))
    with jax.enable_x64(True), precision_of("float64") as dtype:
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
        lm = ours.load_ours(folder, "float64")
        ids, others = np.random.default_rng(2).integers(0, lm.config.d_vocab, (2, 2, 5))
        embed = lambda ids: theirs.get_input_embeddings()(torch.tensor(ids)).detach()  # noqa: E731

        def metric(x: Any) -> Any:
            last = theirs(inputs_embeds=x, use_cache=False).logits[:, -1]
            return last[:, ANSWERS[0]] - last[:, ANSWERS[1]]

        yield {"lm": lm, "ids": ids, "others": others, "x": embed(ids), "baseline": embed(others), "metric": metric}


def close(found: Any, theirs: Any) -> None:
    """Our scores [B P] against captum's attributions [B P D], summed over D, of the largest score."""
    want = theirs.detach().numpy().sum(axis=-1)
    np.testing.assert_allclose(found.scores, want, rtol=0, atol=1e-5 * np.abs(want).max())


METRIC = ji.metrics.logit_difference(*ANSWERS)


def test_integrated_gradients(setting: dict[str, Any]) -> None:
    from captum.attr import IntegratedGradients

    rules: dict[Any, str] = {"gauss_legendre": "gausslegendre", "riemann": "riemann_middle"}
    for rule, method in rules.items():
        found = ji.attribution.integrated_gradients(
            setting["lm"], setting["ids"], METRIC, baseline=setting["others"], steps=STEPS, spacing="linear", rule=rule
        )
        theirs, error = IntegratedGradients(setting["metric"]).attribute(
            setting["x"], baselines=setting["baseline"], n_steps=STEPS, method=method, return_convergence_delta=True
        )
        close(found, theirs)
        np.testing.assert_allclose(-found.error, error.detach().numpy(), rtol=1e-4, atol=1e-6)  # captum: sum minus difference


def test_gradient_x_input_and_saliency(setting: dict[str, Any]) -> None:
    from captum.attr import InputXGradient, Saliency

    close(ji.attribution.gradient_x_input(setting["lm"], setting["ids"], METRIC), InputXGradient(setting["metric"]).attribute(setting["x"]))
    slope = Saliency(setting["metric"]).attribute(setting["x"], abs=False).detach().numpy()
    found = ji.attribution.saliency(setting["lm"], setting["ids"], METRIC)
    np.testing.assert_allclose(found.scores, np.linalg.norm(slope, axis=-1), rtol=1e-5)


def test_smoothgrad_with_the_same_noise(setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from captum.attr import InputXGradient, NoiseTunnel

    drawn: list[Any] = []
    normal = torch.normal

    def kept(*args: Any, **options: Any) -> Any:
        drawn.append(normal(*args, **options))
        return drawn[-1]

    monkeypatch.setattr(torch, "normal", kept)
    tunnel = functools.partial(NoiseTunnel(InputXGradient(setting["metric"])).attribute, setting["x"], nt_samples=SAMPLES, stdevs=0.3)
    for method, kind in ((ji.attribution.smoothgrad, "smoothgrad"), (ji.attribution.vargrad, "vargrad")):
        drawn.clear()
        theirs = tunnel(nt_type=kind)
        noise = torch.cat(drawn).numpy().reshape(2, SAMPLES, *setting["x"].shape[1:]).swapaxes(0, 1)  # captum repeats each prompt
        close(method(setting["lm"], setting["ids"], METRIC, given=noise), theirs)


@pytest.mark.parametrize(("window", "stride"), [(1, 1), (2, 1), (3, 2)])
def test_occlusion(setting: dict[str, Any], window: int, stride: int) -> None:
    from captum.attr import Occlusion

    width = setting["x"].shape[2]
    theirs = Occlusion(setting["metric"]).attribute(
        setting["x"], sliding_window_shapes=(window, width), strides=(stride, width), baselines=setting["baseline"]
    )
    found = ji.attribution.occlusion(setting["lm"], setting["ids"], METRIC, baseline=setting["others"], window=window, stride=stride)
    want = theirs.detach().numpy()[..., 0]  # each entry of a token has the window's whole difference
    np.testing.assert_allclose(found.scores, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_shapley_values_of_every_order(setting: dict[str, Any]) -> None:
    import torch
    from captum.attr import ShapleyValues

    x = setting["x"][:1]
    token = torch.arange(x.shape[1])[None, :, None].expand(x.shape).contiguous()
    theirs = ShapleyValues(setting["metric"]).attribute(x, baselines=setting["baseline"][:1], feature_mask=token)
    found = ji.attribution.shapley(setting["lm"], setting["ids"][:1], METRIC, baseline=setting["others"][:1], samples=120)
    want = theirs.detach().numpy()[..., 0]
    np.testing.assert_allclose(found.scores, want, rtol=0, atol=1e-5 * np.abs(want).max())

"""attribute: every input attribution by its name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from jaxinterp.errors import InputError
from jaxinterp.methods.attribution.discretised import discretised_integrated_gradients
from jaxinterp.methods.attribution.gradient import gradient_x_input, relevance_propagation, saliency, smoothgrad, vargrad
from jaxinterp.methods.attribution.integrated import integrated_gradients, sequential_integrated_gradients
from jaxinterp.methods.attribution.mixing import attention_rollout, value_zeroing
from jaxinterp.methods.attribution.perturbation import leave_one_out, occlusion
from jaxinterp.methods.attribution.result import InputAttribution
from jaxinterp.methods.attribution.shapley import shapley
from jaxinterp.model.language_model import LanguageModel, Prompts

METHODS: Mapping[str, Callable[..., InputAttribution]] = MappingProxyType(
    {
        method.__name__: method
        for method in (
            saliency, gradient_x_input, integrated_gradients, sequential_integrated_gradients, discretised_integrated_gradients,
            smoothgrad, vargrad, occlusion, leave_one_out, shapley, value_zeroing, attention_rollout, relevance_propagation,
        )
    }
)  # fmt: skip
SHORT = MappingProxyType(
    {
        "ig": "integrated_gradients",
        "sig": "sequential_integrated_gradients",
        "dig": "discretised_integrated_gradients",
        "lrp": "relevance_propagation",
        "loo": "leave_one_out",
    }
)


def attribute(lm: LanguageModel, prompts: Prompts, metric: Any, method: str = "integrated_gradients", **options: Any) -> InputAttribution:
    """What each token of each prompt contributes to a metric, by a method's name.

    Args:
        lm: the model.
        prompts: as for `run`.
        metric: what is explained, such as `ji.metrics.logit_difference(" Paris", " Rome")`.
        method: the name of a function of `ji.attribution`, or "ig", "sig", "dig", "lrp", "loo".
        **options: that method's own.

    Raises:
        InputError: there is no such method; see the method's own.

    Example:
        >>> found = ji.attribute(lm, "The capital of France is", ji.metrics.logit_difference(" Paris", " Rome"), "shapley")
    """
    return METHODS[method_named(method)](lm, prompts, metric, **options)


def method_named(name: str) -> str:
    """The full name of a method.

    Raises:
        InputError: there is none of that name.
    """
    full = SHORT.get(name, name)
    if full not in METHODS:
        raise InputError(f"There is no attribution method {name!r}. Methods: {', '.join(METHODS)}; short: {', '.join(SHORT)}.")
    return full

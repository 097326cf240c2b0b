"""Attribution: what each input token and each activation contributes to a metric, with the error of every estimate.

Of the input, `f(lm, prompts, metric, ...)` with a score for each token: see `attribute`, `METHODS`, and the scores of an explanation
itself in `faithfulness`. Of activations, estimates of patching grids (`attribution_patch`, `relp`, `integrated_attribution`) that
are held against the exact ones; and what goes through a layer, a neuron or a concept.
"""

from jaxinterp.methods.attribution.activations import attribution_patch, relp
from jaxinterp.methods.attribution.attribute import METHODS, attribute
from jaxinterp.methods.attribution.compare import Comparison
from jaxinterp.methods.attribution.concepts import ConceptSensitivity, concept_sensitivity
from jaxinterp.methods.attribution.conductance import internal_influence, layer_conductance
from jaxinterp.methods.attribution.discretised import discretised_integrated_gradients
from jaxinterp.methods.attribution.estimates import AttributionResult
from jaxinterp.methods.attribution.faithfulness import Faithfulness, comprehensiveness, infidelity, max_sensitivity, sufficiency
from jaxinterp.methods.attribution.gradient import gradient_x_input, relevance_propagation, saliency, smoothgrad, vargrad
from jaxinterp.methods.attribution.integrated import integrated_gradients, sequential_integrated_gradients
from jaxinterp.methods.attribution.mixing import attention_rollout, value_zeroing
from jaxinterp.methods.attribution.neurons import neuron_conductance
from jaxinterp.methods.attribution.paths import integrated_attribution
from jaxinterp.methods.attribution.perturbation import leave_one_out, occlusion
from jaxinterp.methods.attribution.result import InputAttribution
from jaxinterp.methods.attribution.shapley import shapley

__all__ = [
    "METHODS", "AttributionResult", "Comparison", "ConceptSensitivity", "Faithfulness", "InputAttribution", "attention_rollout",
    "attribute", "attribution_patch", "comprehensiveness", "concept_sensitivity", "discretised_integrated_gradients",
    "gradient_x_input", "infidelity", "integrated_attribution", "integrated_gradients", "internal_influence", "layer_conductance",
    "leave_one_out", "max_sensitivity", "neuron_conductance", "occlusion", "relevance_propagation", "relp", "saliency",
    "sequential_integrated_gradients", "shapley", "smoothgrad", "sufficiency", "value_zeroing", "vargrad",
]  # fmt: skip

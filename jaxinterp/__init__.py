"""jaxinterp: interpretability in which the model is a pure function. Import it as `ji`.

import jaxinterp as ji
lm = ji.load("smollm2-135m-instruct")
trace = ji.run(lm, "The capital of France is", sites=["resid_post"])
trace.top(3), trace["resid_post"].shape
"""

from jaxinterp import data
from jaxinterp.checkpoints.load import load
from jaxinterp.checkpoints.save import save
from jaxinterp.errors import CheckpointError, FetchError, InputError, JaxinterpError, MemoryPlanError
from jaxinterp.methods import attribution, steering, weights
from jaxinterp.methods.ablation import OptimalTraining, ablate, greedy, leave_one_out, self_repair
from jaxinterp.methods.attribution import (
    attribute,
    attribution_patch,
    concept_sensitivity,
    integrated_attribution,
    internal_influence,
    layer_conductance,
    neuron_conductance,
    relp,
)
from jaxinterp.methods.knockout import knockout
from jaxinterp.methods.lenses import LogitLens, logit_lens
from jaxinterp.methods.patching import patch
from jaxinterp.methods.path_patching import path_patch
from jaxinterp.methods.residual import DirectAttribution, direct_logit_attribution
from jaxinterp.methods.scrubbing import ScrubNode, causal_scrubbing
from jaxinterp.methods.tracing import causal_trace
from jaxinterp.model import edits
from jaxinterp.model.config import Experts, Rotary, RotaryScaling, TransformerConfig
from jaxinterp.model.language_model import LanguageModel, stack
from jaxinterp.model.parameters import init_params, parameter_shapes, partition_specs
from jaxinterp.model.rules import Rules
from jaxinterp.model.selection import at, heads
from jaxinterp.model.sites import SITES
from jaxinterp.model.tokens import Tokens
from jaxinterp.model.trace import Trace
from jaxinterp.model.transformer import forward
from jaxinterp.runs import metrics
from jaxinterp.runs.activations import activations
from jaxinterp.runs.generate import generate, stream
from jaxinterp.runs.generation import Generation
from jaxinterp.runs.gradients import Gradients, gradients
from jaxinterp.runs.plan import plan
from jaxinterp.runs.run import run
from jaxinterp.runs.score import Score, score
from jaxinterp.runs.sweep import sweep
from jaxinterp.runs.verify import verify

__version__ = "0.1.0"

__all__ = [
    "SITES", "CheckpointError", "DirectAttribution", "Experts", "FetchError", "Generation", "Gradients", "InputError", "JaxinterpError",
    "LanguageModel", "LogitLens", "MemoryPlanError", "OptimalTraining", "Rotary", "RotaryScaling", "Rules", "Score", "ScrubNode",
    "Tokens", "Trace", "TransformerConfig", "ablate", "activations", "at", "attribute", "attribution", "attribution_patch",
    "causal_scrubbing", "causal_trace", "concept_sensitivity", "data", "direct_logit_attribution", "edits", "forward", "generate",
    "gradients", "greedy", "heads", "init_params", "integrated_attribution", "internal_influence", "knockout", "layer_conductance",
    "leave_one_out", "load", "logit_lens", "metrics", "neuron_conductance", "parameter_shapes", "partition_specs", "patch",
    "path_patch", "plan", "relp", "run", "save", "score", "self_repair", "stack", "steering", "stream", "sweep", "verify", "weights",
]  # fmt: skip

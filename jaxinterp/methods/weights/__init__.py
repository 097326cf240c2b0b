"""Weight edits: pure functions from a model to one whose parameters were changed; the model passed in stays as it is.

changed = ji.weights.orthogonalise(lm, vector.at(12))                 # nothing can write along the direction any more
smaller = ji.weights.prune(lm, heads="3.1 4.2")                       # the model without some heads
merged = ji.weights.merge_lora(lm, "adapter_folder")                  # a fine-tuning's low-rank update, added
edited, report = ji.weights.rome(lm, "{} is in the city of", "The Eiffel Tower", " Rome", layer=12, texts=texts)
"""

from jaxinterp.methods.weights.covariance import SecondMoment, load_second_moment, second_moment
from jaxinterp.methods.weights.facts import FactEdit, Request
from jaxinterp.methods.weights.importance import Importance, importance
from jaxinterp.methods.weights.lora import merge_lora
from jaxinterp.methods.weights.low_rank import low_rank
from jaxinterp.methods.weights.memit import memit
from jaxinterp.methods.weights.orthogonal import orthogonalise
from jaxinterp.methods.weights.prune import prune
from jaxinterp.methods.weights.pruned_layout import Pruning, pruned_layout
from jaxinterp.methods.weights.rome import rome
from jaxinterp.methods.weights.shrink import shrink
from jaxinterp.methods.weights.shrunk import Shrunk

__all__ = [
    "FactEdit", "Importance", "Pruning", "Request", "SecondMoment", "Shrunk", "importance", "load_second_moment", "low_rank",
    "memit", "merge_lora", "orthogonalise", "prune", "pruned_layout", "rome", "second_moment", "shrink",
]  # fmt: skip

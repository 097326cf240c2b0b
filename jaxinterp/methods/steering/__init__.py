"""Steering: directions from contrasts, heads, tasks or nothing at all; applied as edits; chosen and judged on prompts held out.

    vector = ji.steering.mean_difference(lm, happy, sad)                      # a SteeringVector: a direction for each layer
    found = ji.steering.sweep(lm, vector, prompts, metric)                    # its effect and its cost, layers by strengths
    best = found.best(budget=0.1)
    ji.generate(lm, "I think that", 20, edits=[vector.add(best.strength, layer=best.layer)])
"""

from jaxinterp.methods.steering.classifiers import discriminant, from_probe, logistic
from jaxinterp.methods.steering.components import principal
from jaxinterp.methods.steering.conditions import Threshold, best_threshold, cosines, gate
from jaxinterp.methods.steering.difference import mean_difference
from jaxinterp.methods.steering.files import load, save
from jaxinterp.methods.steering.vector import SteeringVector, make_vector

__all__ = [
    "SteeringVector", "Threshold", "best_threshold", "cosines", "discriminant", "from_probe", "gate", "load", "logistic", "make_vector",
    "mean_difference", "principal", "save",
]  # fmt: skip

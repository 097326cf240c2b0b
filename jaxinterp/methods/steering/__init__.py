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
from jaxinterp.methods.steering.function_vectors import FunctionVector, function_vector
from jaxinterp.methods.steering.heads import HeadDirections, head_directions
from jaxinterp.methods.steering.judge import CrossValidation, cross_validate
from jaxinterp.methods.steering.monitor import Monitor, monitor
from jaxinterp.methods.steering.sentiment import sentiment_metric, sentiment_vector, steer_sentiment
from jaxinterp.methods.steering.side_by_side import SideBySide, side_by_side
from jaxinterp.methods.steering.sweep import sweep
from jaxinterp.methods.steering.sweep_result import Choice, SteeringSweep
from jaxinterp.methods.steering.unsupervised import SteeringVectors, unsupervised
from jaxinterp.methods.steering.vector import SteeringVector, make_vector

__all__ = [
    "Choice", "CrossValidation", "FunctionVector", "HeadDirections", "Monitor", "SideBySide", "SteeringSweep", "SteeringVector",
    "SteeringVectors", "Threshold", "best_threshold", "cosines", "cross_validate", "discriminant", "from_probe", "function_vector",
    "gate", "head_directions", "load", "logistic", "make_vector", "mean_difference", "monitor", "principal", "save", "sentiment_metric",
    "sentiment_vector", "side_by_side", "steer_sentiment", "sweep", "unsupervised",
]  # fmt: skip

"""Running a model: run, streams of activations, metrics, and the plan of a run's memory and operations."""

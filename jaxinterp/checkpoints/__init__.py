"""Checkpoints: from files in the formats of the field to our parameters and config, and back."""

"""Parity with transformers at every site: the table of models, the torch reference, our side, and the comparison."""

"""Measuring what sparsity costs: perplexity, divergence from the dense model, and tasks."""

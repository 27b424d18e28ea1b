"""A page that shows what sparsity does to one model: quality, speed, and what to use."""

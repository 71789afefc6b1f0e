"""A synthetic dataset of shapes."""

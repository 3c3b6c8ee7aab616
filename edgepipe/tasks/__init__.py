"""Tasks: how a model's outputs are decoded, its quality metrics, and its loss and optimizer."""

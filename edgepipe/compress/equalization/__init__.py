"""What makes int8 of a float model better before it is converted: cross-layer equalization and bias correction."""

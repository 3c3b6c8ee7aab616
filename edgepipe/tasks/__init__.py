"""What a model is for: how its outputs are decoded, which numbers say how good they are, what it is trained on."""

"""Arm Ethos-U accelerators: what Vela, their compiler, makes of a model, and what its cycle model says of it."""

"""Arm Ethos-U accelerators: models compiled by Vela, and the metrics from its cycle model."""

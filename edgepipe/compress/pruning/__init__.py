"""Pruning: which weights go (saliency), in which shapes (granularity), from which layers (distribution), when."""

"""Calibrating a device of one's own: a suite of small models, measured there, and a latency model fitted to them."""

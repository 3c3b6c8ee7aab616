"""Calibration of the user's own device: a suite of small models measured there, and a latency model fitted to it."""

"""Latency that nobody measured: what an operator costs on a device, fitted to published or own measurements."""

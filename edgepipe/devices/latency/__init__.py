"""Estimated latency: operator costs on a device, fitted to published or own measurements."""

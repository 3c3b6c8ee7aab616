"""Puts a model on devices: staged beside the version that runs, proved there, then switched to in one atomic step."""

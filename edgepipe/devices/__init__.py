"""Device profiles: what the hardware is, what it runs, how much memory it has, and how each metric is obtained."""

"""What releases of runtimes do with operators: a table of what was tried, and what it says of a model."""

"""Renders results as text tables, Markdown and JSON: one module a command. No TensorFlow here."""

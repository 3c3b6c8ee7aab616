"""The run told once, and its renderings: text, JSON, Markdown. No TensorFlow here."""

"""The stages a pipeline can be made of: one file or folder each; `registry` finds them by name."""

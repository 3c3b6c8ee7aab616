"""Where the Edge TPU compiler places operators: Coral's published models, the limits they show, the compiler itself."""

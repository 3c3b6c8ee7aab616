"""Channel pruning: coupled filters through the whole graph, and the smaller model without them."""

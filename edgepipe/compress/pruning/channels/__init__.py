"""Channel pruning: filters that go together through the whole graph, and the smaller model without them."""

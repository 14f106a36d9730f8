"""Outside sources that need a network, one module each."""

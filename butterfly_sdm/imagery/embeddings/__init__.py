"""Embeddings of the Earth: rasters of many unnamed bands that are decoded by a stated rule."""

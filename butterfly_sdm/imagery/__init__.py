"""Scenes: rasters with named bands, the products they come as, and what their numbers mean."""

"""Presence probabilities over a lattice of positions, window by window or densely."""

"""Scenes become tiles at sites."""

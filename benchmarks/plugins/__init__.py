"""Experiments that show what the plugins achieve."""

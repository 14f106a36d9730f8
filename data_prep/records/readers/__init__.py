"""Readers of record files, one module per family of layouts."""

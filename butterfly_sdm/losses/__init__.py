"""Pair weights, the contrastive loss, and the losses of presence."""

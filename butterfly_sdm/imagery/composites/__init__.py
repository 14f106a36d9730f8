"""Composites: one picture out of many dates, composed where it is read."""

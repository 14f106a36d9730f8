"""What can be said about a loss."""

from typing import Literal

PresenceName = Literal["binomial", "beta_binomial", "bce", "mse", "mae", "focal", "asymmetric"]
DetectionName = Literal["season", "occupancy"]  # of dated visits

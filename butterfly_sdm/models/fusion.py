"""
Join what the image, the covariates and the position say about a site; each of them may be missing.
"""

import torch
from torch import Tensor, nn

from butterfly_sdm.models.options import FusionRule


class PositionEncoding(nn.Module):
    """
    Random Fourier features of a position [1]_.

    Positions are standardised by the training sites, so that one unit is one standard deviation of
    where the sites lie.

    Parameters
    ----------
    features
        Number of waves; each gives a sine and a cosine.
    scale
        Standard deviation of the wave numbers in cycles per unit: larger values let presence vary
        over shorter distances.

    References
    ----------
    .. [1] Rahimi & Recht (2007). Random features for large-scale kernel machines. NeurIPS 20;
           Tancik et al. (2020). Fourier
       features let networks learn high frequency functions in low dimensional domains. NeurIPS 33.
    """

    waves: Tensor

    def __init__(self, features: int = 32, *, scale: float = 0.5, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("waves", torch.randn(2, features, generator=generator) * scale)
        self.length = 2 * features + 2

    def forward(self, position: Tensor) -> Tensor:
        """
        Return (n, length) numbers for standardised positions (n, 2): the position itself and its
        waves.
        """
        angle = 2 * torch.pi * position @ self.waves
        return torch.cat([position, angle.sin(), angle.cos()], dim=1)


class Branch(nn.Module):
    """
    Encode one modality as a vector of the common length, with a learned vector where it is missing.

    Parameters
    ----------
    inputs
        Length of its input; 0 if the input already is a vector of the common length.
    """

    def __init__(
        self, inputs: int, length: int, *, hidden: int = 128, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.missing = nn.Parameter(torch.zeros(length))
        self.layers: nn.Module = nn.Identity()
        if inputs:
            self.layers = nn.Sequential(
                nn.Linear(inputs, hidden),
                nn.GELU(),
                nn.Dropout(dropout),
                nn.Linear(hidden, length),
                nn.LayerNorm(length),
            )

    def start_at_unit_length(self) -> None:
        """
        Let its vectors have the length of an embedding of an image at first, not sqrt(length) times
        as much.
        """
        last = self.layers[-1] if isinstance(self.layers, nn.Sequential) else None
        if isinstance(last, nn.LayerNorm):
            nn.init.constant_(last.weight, len(self.missing) ** -0.5)

    def forward(self, value: Tensor | None, present: Tensor | None, rows: int) -> Tensor:
        """
        Return (rows, length).

        Parameters
        ----------
        value
            (rows, inputs), or None if the modality is missing everywhere.
        present
            (rows,) where it is there; None: everywhere.
        """
        if value is None:
            return self.missing.expand(rows, -1)
        encoded = self.layers(value)
        return (
            encoded
            if present is None
            else torch.where(present[:, None], encoded, self.missing.to(encoded.dtype))
        )


class Fusion(nn.Module):
    """
    Join vectors of one length into one vector of that length.

    Parameters
    ----------
    modalities
        How many there are.
    rule
        ``concatenate``: one linear layer over all. ``gate``: a weighted sum with weights that
        depend on all.
    """

    def __init__(self, modalities: int, length: int, *, rule: FusionRule = "concatenate") -> None:
        super().__init__()
        self.rule = rule
        self.layer = nn.Linear(modalities * length, length if rule == "concatenate" else modalities)

    def start_from_first(self) -> None:
        """
        Let the joined vector be nearly the first one at first, so that the others learn what it
        leaves over.

        Numbers tell training sites apart long before a trunk has learned what their images have in
        common; joined on equal terms they are learned by heart, and the image is not learned at
        all.
        """
        if self.rule != "concatenate":
            return
        length = self.layer.out_features
        with torch.no_grad():
            self.layer.weight.mul_(0.1)  # not 0: a vector of length 0 has no direction
            self.layer.weight[:, :length] = torch.eye(length)
            self.layer.bias.zero_()

    def forward(self, parts: list[Tensor]) -> Tensor:
        """Return (n, length) for parts of shape (n, length)."""
        joined: Tensor = self.layer(torch.cat(parts, dim=1))
        if self.rule == "concatenate":
            return joined
        gates = joined.softmax(dim=1)  # (n, modalities)
        return (torch.stack(parts, dim=1) * gates[:, :, None]).sum(dim=1)

"""
The network: trunk, pooling that leaves the surroundings out, projection head and species head.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple, Self, cast

import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn

from butterfly_sdm.core.settings import empty
from butterfly_sdm.errors import ModelError
from butterfly_sdm.models.foundation.galileo import GalileoBody
from butterfly_sdm.models.foundation.terratorch import TerraTorchBody
from butterfly_sdm.models.fusion import Branch, Fusion, PositionEncoding
from butterfly_sdm.models.options import MOST, Freeze, ShapeOptions
from butterfly_sdm.models.stem import find_stem
from butterfly_sdm.models.trunk import Trunk

NEAR_TEMPERATURE = 0.05  # of the cosine to remembered sites: one 0.05 nearer counts e times


class Architecture(ShapeOptions):
    """
    Everything needed to build a :class:`PresenceNet` before its weights are read.

    Attributes
    ----------
    species
        Number of species.
    bands
        Names of the bands of the image in order; empty for a network without imagery.
    covariates
        Number of covariates; 0 for none.
    mixed
        How many numbers are made of them where principal components take the place of some; 0: the
        covariates themselves are seen.
    position
        Whether the network knows where a site lies.
    remembered
        Number of training sites whose embeddings it keeps; 0 until it is fitted, and always
        without ``neighbours``.
    """

    species: int = Field(ge=1, le=MOST)
    bands: tuple[str, ...] = ()
    covariates: int = Field(0, ge=0)
    mixed: int = Field(0, ge=0, le=MOST, exclude_if=empty)
    position: bool = False
    remembered: int = Field(0, ge=0, le=MOST, exclude_if=empty)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Self:
        """
        Read an architecture from a JSON file.

        Raises
        ------
        ModelError
            A value is missing, unknown or out of range.
        """
        try:
            # Before padding could be chosen it was zeros. In JSON a list may stand for a tuple.
            return cls.model_validate_json(json.dumps({"padding": "zeros"} | value))
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            where = ".".join(map(str, problem["loc"]))
            raise ModelError(
                f"The architecture in model.json is not one this release knows: {where}: "
                f"{problem['msg']}."
            ) from None


class Seen(NamedTuple):
    """
    Sites on their way through a network.

    Attributes
    ----------
    pooled
        (m, channels) features of the sites that have an image; None without any.
    joined
        (n, embedding) unit vectors of all sites, as the head reads them.
    """

    pooled: Tensor | None
    joined: Tensor


class PresenceNet(nn.Module):
    """
    Presence of every species from the image of a site, its covariates and its position.

    Parameters
    ----------
    architecture
        Sizes and parts.

    Attributes
    ----------
    bands, window_px, margin_px
        As in the architecture.
    stride
        Pixels per cell of the feature map (32 for a ResNet).
    dense
        Whether a map may share the trunk between windows.
    mean, std
        (bands,) of the reflectance of the training sites; the image given to :meth:`forward` is
        standardised with them and 0 where nothing was measured.

    Notes
    -----
    The trunk sees ``window_px + 2 * margin_px`` pixels; pooling takes the mean over the cells of
    the window only. So the network is trained on what a map over large blocks shows it: true
    surroundings instead of the zeros that pad an image.
    """

    mean: Tensor
    std: Tensor
    covariate_mean: Tensor
    covariate_std: Tensor
    covariate_axes: Tensor
    position_mean: Tensor
    position_std: Tensor
    near_z: Tensor
    near_rates: Tensor

    def __init__(self, architecture: Architecture, *, seed: int = 0) -> None:
        super().__init__()
        a = self.architecture = architecture
        if not (a.bands or a.covariates or a.position):
            raise ModelError(
                "A network needs something to see: switch on image, covariates or position."
            )
        self.bands, self.window_px, self.margin_px = a.bands, a.window_px, a.margin_px
        self.trunk: Trunk | None = None
        self.stride, self.dense = 32, False
        if a.bands:
            self.trunk = Trunk(a.backbone, a.bands, a.padding, a.width)
            self.stride, self.dense = self.trunk.stride, self.trunk.dense
            for name, value in (("window_px", a.window_px), ("margin_px", a.margin_px)):
                if value % self.stride:
                    below = value - value % self.stride
                    raise ModelError(
                        f"{name} is {value}; {a.backbone} needs a multiple of its stride, "
                        f"{self.stride} px: {below} or {below + self.stride}."
                    )
            self.projection = nn.Linear(self.trunk.channels, a.embedding)
        for what, length in (("", len(a.bands)), ("covariate_", a.covariates), ("position_", 2)):
            self.register_buffer(f"{what}mean", torch.zeros(length))
            self.register_buffer(f"{what}std", torch.ones(length))

        self.branches = nn.ModuleDict()
        if a.bands:
            self.branches["image"] = Branch(0, a.embedding)
        if a.covariates:
            seen = a.mixed or a.covariates
            self.branches["covariates"] = Branch(seen, a.embedding, dropout=a.dropout)
            if a.mixed:
                self.register_buffer("covariate_axes", torch.zeros(a.covariates, a.mixed))
        if a.position:
            self.encoding = PositionEncoding(a.waves, scale=a.wave_scale, seed=seed)
            self.branches["position"] = Branch(self.encoding.length, a.embedding, dropout=a.dropout)
        self.fusion = (
            Fusion(len(self.branches), a.embedding, rule=a.fusion)
            if len(self.branches) > 1
            else None
        )
        if self.fusion is not None and a.bands:
            self.fusion.start_from_first()
            for branch in self.branches.children():
                assert isinstance(branch, Branch)
                branch.start_at_unit_length()

        layers: list[nn.Module] = []
        width = a.embedding
        for _ in range(a.head_layers - 1):
            layers += [nn.Linear(width, a.head_width), nn.ReLU(), nn.Dropout(a.dropout)]
            width = a.head_width
        self.classifier = nn.Sequential(*layers, nn.Linear(width, a.species))
        if a.remembered:
            self.register_buffer("near_z", torch.zeros(a.remembered, a.embedding))
            self.register_buffer("near_rates", torch.zeros(a.remembered, a.species))

    @property
    def tile_px(self) -> int:
        """Side of the image the trunk sees: the window and its margin on both sides."""
        return self.window_px + 2 * self.margin_px

    @property
    def stem(self) -> nn.Conv2d:
        """The first convolution of the trunk."""
        if self.trunk is None:
            raise ModelError("This network has no image and so no stem.")
        if isinstance(self.trunk.body, TerraTorchBody | GalileoBody):
            raise ModelError(
                f"{self.trunk.name} has no first convolution of all bands that could be trained "
                "alone. Set freeze: trunk, or nothing."
            )
        return find_stem(self.trunk.body)[1]

    def standardise(self, reflectance: Tensor, valid: Tensor | None = None) -> Tensor:
        """
        Return the input of the trunk: standardised reflectance, 0 (the mean) where nothing was
        measured.

        Parameters
        ----------
        reflectance
            (n, bands, height, width).
        valid
            (n, height, width) or (n, 1, height, width) where something was measured; None:
            everywhere.
        """
        image = (reflectance - self.mean[:, None, None]) / self.std[:, None, None]
        if valid is not None:
            image = image.masked_fill(~(valid if valid.ndim == 4 else valid[:, None]), 0.0)
        return image

    def features(self, image: Tensor) -> Tensor:
        """
        Return the feature map (n, channels, height / stride, width / stride) of standardised images
        of any size.

        Raises
        ------
        ModelError
            The network was trained without imagery.
        """
        if self.trunk is None:
            raise ModelError("This network was trained without imagery; it has no feature map.")
        return cast(Tensor, self.trunk(image))

    def pool(self, features: Tensor) -> Tensor:
        """Return the mean (n, channels) over the cells of the window, the margin left out."""
        margin = self.margin_px // self.stride
        height, width = features.shape[-2:]
        return features[..., margin : height - margin, margin : width - margin].mean(dim=(-2, -1))

    def project(self, pooled: Tensor) -> Tensor:
        """Return the unit embedding (n, embedding) of pooled features (n, channels)."""
        return nn.functional.normalize(self.projection(pooled), dim=-1)

    def fuse(
        self,
        z: Tensor | None,
        covariates: Tensor | None = None,
        position: Tensor | None = None,
        *,
        has_image: Tensor | None = None,
    ) -> Tensor:
        """
        Join the embedding of the image with covariates and position to one unit embedding (n,
        embedding).

        Parameters
        ----------
        z
            (n, embedding) of :meth:`project`; None without imagery.
        covariates
            (n, covariates) in their own units; NaN where missing. A row of NaN is a site without
            covariates.
        position
            (n, 2) easting and northing in metres; NaN where unknown.
        has_image
            (n,) which rows of ``z`` stand for an image; None: all.

        Raises
        ------
        ModelError
            Nothing the network knows was given.
        """
        if self.fusion is None and "image" in self.branches:
            if z is None:
                raise ModelError("This network sees only imagery, and none was given.")
            return z
        given = [value for value in (z, covariates, position) if value is not None]
        if not given:
            raise ModelError(
                "No image, no covariates and no position were given: nothing to predict from."
            )
        rows = len(given[0])
        parts = []
        if "image" in self.branches:
            parts.append(self.branches["image"](z, has_image, rows))
        if "covariates" in self.branches:
            known = standard = None
            if covariates is not None:
                standard = (covariates - self.covariate_mean) / self.covariate_std
                known = ~standard.isnan().all(dim=1)
                standard = standard.nan_to_num(0.0).clamp(-10, 10)
                if self.architecture.mixed:
                    standard = standard @ self.covariate_axes
            parts.append(self.branches["covariates"](standard, known, rows))
        if "position" in self.branches:
            known = waves = None
            if position is not None:
                place = (position - self.position_mean) / self.position_std
                known = ~place.isnan().any(dim=1)
                waves = self.encoding(place.nan_to_num(0.0).float())
            parts.append(self.branches["position"](waves, known, rows))
        joined = parts[0] if self.fusion is None else self.fusion(parts)
        return nn.functional.normalize(joined, dim=-1)

    def head(
        self, z: Tensor, covariates: Tensor | None = None, position: Tensor | None = None
    ) -> Tensor:
        """
        Return the logits (n, species) of embeddings of the image, beside covariates and position if
        the network knows them.

        A modality that is not given counts as missing.
        """
        return self.classify(self.fuse(z, covariates, position))

    def classify(self, z: Tensor) -> Tensor:
        """Return the logits (n, species) of joined embeddings, see :meth:`fuse`."""
        # The numbers of a unit vector shrink with its length; a layer learns well from numbers of
        # size 1.
        logits: Tensor = self.classifier(z * z.shape[-1] ** 0.5)
        if not self.architecture.remembered:
            return logits
        share = self.architecture.neighbours
        nearness = (z @ self.near_z.T / NEAR_TEMPERATURE).softmax(dim=-1)  # (n, remembered)
        blend = (1 - share) * logits.sigmoid() + share * (nearness @ self.near_rates)
        return blend.logit(eps=1e-7)

    def remember(self, z: Tensor, rates: Tensor) -> None:
        """
        Keep the embeddings of training sites: from here on ``architecture.neighbours`` of every
        claim is the mean of their rates, each by the softmax of its cosine to the site.

        Parameters
        ----------
        z
            (sites, embedding) unit vectors, as the head reads them.
        rates
            (sites, species) in (0, 1).
        """
        self.register_buffer("near_z", z.float())
        self.register_buffer("near_rates", rates.float())
        self.architecture = self.architecture.model_copy(update={"remembered": len(z)})

    def see(
        self,
        image: Tensor | None = None,
        covariates: Tensor | None = None,
        position: Tensor | None = None,
        *,
        pooled: Tensor | None = None,
        has_image: Tensor | None = None,
    ) -> Seen:
        """
        Return what becomes of sites before their species are read off.

        Parameters
        ----------
        image
            (n, bands, height, width) standardised; only the rows with an image if ``has_image`` is
            given.
        covariates, position
            (n, covariates) and (n, 2); see :meth:`fuse`.
        pooled
            (n, channels) instead of the image, where the trunk was run before.
        has_image
            (n,) which rows have an image; None: all.
        """
        if pooled is None and image is not None and self.trunk is not None and len(image):
            pooled = self.pool(self.features(image))
        z = None
        if pooled is not None and self.trunk is not None:
            z = self.project(pooled)
            if has_image is not None and len(z) != len(has_image):
                whole = z.new_zeros(len(has_image), z.shape[1])
                # places are not counted: a GPU would have to be waited for
                z = whole.masked_scatter(has_image[:, None], z)
        return Seen(pooled, self.fuse(z, covariates, position, has_image=has_image))

    def forward(
        self,
        image: Tensor | None = None,
        covariates: Tensor | None = None,
        position: Tensor | None = None,
        *,
        pooled: Tensor | None = None,
        has_image: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """
        Return logits and the embedding that the head reads; parameters as of :meth:`see`.

        Returns
        -------
        logits : Tensor of shape (n, species)
        z : Tensor of shape (n, embedding)
            Unit vectors.
        """
        seen = self.see(image, covariates, position, pooled=pooled, has_image=has_image)
        return self.classify(seen.joined), seen.joined

    def freeze(self, what: Freeze) -> None:
        """
        Keep parts of the trunk as they are: no gradients, and batch statistics that do not move.

        Parameters
        ----------
        what
            ``nothing``; ``trunk``: all of it; ``all_but_stem``: all but the first convolution, so
            that new bands can be learned.
        """
        self.frozen: Freeze = what
        if self.trunk is None:
            return
        for parameter in self.trunk.parameters():
            parameter.requires_grad_(what == "nothing")
        if what == "all_but_stem":
            self.stem.weight.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """
        Switch training on or off; a frozen trunk stays in evaluation, so that its batch statistics
        do not move.
        """
        super().train(mode)
        if self.trunk is not None and getattr(self, "frozen", "nothing") != "nothing":
            self.trunk.eval()
        return self


def start_at_rates(net: PresenceNet, rates: Sequence[float] | Tensor) -> None:
    """
    Let an untrained network predict the mean rates (species,) of the training sites everywhere.
    """
    last = net.classifier[-1]
    assert isinstance(last, nn.Linear)
    value = torch.as_tensor(rates, dtype=torch.float32).clamp(1e-3, 1 - 1e-3)
    with torch.no_grad():
        last.bias.copy_(value.logit())
        last.weight.mul_(0.1)

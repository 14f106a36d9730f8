"""
The network of hateful video: encoders per modality, cross-encoders per pair, a classifier on
everything joined.
"""

from collections.abc import Mapping
from functools import partial
from itertools import permutations
from typing import Any, cast

import torch
from torch import Tensor, nn

from butterfly_sdm.plugins.implihate.options import ImplihateConfig
from butterfly_sdm.plugins.networks import layers, unit

AFFECT = ("emotion", "sentiment")


class VideoNet(nn.Module):
    """
    Encoders, projections, cross-encoders and classifier.

    Parameters
    ----------
    lengths
        Length of the input per key (modalities, and caption, emotion, sentiment where the data have
        them).
    classes
        Number of classes.
    config
        Settings of the layers, and the modalities that are used; without two stages the classifier
        sees the encodings alone.
    """

    def __init__(self, lengths: Mapping[str, int], classes: int, config: ImplihateConfig) -> None:
        super().__init__()
        cross = config.cross if config.contrastive == "two_stages" else 0
        self.modalities = tuple(key for key in config.modalities if key in lengths)
        self.keys = tuple(lengths)
        self.encoded = (*self.modalities, *(["caption"] if "caption" in lengths else []))
        self.affect = tuple(key for key in AFFECT if key in lengths)
        for key, length in lengths.items():
            self.register_buffer(f"mean_{key}", torch.zeros(length))
            self.register_buffer(f"spread_{key}", torch.ones(length))
        size = config.encoder[-1]
        encoder = partial(layers, dropout=config.dropout, last=True)
        self.encoders = nn.ModuleDict()
        for key in self.encoded:
            self.encoders[key] = encoder((lengths[key], *config.encoder))
        self.joint = nn.Linear(size * len(self.modalities), config.projection)
        self.side = nn.ModuleDict()
        if "caption" in self.encoded:
            self.side["caption"] = nn.Linear(size, 128)
        if self.affect:
            self.encoders["affect"] = encoder((sum(lengths[key] for key in self.affect), 32, 16))
            self.side["affect"] = nn.Linear(16, 128)
        self.pairs = tuple(permutations(self.modalities, 2)) if cross else ()
        self.cross = nn.ModuleDict({f"{a}_{b}": layers((size, size, cross)) for a, b in self.pairs})
        joined = len(self.pairs) * cross if self.pairs else len(self.modalities) * size
        joined += (size if "caption" in self.encoded else 0) + (16 if self.affect else 0)
        sizes = (joined, *config.classifier, classes)
        self.classifier = layers(sizes, dropout=config.classifier_dropout)

    def standardise(self, values: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> None:
        """Set mean and spread of every input from the rows that have it."""
        for key in self.keys:
            rows = values[key][present[key].bool()]
            if len(rows):
                getattr(self, f"mean_{key}").copy_(rows.mean(dim=0))
                getattr(self, f"spread_{key}").copy_(rows.std(dim=0, correction=0).clamp(min=1e-6))

    def encode(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """
        Encode every modality; a missing one becomes zeros.

        Parameters
        ----------
        batch
            ``KEY`` (n, length) and ``KEY_present`` (n,) for every key.

        Returns
        -------
        dict
            Modality (and caption): (n, encoding); affect: (n, 16).
        """
        present = {key: batch[f"{key}_present"][:, None] for key in self.keys}
        scaled: dict[str, Any] = {}
        for key in self.keys:
            z = (batch[key] - getattr(self, f"mean_{key}")) / getattr(self, f"spread_{key}")
            # Beyond ten spreads lies a constant input that moved, not information.
            scaled[key] = z.clamp(-10, 10) * present[key]
        encoded = {key: self.encoders[key](scaled[key]) * present[key] for key in self.encoded}
        if self.affect:
            any_present = torch.stack([present[key] for key in self.affect]).amax(dim=0)
            together = torch.cat([scaled[key] for key in self.affect], dim=1)
            encoded["affect"] = self.encoders["affect"](together) * any_present
        return encoded

    def joint_embedding(self, encoded: Mapping[str, Tensor]) -> Tensor:
        """Return (n, projection) unit embeddings of all modalities together."""
        return unit(self.joint(torch.cat([encoded[key] for key in self.modalities], dim=1)))

    def side_embedding(self, encoded: Mapping[str, Tensor], key: str) -> Tensor:
        """Return (n, 128) unit embeddings of the caption or of the affect."""
        return unit(self.side[key](encoded[key]))

    def cross_embedding(self, encoded: Mapping[str, Tensor], pair: tuple[str, str]) -> Tensor:
        """
        Return (n, cross) unit embeddings of the first modality of a pair, meant for the second.
        """
        return unit(self.cross[f"{pair[0]}_{pair[1]}"](encoded[pair[0]]))

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return (n, classes) logits."""
        encoded = self.encode(batch)
        joined = [] if self.pairs else [encoded[key] for key in self.modalities]
        for a, b in self.pairs:
            joined.append(self.cross[f"{a}_{b}"](encoded[a]) * batch[f"{a}_present"][:, None])
        joined += [encoded[key] for key in ("caption", "affect") if key in encoded]
        return cast(Tensor, self.classifier(torch.cat(joined, dim=1)))

"""
The network of hateful video: encoders per modality, cross-encoders per pair, a classifier on
everything joined.
"""

from collections.abc import Mapping, Sequence
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
    modalities
        Those among image, text and audio that are used.
    classes
        Number of classes.
    config
        Settings of the layers; without two stages the classifier sees the encodings alone.
    """

    def __init__(
        self,
        lengths: Mapping[str, int],
        modalities: Sequence[str],
        classes: int,
        config: ImplihateConfig,
    ) -> None:
        super().__init__()
        encoder = config.encoder
        cross = config.cross if config.contrastive == "two_stages" else 0
        self.modalities = tuple(modalities)
        self.keys = tuple(lengths)
        self.encoded = (*self.modalities, *(["caption"] if "caption" in lengths else []))
        self.affect = tuple(key for key in AFFECT if key in lengths)
        for key, length in lengths.items():
            self.register_buffer(f"mean_{key}", torch.zeros(length))
            self.register_buffer(f"spread_{key}", torch.ones(length))
        size = encoder[-1]
        self.encoders = nn.ModuleDict(
            {
                key: layers((lengths[key], *encoder), dropout=config.dropout, last=True)
                for key in self.encoded
            }
        )
        self.joint = nn.Linear(size * len(self.modalities), config.projection)
        self.side = nn.ModuleDict(
            {"caption": nn.Linear(size, 128)} if "caption" in self.encoded else {}
        )
        if self.affect:
            self.encoders["affect"] = layers(
                (sum(lengths[key] for key in self.affect), 32, 16),
                dropout=config.dropout,
                last=True,
            )
            self.side["affect"] = nn.Linear(16, 128)
        self.pairs = tuple(permutations(self.modalities, 2)) if cross else ()
        self.cross = nn.ModuleDict({f"{a}_{b}": layers((size, size, cross)) for a, b in self.pairs})
        joined = len(self.pairs) * cross if self.pairs else len(self.modalities) * size
        joined += (size if "caption" in self.encoded else 0) + (16 if self.affect else 0)
        self.classifier = layers(
            (joined, *config.classifier, classes), dropout=config.classifier_dropout
        )

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
        scaled: dict[str, Any] = {}
        for key in self.keys:
            # Beyond ten spreads lies a constant input that moved, not information.
            z = (
                (batch[key] - getattr(self, f"mean_{key}")) / getattr(self, f"spread_{key}")
            ).clamp(-10, 10)
            scaled[key] = z * batch[f"{key}_present"][:, None]
        encoded = {
            key: self.encoders[key](scaled[key]) * batch[f"{key}_present"][:, None]
            for key in self.encoded
        }
        if self.affect:
            any_present = torch.stack([batch[f"{key}_present"] for key in self.affect]).amax(dim=0)
            encoded["affect"] = self.encoders["affect"](
                torch.cat([scaled[key] for key in self.affect], dim=1)
            )
            encoded["affect"] = encoded["affect"] * any_present[:, None]
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
        if self.pairs:
            joined = [
                self.cross[f"{a}_{b}"](encoded[a]) * batch[f"{a}_present"][:, None]
                for a, b in self.pairs
            ]
        else:
            joined = [encoded[key] for key in self.modalities]
        joined += [encoded[key] for key in ("caption", "affect") if key in encoded]
        return cast(Tensor, self.classifier(torch.cat(joined, dim=1)))

"""Losses of dated visits: their likelihood, summed over what is not known of a site."""

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from butterfly_sdm.errors import DataError
from butterfly_sdm.losses.options import DetectionName


def season_loss(effects: Tensor, evidence: Tensor, nodes: Tensor, tau: Tensor) -> Tensor:
    """
    Return minus the log-likelihood of visits if the effect of a site is normal around a claim.

    Parameters
    ----------
    effects
        (n, species) claimed middle of the effect.
    evidence
        (n, species, nodes) log-likelihood of the visits at each node, up to a constant.
    nodes
        (nodes,) effects.
    tau
        (species,) spread of the effects around the claim.

    Returns
    -------
    Tensor of shape (n, species)
        ``-log sum_q w_q exp(evidence_q)``, w the normal's weights on the nodes, summing to 1.
    """
    scaled = (nodes - effects[..., None]) / tau[:, None]
    weight = torch.log_softmax(-0.5 * scaled**2, dim=-1)  # (n, species, nodes)
    return -torch.logsumexp(weight + evidence, dim=-1)


def occupancy_loss(odds: Tensor, evidence: Tensor, weight: Tensor, seen: Tensor) -> Tensor:
    """
    Return minus the log-likelihood of visits if the species may be absent.

    Parameters
    ----------
    odds
        (n, species) claimed log-odds of presence.
    evidence
        (n, species, nodes) log-likelihood of the visits at each node if present.
    weight
        (species, nodes) log weights of the nodes.
    seen
        (n, species) whether the species was ever seen: then it is present.

    Returns
    -------
    Tensor of shape (n, species)
    """
    here = logsigmoid(odds) + torch.logsumexp(evidence + weight, dim=-1)
    return -torch.where(seen, here, torch.logaddexp(here, logsigmoid(-odds)))


class DetectionLoss(nn.Module):
    """
    The mean loss over sites and species with dated visits.

    Parameters
    ----------
    name
        ``season`` or ``occupancy``.
    nodes
        (nodes,) effects of a site.
    tau
        (species,) spread of the effects.
    mean_visits
        The likelihood grows with the visits; divided by their mean number it has the size of a
        cross-entropy.
    species_weights
        (species,) >= 0; None: all 1.
    """

    nodes: Tensor
    tau: Tensor
    species_weights: Tensor | None

    def __init__(
        self,
        name: DetectionName,
        *,
        nodes: Tensor,
        tau: Tensor,
        mean_visits: float,
        species_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        if species_weights is not None and len(species_weights) != len(tau):
            raise DataError(
                f"Species weights are {len(tau)} numbers of at least 0, one per species; got "
                f"{len(species_weights)}."
            )
        self.name, self.scale = name, max(mean_visits, 1e-6)
        self.register_buffer("nodes", nodes.float())
        self.register_buffer("tau", tau.float())
        self.register_buffer("species_weights", species_weights)

    def elements(
        self, logits: Tensor, detections: Tensor, visits: Tensor, evidence: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """
        Return the loss of each label, and which labels exist: those of sites with visits.

        Raises
        ------
        DataError
            There is no evidence of dated visits.
        """
        if evidence is None:
            raise DataError("This loss needs what dated visits say: fit it to a data set of them.")
        with torch.autocast(logits.device.type, enabled=False):
            logits, evidence = logits.float(), evidence.float()
            known = (visits > 0)[:, None].expand_as(logits)
            if self.name == "season":
                loss = season_loss(logits, evidence, self.nodes, self.tau)
            else:
                weight = torch.log_softmax(-0.5 * (self.nodes / self.tau[:, None]) ** 2, dim=-1)
                loss = occupancy_loss(logits, evidence, weight, detections > 0)
            return torch.where(known, loss / self.scale, 0.0), known

    def forward(
        self,
        logits: Tensor,
        detections: Tensor,
        visits: Tensor,
        evidence: Tensor | None = None,
    ) -> Tensor:
        """Return the weighted mean over all labels that exist; 0 if none does."""
        loss, known = self.elements(logits, detections, visits, evidence)
        weights = known.float()
        if self.species_weights is not None:
            weights = weights * self.species_weights
        return (loss * weights).sum() / weights.sum().clamp(min=1e-12)

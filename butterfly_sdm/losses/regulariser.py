"""
The soft contrastive regulariser as a term of a fit: its forms, whom a site is compared with, and
what a log should say about it.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from butterfly_sdm.losses.contrastive import ContrastiveLoss, SoftRegulariser
from butterfly_sdm.losses.gathering import gather_rows, sum_over_processes, world_size
from butterfly_sdm.losses.options import RegulariserOptions
from butterfly_sdm.losses.pairs import communities, cosine, ranked, soft_targets

COMPARED = 5  # most and least alike references of a site whose cosines are told


class Term(NamedTuple):
    """
    What a regulariser says about one batch.

    Attributes
    ----------
    loss
        To be added to the fit.
    above_collapse
        The loss less its value at an embedding with all sites at one point: below 0 where the
        embedding tells sites apart as the labels do.
    alike, unlike
        Mean cosine of the embeddings of the sites of this process and their five most, or least,
        alike references.
    """

    loss: Tensor
    above_collapse: Tensor
    alike: Tensor
    unlike: Tensor


class Regulariser(nn.Module):
    """
    The term of one fit, with what it knows of the training sites.

    Parameters
    ----------
    options
        Form, similarity, references.
    detections
        (sites, species) of all training sites; a negative number means "unknown".
    visits
        (sites,)
    length
        Of the embeddings it will see, for ``memory``.

    Notes
    -----
    Form ``soft``, with communities a, embeddings z of unit length, similarity S = cos(a, a),
    sharpness h and temperature T::

        target_ij = softmax_j(S_ij / h),  L = mean_i -sum_j target_ij log softmax_j(z_i . z_j / T)

    both over the references j that are not the site itself: those of the batch, or with ``memory``
    the last embeddings of all training sites that were seen before, those of the batch in their
    place. It is :class:`~butterfly_sdm.losses.contrastive.ContrastiveLoss` with
    :func:`~butterfly_sdm.losses.pairs.soft_targets` as pair weights. Form ``published`` is
    :class:`~butterfly_sdm.losses.contrastive.SoftRegulariser`.

    On several devices the batch is what all devices hold together; loss and gradients equal those
    of one device with the joined batch.
    """

    communities: Tensor
    bank: Tensor
    seen: Tensor

    def __init__(
        self, options: RegulariserOptions, detections: Tensor, visits: Tensor, *, length: int
    ) -> None:
        super().__init__()
        self.options = options
        vectors = communities(
            detections, visits, options.similarity, prior_visits=options.prior_visits
        )
        self.register_buffer("communities", vectors, persistent=False)
        sites = len(vectors) if options.memory else 0
        self.register_buffer("bank", torch.zeros(sites, length))
        self.register_buffer("seen", torch.zeros(sites, dtype=torch.bool))
        self.published = SoftRegulariser(
            temperature=options.temperature, nearest=options.nearest, bottom=options.bottom
        )
        self.soft = ContrastiveLoss(
            options.temperature, reduction="weights", without_positives="zero"
        )

    def forward(self, z: Tensor, places: Tensor) -> Term:
        """
        Return the term of a batch.

        Parameters
        ----------
        z
            (n, length) unit embeddings.
        places
            (n,) which training sites they are, counted from 0.
        """
        references, whose, known = self._references(z, places)
        if not len(references):  # no site of the batch has an image
            nothing = z.sum() * 0.0
            return Term(nothing, *[nothing.detach()] * 3)
        similarity = cosine(self.communities[places], self.communities[whose])  # (n, m)
        exclude = (places[:, None] == whose) | ~known  # (n, m)
        if self.options.form == "soft":
            loss, flat = self._soft(z, references, similarity, exclude)
        else:
            loss, flat = self._published(z, places, similarity)
        with torch.no_grad():
            cosines = z.detach().float() @ references.detach().float().T  # (n, m)
            alike, unlike = (
                _mean_of_extremes(cosines, similarity, exclude, largest=end)
                for end in (True, False)
            )
        return Term(loss, loss.detach() - flat, alike, unlike)

    def _references(self, z: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return embeddings (m, length), whose they are (m,) and whether they are known (m,)."""
        everyone, _ = gather_rows(z)
        whose, _ = gather_rows(places)
        if not self.options.memory:
            return everyone, whose, torch.ones_like(whose, dtype=torch.bool)
        bank, seen = self.bank.clone(), self.seen.clone()
        seen[whose] = True
        references = bank.index_put((whose,), everyone.to(bank.dtype))
        if self.training:
            self.bank.copy_(references.detach())
            self.seen.copy_(seen)
        return references, torch.arange(len(bank), device=bank.device), seen

    def _soft(
        self, z: Tensor, references: Tensor, similarity: Tensor, exclude: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the loss and its value where all embeddings are one."""
        targets = soft_targets(similarity, sharpness=self.options.sharpness, exclude=exclude)
        total, count = self.soft.terms(z, targets, references, exclude=exclude)
        compared = (~exclude).sum(dim=1)  # (n,) a site alone in the world adds log 1
        flat = compared.clamp(min=1).log().sum()
        # Averaged over processes, as gradients are, this is the mean over all anchors.
        share = world_size() / sum_over_processes(count).clamp(min=1)
        return total * share, flat * share

    def _published(self, z: Tensor, places: Tensor, similarity: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and its value where all embeddings are one."""
        loss = self.published(z, self.communities[places])
        with torch.no_grad():
            flat = self.published(torch.zeros_like(z), self.communities[places])
        return loss, flat


def _mean_of_extremes(
    cosines: Tensor, similarity: Tensor, exclude: Tensor, *, largest: bool
) -> Tensor:
    """Return the mean cosine of each row's most (or least) similar references; 0 without any."""
    count = min(COMPARED, similarity.shape[1])
    columns = ranked(similarity, count, largest=largest, exclude=exclude)  # (n, count)
    counted = ~exclude.gather(1, columns)
    return (cosines.gather(1, columns) * counted).sum() / counted.sum().clamp(min=1)

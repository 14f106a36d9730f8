"""One contrastive loss for every labelling: pair weights and a denominator make the method."""

from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from butterfly_sdm.errors import DataError
from butterfly_sdm.losses.gathering import gather_rows, sum_over_processes, world_size
from butterfly_sdm.losses.pairs import cosine, ranked, self_pairs

Denominator = Literal["others", "bottom", "negatives"]
Positives = Literal["outside", "inside"]
Reduction = Literal["pairs", "anchors", "weights"]


class ContrastiveLoss(nn.Module):
    """
    Pull the pairs with a weight together and push the denominator away.

    With unit embeddings z, s_ij = z_i . z_j and temperature T::

        positives outside the log:
            l_ij = log sum_{k in D(i,j)} exp(s_ik/T) - s_ij/T ;  L = reduce_ij(W_ij l_ij)
        positives inside the log:
            l_i = log sum_{k in D(i)} exp(s_ik/T) - log sum_j W_ij exp(s_ij/T) ;  L = mean_i l_i

    Parameters
    ----------
    temperature
        T > 0.
    denominator
        ``others``: all references but the anchor itself. ``bottom``: the pair itself and the
        ``bottom`` references least similar by label (pass ``similarity``). ``negatives``: the
        references without a weight; an anchor without any is left out.
    positives
        Outside or inside the logarithm.
    reduction
        Of positives outside the log. ``pairs``: mean over all pairs with a weight. ``anchors``:
        mean over the number of positives of an anchor, then over anchors. ``weights``: sum over an
        anchor divided by the sum of its weights, then over anchors.
    bottom
        How many least similar references stand in the denominator ``bottom``; more than there are
        means all.
    without_positives
        What a batch without a single positive pair means: ``error``, or a loss of ``zero`` (with
        zero gradients) as a regulariser needs on a last batch of one site.

    Notes
    -----
    Computed in float32 also under autocast. Anchors without a positive are left out. On a GPU the
    values of ``weights`` are not checked, since each check would make the device wait.

    References
    ----------
    .. [1] T. L. van der Plas, S. Law, M. J. O. Pocock (2025), Predicting butterfly species presence
           from satellite imagery
       using soft contrastive regularisation. arXiv 2505.09306.
    .. [2] P. Khosla et al. (2020), Supervised contrastive learning. NeurIPS 33.

    Examples
    --------
    >>> z = nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]))
    >>> loss = ContrastiveLoss(temperature=0.5, reduction="anchors")
    >>> weights = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    >>> round(float(loss(z, weights)), 4)
    0.1412
    """

    def __init__(
        self,
        temperature: float,
        *,
        denominator: Denominator = "others",
        positives: Positives = "outside",
        reduction: Reduction = "anchors",
        bottom: int = 32,
        without_positives: Literal["error", "zero"] = "error",
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise DataError(
                f"The temperature must be above 0; it is {temperature}. Usual values lie between "
                "0.05 and 1."
            )
        for name, value, known in (
            ("denominator", denominator, get_args(Denominator)),
            ("positives", positives, get_args(Positives)),
            ("reduction", reduction, get_args(Reduction)),
        ):
            if value not in known:
                raise DataError(f"{name} is one of {', '.join(known)}; {value!r} is none of them.")
        if bottom < 1:
            raise DataError(
                f"The denominator 'bottom' needs at least 1 reference; it has {bottom}."
            )
        if positives == "inside" and denominator == "bottom":
            raise DataError(
                "The denominator 'bottom' belongs to one pair, so the positives stand outside the "
                "log."
            )
        self.temperature, self.denominator, self.positives = temperature, denominator, positives
        self.reduction, self.bottom = reduction, bottom
        self.without_positives = without_positives

    def forward(
        self,
        z: Tensor,
        weights: Tensor,
        references: Tensor | None = None,
        *,
        similarity: Tensor | None = None,
        exclude: Tensor | None = None,
    ) -> Tensor:
        """
        Return the loss of one batch.

        Parameters
        ----------
        z
            (n, d) unit embeddings of the anchors.
        weights
            (n, m) pair weights W >= 0, see :mod:`butterfly_sdm.losses.pairs`.
        references
            (m, d) unit embeddings the anchors are compared with (another modality, a memory, all
            devices). None: the anchors themselves.
        similarity
            (n, m) similarity of labels; the denominator ``bottom`` needs it.
        exclude
            (n, m) pairs that are one and the same sample: neither positive nor in the denominators
            ``others`` and ``negatives``. None: the diagonal if there are no references, else
            nothing.

        Returns
        -------
        Tensor
            A single number.

        Raises
        ------
        DataError
            Shapes do not fit, a weight is negative or not finite, or no pair has a weight.
        """
        total, count = self.terms(z, weights, references, similarity=similarity, exclude=exclude)
        if self.without_positives == "error" and not bool(count > 0):
            raise DataError(
                "No pair of the batch has a weight above 0 (or no anchor has a denominator). Use "
                "larger batches or labels that repeat, or without_positives='zero'."
            )
        return total / count.clamp(min=1)

    def collapsed(self, weights: Tensor) -> Tensor:
        """
        Return what the loss of a batch is when all its embeddings are the same: ln(N - 1) for one
        class against all others. A network that does no better has told nothing apart.

        Parameters
        ----------
        weights
            As in calling the loss without references.

        Examples
        --------
        >>> weights = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
        >>> round(float(ContrastiveLoss(0.1).collapsed(weights).exp()), 4)
        2.0
        """
        return cast(Tensor, self(weights.new_zeros(len(weights), 1), weights))

    def terms(
        self,
        z: Tensor,
        weights: Tensor,
        references: Tensor | None = None,
        *,
        similarity: Tensor | None = None,
        exclude: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """
        Return the sum of the loss and the number of pairs (or anchors) it is the mean of.

        Parts of a batch can so be joined: the loss of the whole is the sum of sums over the sum of
        numbers.

        Parameters
        ----------
        z, weights, references, similarity, exclude
            As in calling the loss: (n, d) embeddings, (n, m) pair weights, (m, d) references or
            None, (n, m) similarity of labels or None, (n, m) pairs that count for nothing or None.
        """
        self._check(z, weights, references, similarity, exclude)
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            others = z if references is None else references.float()
            weights = weights.detach().float()
            if exclude is None:
                nothing = torch.zeros_like(weights, dtype=torch.bool)
                exclude = self_pairs(weights) if references is None else nothing
            weights = weights.masked_fill(exclude, 0.0)
            logits = z @ others.T / self.temperature  # (n, m)
            if self.denominator == "bottom":
                assert similarity is not None
                return self._bottom(logits, weights, similarity)
            left_out = exclude if self.denominator == "others" else exclude | (weights > 0)
            defined = ~left_out.all(dim=1)  # (n,)
            # An empty row would be log 0; its anchor is left out below, so any finite value serves.
            left_out = left_out & defined[:, None]
            log_sum = logits.masked_fill(left_out, -torch.inf).logsumexp(dim=1)  # (n,)
            if self.positives == "inside":
                return self._inside(logits, weights, log_sum, defined)
            return self._reduce((log_sum[:, None] - logits) * weights, weights * defined[:, None])

    def _bottom(self, logits: Tensor, weights: Tensor, similarity: Tensor) -> tuple[Tensor, Tensor]:
        least = ranked(similarity, min(self.bottom, similarity.shape[1]), largest=False)  # (n, K)
        log_sum = logits.gather(1, least).logsumexp(dim=1, keepdim=True)  # (n, 1)
        # log(exp(s_ij) + sum_K) - s_ij
        return self._reduce(nn.functional.softplus(log_sum - logits) * weights, weights)

    def _inside(
        self, logits: Tensor, weights: Tensor, log_sum: Tensor, defined: Tensor
    ) -> tuple[Tensor, Tensor]:
        used = defined & (weights > 0).any(dim=1)  # (n,)
        # Weights of 1 keep unused rows, and their gradients, finite.
        weights = torch.where(used[:, None], weights, 1.0)
        attracted = (logits + weights.log()).logsumexp(dim=1)  # log 0 = -inf leaves a pair out
        return (torch.where(used, log_sum - attracted, 0.0)).sum(), used.sum()

    def _reduce(self, terms: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        positive = weights > 0  # (n, m)
        terms = torch.where(positive, terms, 0.0)
        if self.reduction == "pairs":
            return terms.sum(), positive.sum()
        counted = positive if self.reduction == "anchors" else weights
        per_anchor = counted.sum(dim=1)  # (n,)
        used = positive.any(dim=1)
        return (terms.sum(dim=1) / torch.where(used, per_anchor, 1)).sum(), used.sum()

    def _check(
        self,
        z: Tensor,
        weights: Tensor,
        references: Tensor | None,
        similarity: Tensor | None,
        exclude: Tensor | None,
    ) -> None:
        others = z if references is None else references
        if z.ndim != 2 or others.ndim != 2 or others.shape[1] != z.shape[1]:
            other = "" if references is None else f" and {tuple(references.shape)}"
            raise DataError(
                "Embeddings need shape (samples, length), the same length on both sides; got "
                f"{tuple(z.shape)}{other}."
            )
        shape = (len(z), len(others))
        for name, value in (("weights", weights), ("similarity", similarity), ("exclude", exclude)):
            if value is not None and tuple(value.shape) != shape:
                raise DataError(
                    f"The {name} have shape {tuple(value.shape)}; these embeddings need {shape}."
                )
        if self.denominator == "bottom" and similarity is None:
            raise DataError(
                "The denominator 'bottom' ranks references by label: pass similarity, such as "
                "pairs.cosine(rates)."
            )
        on_cpu = weights.device.type == "cpu"
        if on_cpu and not bool((torch.isfinite(weights) & (weights >= 0)).all()):
            raise DataError(
                f"Pair weights are finite and at least 0; the least is {float(weights.min())}."
            )


class SoftRegulariser(nn.Module):
    """
    Pull sites with similar communities together: the soft contrastive term of van der Plas et al.
    (2025) [1]_.

    Pair weights are the squared cosine similarity of the rate vectors of the ``nearest`` sites of
    the batch; the denominator is the pair itself and the ``bottom`` sites whose rates are least
    similar; mean over pairs with a weight.

    Parameters
    ----------
    temperature, nearest, bottom
        T, k and K; the published values are 0.5, 5 and 32 of a batch of 64.

    Notes
    -----
    On several devices the batch is what all devices hold together: embeddings are gathered with
    their gradients, and loss and gradients equal those of one device with the joined batch.

    References
    ----------
    .. [1] van der Plas, Law & Pocock (2025). arXiv 2505.09306.
    """

    def __init__(self, *, temperature: float = 0.5, nearest: int = 5, bottom: int = 32) -> None:
        super().__init__()
        if nearest < 1:
            raise DataError(f"The regulariser needs at least 1 nearest site; nearest is {nearest}.")
        self.nearest = nearest
        self.loss = ContrastiveLoss(
            temperature,
            denominator="bottom",
            reduction="pairs",
            bottom=bottom,
            without_positives="zero",
        )

    def forward(self, z: Tensor, rates: Tensor) -> Tensor:
        """
        Return the loss of unit embeddings (n, d) of sites with rates (n, species).

        A batch in which no site resembles another (a batch of one, say) has loss 0.
        """
        everyone, start = gather_rows(z)
        labels, _ = gather_rows(rates)
        similarity = cosine(rates, labels)  # (n, all)
        own = start + torch.arange(len(z), device=z.device)  # (n,) column of the site itself
        others = similarity.scatter(1, own[:, None], -torch.inf)
        near = ranked(others, min(self.nearest, others.shape[1]), largest=True)  # (n, k)
        # (n, K)
        far = ranked(similarity, min(self.loss.bottom, similarity.shape[1]), largest=False)
        weights = similarity.gather(1, near).clamp(min=0) ** 2 * (near != own[:, None])
        total, count = self._picked(z, everyone, near, far, weights)
        # Averaged over processes, as gradients are, this is the sum over all pairs by their number.
        return total * world_size() / sum_over_processes(count).clamp(min=1)

    def _picked(
        self, z: Tensor, everyone: Tensor, near: Tensor, far: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """
        Do what :meth:`ContrastiveLoss.terms` does, on the few pairs with a weight instead of on
        all.
        """
        with torch.autocast(z.device.type, enabled=False):
            logits = z.float() @ everyone.float().T / self.loss.temperature  # (n, all)
            # One gather: its gradient is a matrix of all pairs.
            picked = logits.gather(1, torch.cat([near, far], dim=1))  # (n, k + K)
            attracted, below = torch.split_with_sizes(picked, [near.shape[1], far.shape[1]], dim=1)
            log_sum = below.logsumexp(dim=1, keepdim=True)  # (n, 1)
            terms = nn.functional.softplus(log_sum - attracted) * weights  # (n, k)
            return terms.sum(), (weights > 0).sum()

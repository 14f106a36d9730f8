"""
Pair weights: which pairs of a batch attract, and how much.

A pair weight is a plain function of labels. All return a float matrix of shape (anchors,
references) with entries >= 0, where 0 means "no positive pair". With one argument the references
are the anchors themselves; the diagonal then says how similar a sample is to itself and
:class:`~butterfly_sdm.losses.contrastive.ContrastiveLoss` leaves it out.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from butterfly_sdm.errors import DataError
from butterfly_sdm.losses.options import SimilarityName


def same_class(labels: Tensor, references: Tensor | None = None) -> Tensor:
    """
    Weigh 1 for samples of the same class [1]_, or for views of one image if the label is the image
    [2]_.

    Parameters
    ----------
    labels, references
        (n,) and (m,) class numbers; a negative number means "unknown" and attracts nothing.

    Returns
    -------
    Tensor of shape (n, m)

    Raises
    ------
    DataError
        The labels are not one number per sample.

    References
    ----------
    .. [1] Khosla et al. (2020). Supervised contrastive learning. NeurIPS 33.
    .. [2] Chen et al. (2020). A simple framework for contrastive learning of visual
           representations. ICML.

    Examples
    --------
    >>> same_class(torch.tensor([0, 1, 0])).tolist()
    [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]
    """
    references = labels if references is None else references
    if labels.ndim != 1 or references.ndim != 1:
        raise DataError(
            f"Class labels have one number per sample; these have shape {_shape(labels)} and "
            f"{_shape(references)}."
        )
    return ((labels[:, None] == references) & (labels[:, None] >= 0)).float()  # (n, m)


def jaccard(labels: Tensor, references: Tensor | None = None, *, threshold: float = 0.0) -> Tensor:
    """
    Weigh by intersection over union of label sets [1]_, 0 below ``threshold``.

    Parameters
    ----------
    labels, references
        (n, labels) and (m, labels) multi-hot rows. Two empty sets have weight 0.
    threshold
        Pairs below it are no positives, in [0, 1].

    Raises
    ------
    DataError
        The threshold does not lie in [0, 1].

    References
    ----------
    .. [1] Takaya & Inamori (2025). ModAn-MulSupCon: modality- and anatomy-aware multi-label
           supervised
       contrastive pretraining for medical images. arXiv 2508.18613.
    """
    _same_columns(labels, references)
    if not 0 <= threshold <= 1:
        raise DataError(f"The threshold of the Jaccard weight lies in [0, 1]; it is {threshold}.")
    anchors = (labels > 0).float()
    others = anchors if references is None else (references > 0).float()
    with torch.autocast(labels.device.type, enabled=False):
        shared = anchors @ others.T  # (n, m)
    union = anchors.sum(1, keepdim=True) + others.sum(1) - shared
    weight = shared / union.clamp(min=1)
    # A third of three stored as float32 must reach a threshold of 1/3 written in double.
    return weight * (weight >= threshold - 1e-6)


def cosine(rates: Tensor, references: Tensor | None = None) -> Tensor:
    """
    Return the cosine similarity of rate vectors; a row without any detection is similar to none
    (0).

    Parameters
    ----------
    rates, references
        (n, species) and (m, species).

    Returns
    -------
    Tensor of shape (n, m), float32
        For rates >= 0 in [0, 1].
    """
    _same_columns(rates, references)
    anchors = normalize(rates.float(), dim=1)
    others = anchors if references is None else normalize(references.float(), dim=1)
    with torch.autocast(rates.device.type, enabled=False):  # 8 bits would reorder neighbours
        return anchors @ others.T


def nearest(
    similarity: Tensor, count: int, *, exclude: Tensor | None = None, power: float = 2.0
) -> Tensor:
    """
    Keep ``similarity ** power`` of the ``count`` most similar references per row, else 0 [1]_.

    Parameters
    ----------
    similarity
        (n, m) similarity of labels, such as :func:`cosine`.
    count
        Neighbours per row; more than there are means all.
    exclude
        (n, m) pairs that are one and the same sample. None: the diagonal of a square matrix,
        nothing of another one.
    power
        2 is the published rule.

    Notes
    -----
    Among equally similar references those that ``torch.topk`` returns are kept, as in the published
    code: the same on every run on one device, yet an arbitrary choice, since the published rule
    defines none.

    Raises
    ------
    DataError
        Fewer than one is to be kept.

    References
    ----------
    .. [1] van der Plas, Law & Pocock (2025). Predicting butterfly species presence from satellite
           imagery using soft
       contrastive regularisation. CVPR FGVC workshop, arXiv 2505.09306.
    """
    if count < 1:
        raise DataError(f"At least 1 nearest row is needed; {count} was asked for.")
    exclude = self_pairs(similarity) if exclude is None else exclude
    # (n, count)
    places = ranked(similarity, min(count, similarity.shape[1]), largest=True, exclude=exclude)
    values = similarity.gather(1, places).clamp(min=0) ** power
    weights = torch.zeros_like(similarity).scatter_(1, places, values)
    return weights.masked_fill(exclude, 0.0)


def soft_targets(
    similarity: Tensor, *, sharpness: float = 0.1, exclude: Tensor | None = None
) -> Tensor:
    """
    Share a weight of 1 per row among all references, by a softmax of their similarity.

    With these weights :class:`~butterfly_sdm.losses.contrastive.ContrastiveLoss` over all others
    is the cross-entropy between what labels and what embeddings say of whom a sample resembles.

    Parameters
    ----------
    similarity
        (n, m) similarity of labels, such as :func:`cosine` of :func:`communities`.
    sharpness
        Temperature of the softmax, above 0: the smaller, the fewer references share a row.
    exclude
        (n, m) pairs that are one and the same sample, or references not known yet: weight 0. None:
        the diagonal of a square matrix, nothing of another one.

    Returns
    -------
    Tensor of shape (n, m), float32
        Rows sum to 1; a row whose references are all excluded is 0.

    Raises
    ------
    DataError
        The sharpness is not above 0.
    """
    if not sharpness > 0:
        raise DataError(f"The sharpness of soft targets must be above 0; it is {sharpness}.")
    exclude = self_pairs(similarity) if exclude is None else exclude
    alone = exclude.all(dim=1, keepdim=True)  # (n, 1)
    # A row without references would be 0 / 0; any finite numbers serve, it becomes 0 below.
    logits = (similarity.detach().float() / sharpness).masked_fill(exclude & ~alone, -torch.inf)
    return logits.softmax(dim=1).masked_fill(exclude, 0.0)


def communities(
    detections: Tensor, visits: Tensor, rule: SimilarityName = "logit", *, prior_visits: float = 2.0
) -> Tensor:
    """
    Return a vector of species per site whose cosine says how alike two communities are.

    Parameters
    ----------
    detections
        (n, species) visits with the species; a negative number means "unknown".
    visits
        (n,) visits.
    rule
        ``rates``: k / n, all of one sign, so that any two sites with common species are alike
        [1]_. ``logit``: logits of (k + m p) / (n + m) less their mean over the sites, where p is
        the rate of the species over all visits, within 0.001 and 0.999, and m ``prior_visits``: a
        rate counts by its visits, and what all sites share makes none of them alike.
    prior_visits
        m > 0.

    References
    ----------
    .. [1] van der Plas, Law & Pocock (2025). arXiv 2505.09306.

    Examples
    --------
    >>> communities(torch.tensor([[4.0], [1.0]]), torch.tensor([4.0, 4.0]), "rates").tolist()
    [[1.0], [0.25]]
    >>> vectors = communities(torch.tensor([[4.0], [0.0]]), torch.tensor([4.0, 4.0]))
    >>> [round(value, 4) for value in vectors.flatten().tolist()]
    [1.6094, -1.6094]
    """
    if rule == "rates":
        return detections.clamp(min=0).float() / visits.float().clamp(min=1)[:, None]
    logits = smoothed_rates(detections, visits, prior_visits=prior_visits).logit()
    return logits - logits.mean(dim=0)


def smoothed_rates(detections: Tensor, visits: Tensor, *, prior_visits: float = 2.0) -> Tensor:
    """
    Return (k + m p) / (n + m): the rates (n, species) as if every site had had m more visits with
    the rate p of the species over all visits, within 0.001 and 0.999.

    Parameters
    ----------
    detections
        (n, species) visits with the species; a negative number means "unknown", which gives p.
    visits
        (n,) visits.
    prior_visits
        m > 0.
    """
    k = detections.clamp(min=0).float()
    n = visits.float()[:, None] * (detections >= 0)  # (n, species)
    mean = (k.sum(dim=0) / n.sum(dim=0).clamp(min=1)).clamp(1e-3, 1 - 1e-3)  # (species,)
    return (k + prior_visits * mean) / (n + prior_visits)


def ranked(
    similarity: Tensor, count: int, *, largest: bool, exclude: Tensor | None = None
) -> Tensor:
    """
    Return the columns of the ``count`` most (or least) similar references per row, in no particular
    order.

    Parameters
    ----------
    similarity
        (n, m) similarity of labels.
    exclude
        (n, m) pairs that come last, whatever their similarity.

    Returns
    -------
    Tensor of shape (n, count), int64
        Which of several equally similar columns are among them is the choice of ``torch.topk``.
    """
    if exclude is not None:
        similarity = similarity.masked_fill(exclude, -torch.inf if largest else torch.inf)
    return similarity.detach().topk(count, dim=1, largest=largest, sorted=False).indices


def self_pairs(matrix: Tensor) -> Tensor:
    """
    Return the diagonal of a square matrix, and nothing of another one, as a mask of its shape.
    """
    mask = torch.zeros(matrix.shape, dtype=torch.bool, device=matrix.device)
    if matrix.shape[0] == matrix.shape[1]:
        mask.fill_diagonal_(True)
    return mask


def _same_columns(labels: Tensor, references: Tensor | None) -> None:
    others = labels if references is None else references
    if labels.ndim != 2 or others.ndim != 2 or others.shape[1] != labels.shape[1]:
        other = "" if references is None else f" and {_shape(references)}"
        raise DataError(
            "Labels need shape (samples, labels), the same labels on both sides; these have "
            f"{_shape(labels)}{other}."
        )


def _shape(value: Tensor) -> str:
    return "x".join(map(str, value.shape)) or "a single number"

"""What can be said about a loss, and about the term on embeddings beside it."""

from typing import Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from butterfly_sdm.core.settings import Section

PresenceName = Literal["binomial", "beta_binomial", "bce", "mse", "mae", "focal", "asymmetric"]
DetectionName = Literal["season", "occupancy"]  # of dated visits
SimilarityName = Literal["rates", "logit"]

# What is not given is as the form was published, or as it was found to serve best.
_OF_FORM: dict[str, dict[str, Any]] = {
    "published": {"layer": "embedding", "similarity": "rates", "temperature": 0.5, "weight": 0.0},
    "soft": {"layer": "projection", "similarity": "logit", "temperature": 0.2, "weight": 0.3},
}


class RegulariserOptions(Section):
    """The soft supervised contrastive term, as published (van der Plas et al. 2025) or softer."""

    form: Literal["published", "soft"] = Field(
        "published",
        description="published: the nearest sites attract, the least alike are pushed away; soft: "
        "every site attracts by its share in a softmax of likeness",
    )
    weight: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="0 switches it off; with form: soft 0.3"
    )
    layer: Literal["embedding", "projection"] = Field(
        "embedding",
        description="what it acts on: the embedding that the head reads, or a projection of its "
        "own that is dropped after the fit; with form: soft projection",
    )
    similarity: SimilarityName = Field(
        "rates",
        description="likeness of sites: cosine of their rates, or of the logits of smoothed rates "
        "with the mean community taken out; with form: soft logit",
    )
    prior_visits: float = Field(
        2.0,
        gt=0,
        allow_inf_nan=False,
        description="visits that the mean rate counts as in smoothed rates (logit)",
    )
    temperature: float = Field(
        0.5,
        gt=0,
        allow_inf_nan=False,
        description="of the similarities of embeddings; with form: soft 0.2",
    )
    sharpness: float = Field(
        0.1, gt=0, allow_inf_nan=False, description="temperature of the softmax of likeness (soft)"
    )
    memory: bool = Field(
        False,
        description="compare with the last embeddings of all training sites, not with the batch "
        "alone (soft)",
    )
    nearest: int = Field(
        5,
        ge=1,
        description="sites of a batch, most alike by species, that attract each one (published)",
    )
    bottom: int = Field(
        32, ge=1, description="sites of a batch, least alike, that are pushed away (published)"
    )

    @model_validator(mode="after")
    def _as_the_form_has_it(self) -> Self:
        if self.form == "published" and self.memory:
            raise ValueError("memory needs form: soft; the published form compares within a batch")
        given = self.model_fields_set
        self.__dict__.update(
            {name: value for name, value in _OF_FORM[self.form].items() if name not in given}
        )
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_newer(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave the settings of later releases out where they change nothing: keys stay."""
        kept: dict[str, Any] = handler(self)
        if self.form == "published":
            plain = type(self)()
            for name in ("form", "layer", "similarity", "prior_visits", "sharpness", "memory"):
                if getattr(self, name) == getattr(plain, name):
                    kept.pop(name, None)
        return kept

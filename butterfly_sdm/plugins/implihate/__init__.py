"""Hateful video recognised from image, text and audio together."""

from butterfly_sdm.plugins.contract import PluginCard

card = PluginCard(
    name="implihate",
    summary="Hateful video from image, text and audio in two contrastive stages, ImpliHateVid (ACL "
    "2025)",
    implementation="butterfly_sdm.plugins.implihate.method:Implihate",
)

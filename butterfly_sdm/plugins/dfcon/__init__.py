"""Faces told real or fake by an ensemble of contrastively trained networks."""

from butterfly_sdm.plugins.contract import PluginCard

card = PluginCard(
    name="dfcon",
    summary="Deepfake detection by a supervised contrastive ensemble, DFCon (arXiv 2501.16704)",
    implementation="butterfly_sdm.plugins.dfcon.method:Dfcon",
)

"""Pretraining for medical images by shared modality and anatomy."""

from butterfly_sdm.plugins.contract import PluginCard

card = PluginCard(
    name="modan",
    summary="Pretraining by shared modality and anatomy, ModAn-MulSupCon (arXiv 2508.18613)",
    implementation="butterfly_sdm.plugins.modan.method:Modan",
)

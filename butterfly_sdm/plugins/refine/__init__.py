"""A backdoored classifier made safe by rewriting its input and permuting its output."""

from butterfly_sdm.plugins.contract import PluginCard

card = PluginCard(
    name="refine",
    summary="Defence of a classifier against backdoors by reprogramming, REFINE (ICLR 2025)",
    implementation="butterfly_sdm.plugins.refine.method:Refine",
)

"""
Contrastive learning as domain adaptation: images of two scanners, classes brought together across
them.
"""

from butterfly_sdm.plugins.contract import PluginCard

card = PluginCard(
    name="cmmd",
    summary="Domain adaptation of medical images by supervised contrastive learning (arXiv "
    "2502.00052)",
    implementation="butterfly_sdm.plugins.cmmd.method:Cmmd",
)

"""
Networks: stem, backbone, heads, training and ensembles.

``MODELS`` names the class of each kind as ``"module:Class"``; nothing is imported until someone
asks for it.
"""

MODELS: dict[str, str] = {
    "network": "butterfly_sdm.models.network_predictor:NetworkPredictor",
    "ensemble": "butterfly_sdm.models.ensemble:Ensemble",
}

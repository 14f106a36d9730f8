"""
Import what the verbs import, most of it only when it is used, so that a forked process starts with
all of it.

Importing alone: a process that has computed (polars, OpenMP) may not be forked safely.
"""

from importlib import import_module

for _module in (
    "lightning.pytorch",
    "matplotlib.figure",
    "polars",
    "pystac",
    "rio_cogeo.cogeo",
    "scipy.interpolate",
    "scipy.optimize",
    "scipy.signal",
    "scipy.stats",
    "sklearn.linear_model",
    "timm",
    "torch._dynamo",
    "torchmetrics",
    "torchvision.models",
    "butterfly_sdm.baselines.mean_rate",
    "butterfly_sdm.figures.score_pictures",
    "butterfly_sdm.mapping.sidecars",
    "butterfly_sdm.mapping.surfaces.dense",
    "butterfly_sdm.mapping.surfaces.engine",
    "butterfly_sdm.mapping.map",
    "butterfly_sdm.models.network_predictor",
    "butterfly_sdm.pipeline",
    "butterfly_sdm.plugins.dfcon.method",
    "butterfly_sdm.plugins.runner",
    "data_prep.build",
    "data_prep.records.readers.archive",
    "data_prep.records.count",
):
    import_module(_module)

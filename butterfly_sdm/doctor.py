"""Say what this machine has that the package can use."""

import os
import platform
import shutil
import warnings
from importlib.util import find_spec

from butterfly_sdm.core.cards import software_versions
from butterfly_sdm.errors import how_to_install

EXTRAS = {
    "torchgeo": "torchgeo",
    "sources": "pystac_client",
    "fast": "isal",
    "distributed": "distributed",
    "search": "optuna",
    "sdm": "elapid",
    "xarray": "xarray",
    "zarr": "zarr",
    "terratorch": "terratorch",
    "galileo": "rslearn",
    "notebooks": "jupyterlab",
    "medical": "pydicom",
    "video": "av",
    "encoders": "transformers",
}


def examine() -> dict[str, object]:
    """
    Return what was found, one entry per thing: versions, cores, memory, disk, GPU, PROJ grids,
    extras.

    Returns
    -------
    dict
        Memory and disk in GiB as text; an extra is "installed" or the command that installs it.
    """
    found: dict[str, object] = {
        **software_versions(["butterfly-sdm"]),
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "cores": os.cpu_count() or 1,
        "memory": _memory(),
        "free disk here": f"{shutil.disk_usage('.').free / 2**30:.0f} GiB",
        "gpu": _gpu(),
        "British grid (OSTN15)": _ostn15(),
    }
    needed = ("torch", "rasterio", "geopandas", "lightning")
    found |= software_versions(needed, absent="missing: install the package again")
    for extra, module in EXTRAS.items():
        present = find_spec(module) is not None
        found[f"extra [{extra}]"] = "installed" if present else how_to_install(extra)
    return found


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    except (ValueError, OSError, AttributeError):  # not a POSIX system
        return "unknown"


def _gpu() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}"
    if torch.backends.mps.is_available():
        return "Apple GPU (mps)"
    return "none: everything runs on the CPU"


def _ostn15() -> str:
    from pyproj.transformer import TransformerGroup

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the grid is missing is what we say below
        group = TransformerGroup("EPSG:4326", "EPSG:27700", always_xy=True)
    if group.best_available:
        return "present: positions right to centimetres"
    return (
        "absent: positions right to about 2 m, fine for 10 m pixels; install PROJ's "
        "uk_os_OSTN15_NTv2_OSGBtoETRS.tif for more"
    )

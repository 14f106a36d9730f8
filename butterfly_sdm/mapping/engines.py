"""Engines that run the trunk of a network over a block: PyTorch on CPU or GPU, or ONNX Runtime on CPU."""

from __future__ import annotations

import copy
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from butterfly_sdm.data.artefact import atomic_path, read_json, write_json
from butterfly_sdm.errors import MissingPackageError, ModelError, how_to_install

log = logging.getLogger("butterfly_sdm.mapping.engines")

EngineName = Literal["auto", "torch", "torch-fp16", "onnx", "onnx-int8"]
ENGINES = ("auto", "torch", "torch-fp16", "onnx", "onnx-int8")
PROBE_S = 2.0
PROBE_PX = 512
CALIBRATION_PX = 512

Run = Callable[[Tensor], np.ndarray]


class Cells(nn.Module):
    """Trunk and projection: image (1, bands, h, w) to cells (h / stride, w / stride, length), before the mean over a window."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.trunk = network.trunk
        self.projection = network.projection

    def forward(self, image: Tensor) -> Tensor:
        """Return the cells; the projection is linear, so it may go before the mean."""
        return self.projection(self.trunk(image)[0].permute(1, 2, 0))


@dataclass(frozen=True)
class Engine:
    """
    Which engine runs the trunk, in a form that travels to workers.

    Attributes
    ----------
    name
        torch, torch-fp16, onnx or onnx-int8.
    file
        The exported trunk; None for torch.
    device
        Where the image is wanted: cpu, or cuda for the current GPU of the process.
    """

    name: str
    file: Path | None = None
    device: str = "cpu"

    @property
    def memory_format(self) -> torch.memory_format:
        """How the numbers of an image lie in memory where they are not copied once more."""
        return torch.channels_last if self.file is None else torch.contiguous_format

    @property
    def rounds(self) -> bool:
        """Whether it computes with fewer digits than float32."""
        return self.name in ("torch-fp16", "onnx-int8")

    def run(self, network: Any, image: Tensor) -> np.ndarray:
        """Return the cells (rows, cols, length) of a standardised image (1, bands, h, w), both float32."""
        if self.file is None:
            return _torch_run(network, self)(image)
        return _onnx_run(self.file, torch.get_num_threads())(image)


_ready: WeakKeyDictionary[Any, dict[Engine, Run]] = WeakKeyDictionary()


def _torch_run(network: Any, engine: Engine) -> Run:
    """Return a function that runs ``network`` with batch normalisation folded into the convolutions."""
    made = _ready.setdefault(network, {})
    if engine not in made:
        dtype = torch.float16 if engine.rounds else torch.float32
        cells = _fused(Cells(network).eval()).to(engine.device, dtype).to(memory_format=torch.channels_last)

        def run(image: Tensor) -> np.ndarray:
            with torch.inference_mode():
                given = image.to(engine.device, dtype, memory_format=torch.channels_last)
                return cells(given).float().cpu().numpy()

        made[engine] = run
    return made[engine]


def _fused(cells: Cells) -> nn.Module:
    """
    Fold each batch normalisation into the convolution before it, where the result is the same.

    The pairs are found by the order in which a module lists its parts: torch.fx finds them by tracing, but while it traces it
    changes nn.Module for all threads of the process.
    """
    plain, folded = copy.deepcopy(cells), copy.deepcopy(cells)
    for parent in list(folded.modules()):
        for (first, convolution), (second, norm) in pairwise(list(parent.named_children())):
            # exactly these: what is derived from them may do more
            if (
                type(convolution) is nn.Conv2d
                and type(norm) is nn.BatchNorm2d
                and convolution.out_channels == norm.num_features
            ):
                setattr(parent, first, fuse_conv_bn_eval(convolution, norm))
                setattr(parent, second, nn.Identity())
    side = 4 * plain.trunk.stride
    image = torch.randn(1, len(plain.trunk.bands), side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        image = image.to(next(plain.parameters()).device)
        before, after = plain(image), folded(image)
    if not torch.allclose(before, after, rtol=1e-3, atol=1e-3 * float(before.abs().max())):
        log.info("Batch normalisation was not folded: this trunk uses its parts in another order than it lists them.")
        folded = plain
    return _quick_edges(folded)


def _quick_edges(cells: nn.Module) -> nn.Module:
    """Let convolutions see zeros beyond the edge: what they do fastest, and no cell that counts sees the edge of a block."""
    for module in cells.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "zeros"
    return cells


@lru_cache(maxsize=2)
def _onnx_run(file: Path, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_cpu_mem_arena = False  # blocks differ in size: an arena keeps the largest of each
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"image": image.numpy()})[0]


def choose_engine(network: Any, name: str, folder: Path, samples: Callable[[], Sequence[np.ndarray]]) -> Engine:
    """
    Return the engine to use, exported to ``folder`` if need be; asked again for the same folder, the same engine.

    Parameters
    ----------
    name
        auto: the faster of torch and onnx in a trial of two seconds. What computes with fewer digits runs only if named: int8
        on a CPU, fp16 on a GPU.
    samples
        Returns a few standardised images (1, bands, h, w) to calibrate int8 with.

    Raises
    ------
    ModelError
        The name is unknown, or the engine does not run where the network is.
    MissingPackageError
        An engine was named that is not installed.
    """
    if name not in ENGINES:
        raise ModelError(f"There is no engine {name!r}. Use {', '.join(ENGINES)}.")
    device = next(network.parameters()).device.type
    if name == "torch-fp16" and device == "cpu":
        raise ModelError("Numbers of 16 bits are slower on a CPU. Use torch-fp16 on a GPU, or engine auto.")
    mark = folder / "engine.json"
    if mark.is_file():
        found = read_json(mark)["name"]
        if found.startswith("torch"):
            return Engine(found, device=device)
        return Engine(found, folder / f"{found}.onnx")
    folder.mkdir(parents=True, exist_ok=True)
    if name == "auto":
        engine = _fastest(network, folder)
    elif name.startswith("torch"):
        engine = Engine(name, device=device)
    else:
        _need_onnx()
        engine = _export(network, folder)
        if name == "onnx-int8":
            engine = _quantise(engine, folder, samples())
    write_json(mark, {"name": engine.name})
    return engine


def _need_onnx() -> None:
    for package in ("onnx", "onnxruntime"):
        if find_spec(package) is None:
            raise MissingPackageError(f"This engine needs {package}: {how_to_install('export')}. Or use engine torch.")


def _fastest(network: Any, folder: Path) -> Engine:
    device = next(network.parameters()).device.type
    if device != "cpu" or find_spec("onnx") is None or find_spec("onnxruntime") is None:
        return Engine("torch", device=device)
    try:
        exported = _export(network, folder)
    except ModelError as error:
        log.info("%s", error)
        return Engine("torch")
    image = torch.randn(1, len(network.bands), PROBE_PX, PROBE_PX, generator=torch.Generator().manual_seed(0))
    candidates = [Engine("torch"), exported]
    reference = candidates[0].run(network, image)
    apart = float(np.abs(exported.run(network, image) - reference).max())
    if apart > 1e-3 * max(1.0, float(np.abs(reference).max())):
        log.warning("ONNX Runtime differs from PyTorch by %g and is not used.", apart)
        return candidates[0]
    best = {engine: float("inf") for engine in candidates}
    end = time.perf_counter() + PROBE_S
    while True:  # in turn, so that other load on the machine hits both alike
        for engine in candidates:
            start = time.perf_counter()
            engine.run(network, image)
            best[engine] = min(best[engine], time.perf_counter() - start)
        if time.perf_counter() > end:
            break
    chosen = min(candidates, key=best.__getitem__)
    log.info("Engine %s: %s.", chosen.name, ", ".join(f"{e.name} {s * 1000:.0f} ms" for e, s in best.items()))
    return chosen


def _export(network: Any, folder: Path) -> Engine:
    file = folder / "onnx.onnx"
    if file.is_file():
        return Engine("onnx", file)
    side = 8 * network.stride
    # the export marks the modules it traces; a copy keeps the network as it is
    cells = _quick_edges(copy.deepcopy(Cells(network)).cpu().eval())
    image = torch.zeros(1, len(network.bands), side, side)
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["cells"]}
    with atomic_path(file) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = {"image": {2: "height", 3: "width"}, "cells": {0: "rows", 1: "cols"}}
        try:  # this exporter takes a second, its successor ten
            torch.onnx.export(cells, (image,), str(temporary), dynamo=False, dynamic_axes=axes, **names)
        except Exception as first:
            rows, cols = (torch.export.Dim(axis, min=2, max=4096) for axis in ("rows", "cols"))
            shapes = {"image": {2: network.stride * rows, 3: network.stride * cols}}
            try:
                torch.onnx.export(
                    cells, (image,), str(temporary), dynamo=True, external_data=False, dynamic_shapes=shapes, **names
                )
            except Exception as second:  # exporters raise what they like
                raise ModelError(f"The trunk cannot be exported to ONNX: {first}; {second}. Use engine torch.") from second
    return Engine("onnx", file)


def _quantise(engine: Engine, folder: Path, samples: Sequence[np.ndarray]) -> Engine:
    """Return the same trunk in whole numbers of 8 bits, ranges taken from ``samples``."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._rest: Iterator[np.ndarray] = iter(samples)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self._rest, None)
            return None if image is None else {"image": image}

    assert engine.file is not None
    file = folder / "onnx-int8.onnx"
    with atomic_path(file) as temporary, atomic_path(folder / "prepared.onnx") as prepared:
        # its notes on how to do better go to the root logger
        quiet = logging.getLogger().level
        logging.getLogger().setLevel(logging.ERROR)
        try:
            quant_pre_process(str(engine.file), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(temporary),
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        finally:
            logging.getLogger().setLevel(quiet)
    return Engine("onnx-int8", file)

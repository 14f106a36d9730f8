"""
Engines that run the trunk of a network over a block: PyTorch on CPU or GPU, or ONNX Runtime on CPU.
"""

from __future__ import annotations

import copy
import logging
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from butterfly_sdm.core.files import atomic_path, read_json, write_json
from butterfly_sdm.errors import MissingPackageError, ModelError, how_to_install
from butterfly_sdm.mapping.surfaces.reach import cell_reach_px

log = logging.getLogger("butterfly_sdm.mapping.surfaces.engines")

EngineName = Literal["auto", "torch", "torch-fp16", "onnx", "onnx-int8"]
ENGINES = ("auto", "torch", "torch-fp16", "onnx", "onnx-int8")
PROBE_S = 2.0
PROBE_PX = 512
CALIBRATION_PX = 512

RIM_CELLS = 4  # of a sample, which see its edge
ROUNDED = [
    "Conv",
    "Add",
    "MaxPool",
    "Relu",
]  # in 8 bits; all else, such as the projection, keeps float32
STRIP_PX = (
    256  # rows of an image that the early layers see at once: their maps are the largest of all
)
# ONNX Runtime converts layouts at every call: on strips half as high int8 takes a third more time
ONNX_STRIP_PX = 512

Rows = Callable[[slice], Tensor]
Run = Callable[[Rows, int], np.ndarray]


class Cells(nn.Module):
    """
    Trunk and projection: image (1, bands, h, w) to cells (h / stride, w / stride, length), before
    the mean over a window.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.stride, self.bands = int(network.trunk.stride), tuple(network.trunk.bands)
        early, late = network.trunk.stages()
        self.early, self.late = nn.ModuleList(early), Late(late, network.projection)

    def forward(self, image: Tensor) -> Tensor:
        """Return the cells."""
        for stage in self.early:
            image = stage(image)
        return self.late(image)


class Late(nn.Module):
    """
    The later layers of a trunk, and the projection, which is linear and so may go before the mean
    over a window.
    """

    def __init__(self, layers: nn.Module, projection: nn.Module) -> None:
        super().__init__()
        self.layers, self.projection = layers, projection

    def forward(self, features: Tensor) -> Tensor:
        """Return the cells (rows, cols, length)."""
        return self.projection(self.layers(features)[0].permute(1, 2, 0))


@dataclass(frozen=True)
class Engine:
    """
    Which engine runs the trunk, in a form that travels to workers.

    Attributes
    ----------
    name
        torch, torch-fp16, onnx or onnx-int8.
    file
        The exported trunk, or its later layers; None for torch.
    early
        Its early stages, where they are apart.
    device
        Where the image is wanted: cpu, or cuda for the current GPU of the process.
    """

    name: str
    file: Path | None = None
    early: tuple[Path, ...] = ()
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
        """
        Return the cells (rows, cols, length) of a standardised image (1, bands, h, w), both
        float32.
        """
        return self.run_rows(network, lambda rows: image[:, :, rows], image.shape[2])

    def run_rows(self, network: Any, rows: Rows, height: int) -> np.ndarray:
        """
        Return the same of an image of ``height`` rows that is made some rows at a time:
        ``rows(slice)`` gives them.
        """
        made = _ready.setdefault(network, {})
        key = self, torch.get_num_threads()
        if key not in made:
            made[key] = _torch_run(network, self) if self.file is None else _onnx_run(network, self)
        return made[key](rows, height)


_ready: WeakKeyDictionary[Any, dict[tuple[Engine, int], Run]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Stage:
    """
    Layers that are run some rows at a time: a cell takes ``step`` rows of input and sees ``reach``
    more to each side.
    """

    run: Callable[[Tensor], Tensor]
    step: int
    reach: int

    def stream(self, parts: Iterable[Tensor], height: int) -> Iterator[Tensor]:
        """
        Yield the output (1, channels, rows, w) from the top down, for consecutive rows of an input
        of ``height`` rows.
        """
        held: list[Tensor] = []
        first = arrived = done = (
            0  # rows of the input: the first held, those that came, those whose output went out
        )
        for part in parts:
            held.append(part)
            arrived += part.shape[2]
            until = height if arrived == height else (arrived - self.reach) // self.step * self.step
            if until <= done:
                continue
            rows = torch.cat(held, dim=2)
            top, bottom = max(0, done - self.reach), min(height, until + self.reach)
            found = self.run(rows[:, :, top - first : bottom - first])
            held = [
                rows[:, :, max(0, until - self.reach) - first :].clone()
            ]  # a view would keep all of them
            del rows, part
            yield found[:, :, (done - top) // self.step : (until - top) // self.step]
            first, done = max(0, until - self.reach), until


def _torch_run(network: Any, engine: Engine) -> Run:
    """
    Return a function that runs ``network`` with batch normalisation folded into the convolutions.
    """
    dtype = torch.float16 if engine.rounds else torch.float32
    cells = (
        _fused(Cells(network).eval()).to(engine.device, dtype).to(memory_format=torch.channels_last)
    )

    def given(image: Tensor) -> Tensor:
        return image.to(engine.device, dtype, memory_format=torch.channels_last)

    run = _in_strips(
        network,
        given,
        list(cells.early),
        lambda features: cells.late(features).float().cpu().numpy(),
        STRIP_PX,
    )

    def without_gradients(rows: Rows, height: int) -> np.ndarray:
        with torch.inference_mode():
            return run(rows, height)

    return without_gradients


def _in_strips(
    network: Any,
    given: Callable[[Tensor], Tensor],
    early: Sequence[Callable[[Tensor], Tensor]],
    late: Callable[[Tensor], np.ndarray],
    strip_px: int,
) -> Run:
    """
    Return a function that runs the early stages on strips of rows, and the other layers on all of
    their output.

    Each strip sees as far around itself as its cells do, so that the result is that of the whole
    image.
    """
    if not early:
        return lambda rows, height: late(given(rows(slice(0, height))))
    stages = [
        Stage(run, *_step_and_reach(layers))
        for run, layers in zip(early, network.trunk.stages()[0], strict=True)
    ]

    def run(rows: Rows, height: int) -> np.ndarray:
        tops = range(0, height, strip_px)
        parts: Iterable[Tensor] = (
            given(rows(slice(top, min(top + strip_px, height)))) for top in tops
        )
        left = height
        for stage in stages:
            parts = stage.stream(parts, left)
            left //= stage.step
        features, done = None, 0
        for part in parts:
            if features is None:
                channels_last = part.is_contiguous(memory_format=torch.channels_last)
                layout = torch.channels_last if channels_last else torch.contiguous_format
                shape = 1, part.shape[1], left, part.shape[3]
                features = torch.empty(
                    shape, dtype=part.dtype, device=part.device, memory_format=layout
                )
            features[:, :, done : done + part.shape[2]] = part
            done += part.shape[2]
        assert features is not None
        return late(features)

    return run


def _step_and_reach(layers: nn.Module) -> tuple[int, int]:
    layers = copy.deepcopy(layers).float().cpu().eval()
    channels = next(
        module.in_channels for module in layers.modules() if isinstance(module, nn.Conv2d)
    )
    with torch.inference_mode():
        step = 32 // layers(torch.zeros(1, channels, 32, 32)).shape[2]
    return step, cell_reach_px(layers, channels, step)


def _fused(cells: Cells) -> Cells:
    """
    Fold each batch normalisation into the convolution before it, where the result is the same.

    The pairs are found by the order in which a module lists its parts: torch.fx finds them by
    tracing, but while it traces it changes nn.Module for all threads of the process.
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
    side = 4 * plain.stride
    image = torch.randn(1, len(plain.bands), side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        image = image.to(next(plain.parameters()).device)
        before, after = plain(image), folded(image)
    if not torch.allclose(before, after, rtol=1e-3, atol=1e-3 * float(before.abs().max())):
        log.info(
            "Batch normalisation was not folded: this trunk uses its parts in another order than "
            "it lists them."
        )
        folded = plain
    return _quick_edges(folded)


def _quick_edges(cells: Cells) -> Cells:
    """
    Let convolutions see zeros beyond the edge: what they do fastest, and no cell that counts sees
    the edge of a block.
    """
    for module in cells.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "zeros"
    return cells


def _onnx_run(network: Any, engine: Engine) -> Run:
    assert engine.file is not None
    *early, late = (_session(file) for file in (*engine.early, engine.file))
    steps = [lambda image, stage=stage: torch.from_numpy(stage(image.numpy())) for stage in early]
    return _in_strips(
        network, lambda image: image, steps, lambda features: late(features.numpy()), ONNX_STRIP_PX
    )


def _session(file: Path) -> Callable[[np.ndarray], np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.enable_cpu_mem_arena = (
        False  # blocks differ in size: an arena keeps the largest of each
    )
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"image": np.ascontiguousarray(image)})[0]


def choose_engine(
    network: Any, name: str, folder: Path, samples: Callable[[], Sequence[np.ndarray]]
) -> Engine:
    """
    Return the engine to use, exported to ``folder`` if need be; asked again for the same folder,
    the same engine.

    Parameters
    ----------
    name
        auto: the faster of torch and onnx in a trial of two seconds. What computes with fewer
        digits runs only if named: int8 on a CPU, fp16 on a GPU.
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
        raise ModelError(
            "Numbers of 16 bits are slower on a CPU. Use torch-fp16 on a GPU, or engine auto."
        )
    mark = folder / "engine.json"
    known = read_json(mark) if mark.is_file() else {}
    if "early" in known:  # version 0.1.0 had no early stages
        file, early = known["file"], tuple(folder / name for name in known["early"])
        return (
            Engine(known["name"], device=device)
            if file is None
            else Engine(known["name"], folder / file, early)
        )
    folder.mkdir(parents=True, exist_ok=True)
    if name == "auto":
        engine = _fastest(network, folder)
    elif name.startswith("torch"):
        engine = Engine(name, device=device)
    else:
        _need_onnx()
        engine = _export(network, folder)
        if name == "onnx-int8":
            engine = _quantise(network, engine, folder, samples())
    file = None if engine.file is None else engine.file.name
    write_json(
        mark, {"name": engine.name, "file": file, "early": [part.name for part in engine.early]}
    )
    return engine


def _need_onnx() -> None:
    for package in ("onnx", "onnxruntime"):
        if find_spec(package) is None:
            raise MissingPackageError(
                f"This engine needs {package}: {how_to_install('export')}. Or use engine torch."
            )


def _fastest(network: Any, folder: Path) -> Engine:
    device = next(network.parameters()).device.type
    if device != "cpu" or find_spec("onnx") is None or find_spec("onnxruntime") is None:
        return Engine("torch", device=device)
    try:
        exported = _export(network, folder)
    except ModelError as error:
        log.info("%s", error)
        return Engine("torch")
    image = torch.randn(
        1, len(network.bands), PROBE_PX, PROBE_PX, generator=torch.Generator().manual_seed(0)
    )
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
    log.info(
        "Engine %s: %s.",
        chosen.name,
        ", ".join(f"{e.name} {s * 1000:.0f} ms" for e, s in best.items()),
    )
    return chosen


def _export(network: Any, folder: Path) -> Engine:
    # the export marks the modules it traces; a copy keeps the network as it is
    cells = _quick_edges(copy.deepcopy(Cells(network)).cpu().eval())
    early = []
    channels, left = len(network.bands), int(network.stride)
    for number, stage in enumerate(cells.early):
        with torch.inference_mode():
            _, after, rows, _ = stage(torch.zeros(1, channels, 32, 32)).shape
        early.append(_export_layers(stage, channels, 32 // rows, folder / f"early_{number}.onnx"))
        channels, left = after, left * rows // 32
    return Engine(
        "onnx", _export_layers(cells.late, channels, left, folder / "late.onnx"), tuple(early)
    )


def _export_layers(layers: nn.Module, channels: int, step: int, file: Path) -> Path:
    """
    Export what takes a map of ``channels`` and of any height and width that are multiples of
    ``step``.
    """
    if file.is_file():
        return file
    image = torch.zeros(1, channels, 8 * step, 8 * step)
    with torch.inference_mode():
        height, width = (2, 3) if layers(image).ndim == 4 else (0, 1)
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["cells"]}
    with atomic_path(file) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = {"image": {2: "height", 3: "width"}, "cells": {height: "rows", width: "cols"}}
        try:  # this exporter takes a second, its successor ten
            torch.onnx.export(
                layers, (image,), str(temporary), dynamo=False, dynamic_axes=axes, **names
            )
        except Exception as first:
            rows, cols = (torch.export.Dim(axis, min=2, max=4096) for axis in ("rows", "cols"))
            shapes = {"image": {2: step * rows, 3: step * cols}}
            try:
                torch.onnx.export(
                    layers,
                    (image,),
                    str(temporary),
                    dynamo=True,
                    external_data=False,
                    dynamic_shapes=shapes,
                    **names,
                )
            except Exception as second:  # exporters raise what they like
                raise ModelError(
                    f"The trunk cannot be exported to ONNX: {first}; {second}. Use engine torch."
                ) from second
    return file


def _quantise(network: Any, engine: Engine, folder: Path, samples: Sequence[np.ndarray]) -> Engine:
    """
    Return the same trunk in whole numbers of 8 bits, ranges taken from ``samples``; the projection
    keeps float32.

    Rounding shifts the mean of a cell's numbers; the shift over the samples is taken away at the
    end [1]_.

    .. [1] Nagel, van Baalen, Blankevoort, Welling (2019): Data-free quantization through weight
           equalization and bias
       correction. ICCV.
    """
    assert engine.file is not None
    images, early = list(samples), []
    for stage in engine.early:
        early.append(_quantise_layers(stage, folder / f"{stage.stem}-int8.onnx", images))
        run = _session(stage)
        images = [run(image) for image in images]
    rounded = Engine(
        "onnx-int8", _quantise_layers(engine.file, folder / "late-int8.onnx", images), tuple(early)
    )
    assert rounded.file is not None
    shift = np.mean(
        [
            _inner_mean(engine.run(network, image) - rounded.run(network, image))
            for image in map(torch.from_numpy, samples)
        ],
        axis=0,
    )
    return replace(rounded, file=_shifted(rounded.file, folder / "late-int8-shifted.onnx", shift))


def _inner_mean(cells: np.ndarray) -> np.ndarray:
    """
    Return the mean (length,) over cells (rows, cols, length) that do not see the edge of the image.
    """
    rows, cols = (min(RIM_CELLS, (length - 1) // 2) for length in cells.shape[:2])
    return cells[rows : cells.shape[0] - rows, cols : cells.shape[1] - cols].mean(axis=(0, 1))


def _shifted(file: Path, out: Path, shift: np.ndarray) -> Path:
    """Write a model again that adds ``shift`` to its output ``cells``."""
    import onnx

    model = onnx.load(file)
    for node in model.graph.node:
        node.output[:] = ["before_shift" if name == "cells" else name for name in node.output]
    model.graph.initializer.append(onnx.numpy_helper.from_array(shift.astype(np.float32), "shift"))
    model.graph.node.append(onnx.helper.make_node("Add", ["before_shift", "shift"], ["cells"]))
    with atomic_path(out) as temporary:
        onnx.save(model, temporary)
    return out


def _quantise_layers(file: Path, out: Path, samples: Sequence[np.ndarray]) -> Path:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._rest = iter(samples)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self._rest, None)
            return None if image is None else {"image": image}

    with atomic_path(out) as temporary, atomic_path(out.with_suffix(".prepared.onnx")) as prepared:
        # its notes on how to do better go to the root logger
        quiet = logging.getLogger().level
        logging.getLogger().setLevel(logging.ERROR)
        try:
            quant_pre_process(str(file), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(temporary),
                Reader(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=ROUNDED,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        finally:
            logging.getLogger().setLevel(quiet)
    return out

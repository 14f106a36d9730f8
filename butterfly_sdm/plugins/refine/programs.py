"""Classifiers that are programs: read after the user trusts them, and never through a pickle."""

from __future__ import annotations

import io
import json
import logging
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from butterfly_sdm.errors import ModelError

logger = logging.getLogger("butterfly_sdm.plugins")

_MOST_BYTES = 16 << 30
# Names by which an exported program keeps pickled objects of any class.
_OBJECTS = ("opaque_obj", "custom_obj")


class _RefusedError(ValueError):
    """A member of the archive that is not loaded; the text says why."""


def load_program(path: Path, *, trust: bool) -> nn.Module:
    """
    Load a TorchScript file or an exported program (``.pt2``).

    Parameters
    ----------
    trust
        The user says that the file may run. Pickles in it are refused all the same.

    Raises
    ------
    ModelError
        It is not trusted, is neither of the two, or holds a pickle that could run code.
    """
    if not trust:
        raise ModelError(
            f"{path} is a program: to load it is to run it. If it comes from somebody you trust, "
            "say so with trust: true (--set trust=true); else ask for module:function and weights, "
            "which hold numbers alone."
        )
    try:
        if _is_exported(path):
            with torch.device("cpu"):  # whatever stands around it: its tensors are given
                return _of_any_batch(torch.export.load(plain_program(path)), path)
        with warnings.catch_warnings():  # the user cannot choose how somebody's file was saved
            warnings.filterwarnings("ignore", r".*torch\.jit\.load.* is deprecated", FutureWarning)
            script: nn.Module = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
        return script.eval()
    except _RefusedError as error:
        raise ModelError(
            f"{path} is not loaded: {error}. Save it again with torch.export.save and tensors "
            "alone as inputs and constants."
        ) from error
    except Exception as error:
        raise ModelError(
            f"{path} is neither TorchScript nor an exported program ({type(error).__name__}). "
            "A pickled model is not loaded, since it can run code: save it by "
            "torch.export.save, or give module:function and weights."
        ) from error


def _is_exported(path: Path) -> bool:
    """Say whether a file is an exported program: by its ending, else by its members."""
    if path.suffix == ".pt2":
        return True
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.rpartition("/")[2] == "archive_format" for name in archive.namelist())


class _InBatches(nn.Module):
    """A program that takes batches of one size, for batches of any."""

    def __init__(self, program: nn.Module, size: int) -> None:
        super().__init__()
        self.program, self.size = program, size

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the output of every image; the last batch is filled up with its first image."""
        lacking = -len(images) % self.size
        filled = torch.cat([images, images[:1].expand(lacking, *images.shape[1:])])
        parts = torch.split(filled, self.size)
        return torch.cat([self.program(part) for part in parts])[: len(images)]


def _of_any_batch(exported: Any, path: Path) -> nn.Module:
    """Return the network of an exported program, whose export may have fixed the batch."""
    module: nn.Module = exported.module()
    inputs = exported.graph_signature.user_inputs
    shapes = [node.meta["val"].shape for node in exported.graph.nodes if node.name in inputs]
    if not shapes or not isinstance(shapes[0][0], int):
        return module
    logger.warning(
        "%s was exported for batches of %d images and is asked batch by batch, which is slow. To "
        "export it for any: dynamic_shapes=({0: torch.export.Dim('batch')},).",
        path,
        shapes[0][0],
    )
    return _InBatches(module, shapes[0][0])


def plain_program(path: Path) -> io.BytesIO:
    """
    Return an exported program in memory, whose members hold nothing but text and tensors.

    torch unpickles what is no plain tensor, which runs code. So every member is looked at first,
    and what torch gets is an archive of the members that were seen, not the file: two readers of
    one archive need not find the same members in it.
    """
    out = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(out, "w") as copy:
        members = archive.infolist()
        if len({member.filename for member in members}) < len(members):
            raise _RefusedError("two of its members have one name")
        if sum(member.file_size for member in members) > _MOST_BYTES:
            raise _RefusedError(f"it holds more than {_MOST_BYTES >> 30} GiB")
        for member in members:
            content = archive.read(member)
            _check_member(member.filename, content)
            copy.writestr(member.filename, content)
    out.seek(0)
    return out


def _check_member(name: str, content: bytes) -> None:
    last = name.rpartition("/")[2]
    if "/aotinductor/" in f"/{name}" or last.endswith((".so", ".o", ".dll", ".pyd", ".py")):
        raise _RefusedError(f"its member {name} is machine code")
    if last.startswith(_OBJECTS) or last.endswith((".pkl", ".pickle")):
        raise _RefusedError(f"its member {name} is a pickled object, which can run code")
    if last.endswith(".json"):
        _check_payloads(name, json.loads(content))
    elif last.endswith(".pt") and content:
        try:
            torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:
            raise _RefusedError(
                f"its member {name} is a pickle of more than tensors, which can run code"
            ) from error


def _check_payloads(name: str, value: Any) -> None:
    """Refuse a list of weights or constants that asks for an unpickler."""
    if isinstance(value, list):
        for item in value:
            _check_payloads(name, item)
    elif isinstance(value, dict):
        place = value.get("path_name")
        if value.get("use_pickle") or (isinstance(place, str) and place.startswith(_OBJECTS)):
            raise _RefusedError(f"its member {name} names pickled objects, which can run code")
        for item in value.values():
            _check_payloads(name, item)

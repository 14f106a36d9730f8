"""No pickle runs through the file of a model, and no program without the user's word."""

import io
import json
import os
import zipfile
from pathlib import Path

import pytest
import torch

from butterfly_sdm.errors import ModelError
from butterfly_sdm.plugins.networks import load_weights
from butterfly_sdm.plugins.refine.method import load_defended
from butterfly_sdm.plugins.refine.network import load_classifier

from .conftest import striped_classifier


class Command:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "m.pt2"
    exported = torch.export.export(striped_classifier(), (torch.zeros(2, 1, 16, 16),))
    torch.export.save(exported, path)
    return path


def changed(path: Path, change) -> Path:
    """Write the members of an archive anew, as ``change(name, content)`` returns them."""
    out = path.with_name("changed.pt2")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w") as target:
        for member in source.infolist():
            target.writestr(member.filename, change(member.filename, source.read(member)))
    return out


def pickled(value) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_a_pickle_among_sample_inputs_weights_or_constants_never_runs(program, tmp_path):
    mark = tmp_path / "ran"
    bomb = pickled((Command(mark),))

    def inputs(name, content):
        return bomb if "sample_inputs" in name else content

    def weights(name, content):
        if not name.endswith("weights_config.json"):
            return bomb if "/weights/" in name else content
        value = json.loads(content)
        for payload in value["config"].values():
            payload["use_pickle"] = True
        return json.dumps(value).encode()

    def constants(name, content):
        if not name.endswith("constants_config.json"):
            return content
        payload = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True}
        return json.dumps({"config": {"c": payload | {"tensor_meta": None}}}).encode()

    for change, words in (
        (inputs, "a pickle of more than tensors"),
        (weights, "names pickled objects"),
        (constants, "names pickled objects"),
    ):
        with pytest.raises(ModelError, match=words):
            load_classifier(str(changed(program, change)), None, trust=True)
        assert not mark.exists()


def test_members_that_hide_behind_others_are_refused(program):
    twice = changed(program, lambda name, content: content)
    with zipfile.ZipFile(twice, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(archive.namelist()[0], b"other")
    with pytest.raises(ModelError, match="two of its members have one name"):
        load_classifier(str(twice), None, trust=True)
    native = changed(program, lambda name, content: content)
    with zipfile.ZipFile(native, "a") as archive:
        archive.writestr("m/data/aotinductor/model/a.so", b"\x7fELF")
    with pytest.raises(ModelError, match="machine code"):
        load_classifier(str(native), None, trust=True)


def test_a_program_is_loaded_after_the_users_word_alone(program, tmp_path):
    script = tmp_path / "m.ts"
    torch.jit.trace(striped_classifier(), torch.zeros(2, 1, 16, 16)).save(str(script))
    for path in (program, script):
        with pytest.raises(ModelError, match=r"is a program: to load it is to run it.*trust: true"):
            load_classifier(str(path), None)
        assert load_classifier(str(path), None, trust=True)(torch.zeros(2, 1, 16, 16)).shape[0] == 2


def test_a_program_is_known_by_what_it_holds_and_no_warning_of_torch_is_passed_on(
    program, tmp_path, recwarn
):
    renamed = program.rename(tmp_path / "exported.pt")
    script = tmp_path / "script.pt"
    torch.jit.trace(striped_classifier(), torch.zeros(2, 1, 16, 16)).save(str(script))
    recwarn.clear()
    for path in (renamed, script):
        assert load_classifier(str(path), None, trust=True)(torch.zeros(2, 1, 16, 16)).shape[0] == 2
    script.write_text("no model")
    with pytest.raises(ModelError, match=r"neither TorchScript .* torch\.export\.save"):
        load_classifier(str(script), None, trust=True)
    assert not [warning for warning in recwarn if "jit" in str(warning.message)]


def test_the_word_of_a_run_folder_does_not_count(finished):
    _, run = finished("refine")
    assert json.loads((run.folder / "model.json").read_text())["settings"]["trust"] is True
    with pytest.raises(ModelError, match="give trust=True"):
        load_defended(run.folder)
    assert load_defended(run.folder, trust=True) is not None


def test_weights_that_are_pickles_never_run(tmp_path):
    mark = tmp_path / "ran"
    torch.save({"w": Command(mark)}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match="without running code"):
        load_weights(torch.nn.Linear(1, 1), tmp_path / "w.pth")
    assert not mark.exists()


@pytest.mark.parametrize("size", [1, 2])
def test_a_program_exported_for_one_size_of_batch_takes_any(size, tmp_path):
    model = striped_classifier()
    exported = torch.export.export(model, (torch.zeros(size, 1, 16, 16),))
    torch.export.save(exported, tmp_path / "m.pt2")
    loaded = load_classifier(str(tmp_path / "m.pt2"), None, trust=True)
    images = torch.rand(5, 1, 16, 16, requires_grad=True)
    torch.testing.assert_close(loaded(images), model(images))
    (gradient,) = torch.autograd.grad(loaded(images).sum(), images)
    assert gradient.abs().sum(dim=(1, 2, 3)).gt(0).all()  # of the filled-up batch too


def test_a_program_is_read_to_the_cpu_whatever_device_is_the_default(program, capfd):
    with torch.device("meta"):  # as a run does, to compare shapes before it takes memory
        loaded = load_classifier(str(program), None, trust=True)
    images = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(loaded(images), striped_classifier()(images))
    assert "Traceback" not in capfd.readouterr().err

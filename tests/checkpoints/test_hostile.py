"""Truncated, foreign and malicious files: an error that says what was found, nothing run, nothing loaded."""

from __future__ import annotations

import io
import pickle
import shutil
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from fastpure import load_denoiser
from fastpure.checkpoints.torch_files import Record, state_dict
from fastpure.errors import CheckpointError
from tests.checkpoints.pickles import edm_pickle
from tests.golden import FOLDER, config

CONFIGS = {
    "score_sde_checkpoint_tiny.pth": FOLDER / "score_sde_checkpoint_tiny.json",
    "adm_tiny.pt": FOLDER / "adm_tiny.json",
    "edm_adm_tiny.safetensors": {**config("edm_adm_tiny"), "precond": "edm"},
}


class Command:
    """Pickles as a call of ``os.system`` that would make the file ``marker``."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.marker}",)


class Expression(Command):
    def __reduce__(self):
        return eval, (f"open({str(self.marker)!r}, 'w')",)


class Storage(Command):
    """As torch pickles a storage; the bytes are read by ``torch.load``."""

    def __reduce__(self):
        content = io.BytesIO()
        torch.save({"all_modules.0.weight": Command(self.marker)}, content)
        return torch.storage._load_from_bytes, (content.getvalue(),)


@pytest.mark.parametrize("payload", [Command, Expression, Storage])
@pytest.mark.parametrize("container", ["zip", "legacy", "pickle", "edm"])
def test_code_in_a_file_does_not_run(tmp_path, container, payload):
    marker, path = tmp_path / "marker", tmp_path / "model.pth"
    content = {"all_modules.0.weight": torch.ones(2), "model": payload(marker)}
    if container == "edm":
        path, _ = edm_pickle(tmp_path, extra=payload(marker))
    elif container == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=container == "zip")
    with pytest.raises(CheckpointError, match=f"{path.name}: not readable as weights.*never done: .+"):
        load_denoiser(path)
    for format in ("native", "score_sde", "guided_diffusion", "edm", "diffusers"):
        with pytest.raises(CheckpointError, match="whose code would have to run"):
            load_denoiser(path, format=format)
    assert not marker.exists(), "the code in the file was run"


def test_the_payload_of_this_test_works(tmp_path):
    """Otherwise the test above could not fail."""
    marker = tmp_path / "marker"
    for payload in (Command, Expression):
        pickle.loads(pickle.dumps(payload(marker)))
        assert marker.exists()
        marker.unlink()
    path, written = edm_pickle(tmp_path)
    source = pickle.loads(pickle.dumps(path.read_bytes()))
    assert str(written).encode() in source


def test_the_refusal_names_the_function(tmp_path):
    path = tmp_path / "network.pkl"
    path.write_bytes(pickle.dumps({"ema": Command(tmp_path / "marker")}))
    with pytest.raises(CheckpointError, match=r"refused: posix\.system is no part of a network's weights"):
        load_denoiser(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.9999])
@pytest.mark.parametrize("name", CONFIGS)
def test_truncated(tmp_path, name, share):
    content = (FOLDER / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.") + ": not "):
        load_denoiser(path, config=CONFIGS[name])


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_truncated_pickle(tmp_path, share):
    path, _ = edm_pickle(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match="not readable"):
        load_denoiser(path)


def test_flipped_bits_in_the_directory(tmp_path):
    """Damage in the structure is seen; damage in the numbers themselves only if they become NaN or Inf."""
    content = bytearray((FOLDER / "adm_tiny.pt").read_bytes())
    start = content.index(b"input_blocks")
    content[start : start + 5] = b"other"
    (tmp_path / "adm.pt").write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"adm\.pt"):
        load_denoiser(tmp_path / "adm.pt", config=CONFIGS["adm_tiny.pt"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.pt", b"", "an empty file"),
        ("page.pt", b"<!DOCTYPE html><html>404</html>", r"found bytes that begin with b'<!DOCTYP'"),
        (
            "weights.h5",
            b"\x89HDF\r\n\x1a\n" + bytes(100),
            "expected a safetensors file, a file of torch.save",
        ),
        ("list.pkl", pickle.dumps([1, 2]), "expected one of the formats native, .*, found a list"),
        ("none.pkl", pickle.dumps({}), "found nothing"),
        ("deep.pkl", b"\x80\x02" + b"]" * 5 + b"a" * 900, "not readable"),
    ],
)
def test_foreign(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_denoiser(tmp_path / name)


def test_foreign_archives_folders_and_state_dicts(tmp_path):
    with zipfile.ZipFile(tmp_path / "letter.docx", "w") as archive:
        archive.writestr("word/document.xml", "<xml/>")
    with pytest.raises(CheckpointError, match="not readable as weights"):
        load_denoiser(tmp_path / "letter.docx")
    with pytest.raises(CheckpointError, match=r"expected a folder with config\.json"):
        load_denoiser(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="expected fields by name, found list"):
        load_denoiser(tmp_path)
    shutil.copy(FOLDER / "diffusers_ddpm_tiny" / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match=r"expected diffusion_pytorch_model\.safetensors or \.bin"):
        load_denoiser(tmp_path)
    torch.save({"conv1.weight": torch.ones(1), "fc.bias": torch.ones(2)}, tmp_path / "resnet.pt")
    with pytest.raises(CheckpointError, match=r"found 2 tensors: conv1\.weight, fc\.bias"):
        load_denoiser(tmp_path / "resnet.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(CheckpointError, match="whose code would have to run"):
        load_denoiser(tmp_path / "module.pt")


@pytest.mark.parametrize("format", ["guided_diffusion", "edm", "diffusers"])
def test_the_wrong_format_is_a_mismatch(format):
    path = FOLDER / "ddpmpp_tiny.safetensors"
    settings = {
        "guided_diffusion": FOLDER / "adm_tiny.json",
        "edm": CONFIGS["edm_adm_tiny.safetensors"],
        "diffusers": FOLDER / "diffusers_ddpm_tiny" / "config.json",
    }[format]
    with pytest.raises(CheckpointError, match=r"weights do not fit .* missing: .*, \.\.\.; .* unknown: "):
        load_denoiser(path, format=format, config=settings)


def test_modules_within_themselves():
    record = Record()
    record.state = {"_modules": OrderedDict(again=record)}
    with pytest.raises(ValueError, match="without end"):
        state_dict(record)


def test_a_tensor_larger_than_its_storage(tmp_path):
    storage = torch.ones(4).untyped_storage()

    class Forged:
        def __reduce__(self):
            typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
            return torch._utils._rebuild_tensor_v2, (typed, 0, (1000, 1000), (1000, 1), False, OrderedDict())

    (tmp_path / "forged.pkl").write_bytes(pickle.dumps({"ema": Forged()}))
    with pytest.raises(CheckpointError, match=r"not readable.*\[1000, 1000\] in a storage of 4 numbers"):
        load_denoiser(tmp_path / "forged.pkl")

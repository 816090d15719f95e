"""Small files that would eat memory or time: sizes are known from headers, and compared before memory is found."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fastpure import Denoiser, load_classifier, load_denoiser
from fastpure.classifiers import WideResNet
from fastpure.errors import CheckpointError
from fastpure.pickles import RestrictedUnpickler
from tests.checkpoints.pickles import edm_pickle
from tests.classifiers.helpers import WIDE, used
from tests.golden import FOLDER, config

SETTINGS = config("adm_tiny")


def adm(**changes: object) -> dict[str, object]:
    return {**SETTINGS["create_model_kwargs"], **changes}


class View:
    """A tensor as its pickle says it: sizes and strides of one's own over a storage of four numbers."""

    def __init__(self, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> None:
        self.arguments = (offset, size, stride, False, OrderedDict())

    def __reduce__(self):
        storage = torch.ones(4).untyped_storage()
        typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
        return torch._utils._rebuild_tensor_v2, (typed, *self.arguments)


@pytest.mark.parametrize("zip_file", [True, False, None])
@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((1 << 30,), (0,), 0),  # 4 GiB from one number
        ((1 << 20, 1 << 20), (0, 0), 0),
        ((1000, 1000), (1000, 1), 0),
        ((4,), (1,), 1),
        ((2,), (-1,), 2),
        ((4,), (1,), -1),
        ((0, 1 << 40), (1, 1), 1 << 50),
    ],
)
def test_tensors_that_claim_more_than_their_storage(tmp_path, zip_file, size, stride, offset):
    path, content = tmp_path / "forged.pt", {"ema": View(size, stride, offset)}
    if zip_file is None:
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=zip_file)
    if size[0] == 0:
        with pytest.raises((CheckpointError, ValueError)):
            load_denoiser(path)
    else:
        with pytest.raises(CheckpointError, match="not readable as weights"):
            load_denoiser(path)


def test_an_edm_pickle_of_repeated_numbers(tmp_path):
    """24 KB that would become 11 GiB: strides of 0 in a network whose configuration asks for that much."""
    path, _ = edm_pickle(tmp_path, extra=View((3_000_000_000,), (0,)))
    with pytest.raises(CheckpointError, match=r"a tensor \[3000000000\] in a storage of 4 numbers"):
        load_denoiser(path)


def test_many_views_of_one_storage(tmp_path):
    """Each fits its storage; copies of all would be 400 times the file."""
    shared = torch.zeros(100_000)
    torch.save({f"a{i}.weight": shared for i in range(400)}, tmp_path / "shared.pt")
    with pytest.raises(CheckpointError, match="which cannot be weights"):
        load_classifier(tmp_path / "shared.pt", normalise="none")


def rewritten(path: Path, change) -> Path:
    """The archive at ``path`` with members changed."""
    target = path.with_name("changed.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for member in old.infolist():
            change(new, member.filename, old.read(member))
    return target


def test_archives_that_lie(tmp_path):
    torch.save({"weight": torch.ones(64)}, tmp_path / "net.pt")

    def shorter(new, name, content):
        new.writestr(name, content[:8] if name.endswith("data/0") else content)

    def bomb(new, name, content):
        new.writestr(name, content)
        if name.endswith("data/0"):
            new.writestr("net/data/1", bytes(1 << 24), zipfile.ZIP_DEFLATED)

    def deflated(new, name, content):
        new.writestr(name, content, zipfile.ZIP_DEFLATED)

    for change, message in (
        (shorter, "storage '0' has 8 bytes, expected 64 numbers"),
        (bomb, "members are larger than itself"),
        (deflated, "not in the archive|larger than itself"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_denoiser(rewritten(tmp_path / "net.pt", change))


def test_legacy_files_that_announce_more_than_they_have(tmp_path):
    torch.save({"weight": torch.ones(64)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    content = (tmp_path / "old.pt").read_bytes()
    assert content.count(b"K@") > 0  # 64 as one byte
    huge = content.replace(b"cpuq\x07K@", b"cpuq\x07J\xff\xff\xff\x7f", 1)
    if huge == content:  # another numbering of the memo
        at = content.index(b"K@")
        huge = content[:at] + b"J\xff\xff\xff\x7f" + content[at + 2 :]
    (tmp_path / "old.pt").write_bytes(huge)
    with pytest.raises(CheckpointError, match="storages that are larger than the file"):
        load_denoiser(tmp_path / "old.pt")
    (tmp_path / "cut.pt").write_bytes(content[:-8])
    with pytest.raises(CheckpointError, match="cut off"):
        load_denoiser(tmp_path / "cut.pt")


def read(program: bytes):
    return RestrictedUnpickler(io.BytesIO(program), len(program), lambda *_: None).load()


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40), "bytes announced"),
        (b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62), "bytes announced"),
        (b"\x80\x04\x95" + struct.pack("<Q", 1 << 40), "bytes announced"),
        (b"\x80\x05\x96" + struct.pack("<Q", 1 << 40), "no weights need"),
        (b"\x80\x02\x8b" + struct.pack("<i", 1 << 30), "an integer of"),
        (b"\x80\x02(K\x01o.", "no weights need"),
        (b"\x80\x02cos\nsystem\n.", "refused: os.system"),
        (b"\x80\x02]]R.", "no function of the reader"),
        (b"\x80\x02}}b.", "refused: a state for a dict"),
    ],
)
def test_instructions_that_are_refused(program, message):
    with pytest.raises((pickle.UnpicklingError, EOFError), match=message):
        read(program)


def test_the_memo_reserves_nothing():
    """An index of 2^31 makes the reader in C reserve 34 GB and write to it."""
    assert read(b"\x80\x02K\x01r\xff\xff\xff\x7f.") == 1


def test_keys_without_end():
    """A tuple that holds itself twice, sixty times over, is 200 bytes and takes 2^60 steps to hash."""
    program = b"\x80\x02)" + b"q\x01h\x01\x86" * 60 + b"q\x02}h\x02K\x01s."
    with pytest.raises(pickle.UnpicklingError, match="a key of type tuple"):
        read(program)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_res_blocks": 10**9}, r"`n_blocks` must be an integer in \[1, 4096\]"),
        ({"num_res_blocks": 4000}, "`n_blocks` must be such that all levels have 512 blocks"),
        ({"num_res_blocks": 2**200}, "is an integer of 201 bits"),
        ({"num_channels": 10**12}, "`"),
        ({"image_size": 1 << 40}, "`image_size`"),
        ({"channel_mult": ",".join(["1"] * 400)}, "levels"),
        ({"channel_mult": [1] * 4000}, "a short list"),
        ({"channel_mult": "1,nan"}, "cannot convert"),
        ({"channel_mult": "1,1e400"}, "cannot convert"),
        ({"attention_resolutions": [0]}, "division"),
        ({"num_classes": 10**9}, "`classes`"),
        ({"dropout": "much"}, "not supported"),
        ({"dropout": float("nan")}, "`dropout`"),
        ({"num_heads": 0}, "`heads`"),
    ],
)
def test_configurations_without_end(change, message):
    with pytest.raises(CheckpointError, match=message):
        load_denoiser(FOLDER / "adm_tiny.pt", config=adm(**change))


@pytest.mark.parametrize("field", ["n_blocks", "nf", "image_size", "channels", "embedding_mult", "classes"])
def test_our_own_configurations_are_bounded_too(field):
    sizes = {"image_size": 8, "nf": 8, "ch_mult": (1, 2), "n_blocks": 1, "attn_resolutions": (4,)}
    with pytest.raises(ValueError, match=f"`{field}`"):
        Denoiser.from_config({**sizes, field: 10**9})


def test_classifiers_whose_names_count_without_end(tmp_path):
    weights = used(WideResNet(WIDE)).state_dict()
    for name in (
        "block1.layer.999999999.bn1.weight",
        "block1.layer.999999.bn1.weight",
        "block1.layer." + "9" * 5000 + ".b",
    ):
        save_file({**weights, name: torch.ones(2)}, tmp_path / "net.safetensors")
        with pytest.raises(CheckpointError):
            load_classifier(tmp_path / "net.safetensors", normalise="none")


def test_safetensors_headers_that_lie(tmp_path):
    path = tmp_path / "net.safetensors"

    def write(header: dict, size: int | None = None) -> None:
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + bytes(64))

    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    for header, size in (
        ({"a": {**entry, "shape": [1 << 40]}}, None),
        ({"a": {**entry, "data_offsets": [0, 1 << 60]}}, None),
        ({"a": {**entry, "shape": [1 << 62, 1 << 62]}}, None),
        ({"a": entry}, 1 << 40),
        ({"a": entry}, (1 << 64) - 1),
        ({"a": {**entry, "dtype": "F7"}}, None),
        ({"a": []}, None),
    ):
        write(header, size)
        for load in (load_denoiser, load_classifier):
            with pytest.raises(CheckpointError, match=r"not a readable safetensors file|not readable"):
                load(path)

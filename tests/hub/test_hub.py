"""Published networks: fetched when asked, never otherwise, continued, recorded, and compared with the record."""

from __future__ import annotations

import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import fastpure as fp
from fastpure import hub, zoo
from fastpure.errors import CheckpointError, DownloadError, MissingExtra
from fastpure.hub.fetching import wanted
from fastpure.hub.records import RECORD, sha256
from tests.checkpoints.helpers import state
from tests.golden import FOLDER
from tests.hub.server import COMMIT, serving

pytest.importorskip("pooch")
TINY = FOLDER / "diffusers_ddpm_tiny"
CARD = hub.CARDS["guided-diffusion-imagenet-256"]
NAME = "a-network"


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTPURE_CACHE", str(tmp_path / "cache"))
    with serving() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
        running.files["/weights.safetensors"] = zoo.weights_path("denoiser", "digits").read_bytes()
        card = replace(CARD, source=f"{running.url}/weights.safetensors", file="weights.safetensors")
        monkeypatch.setitem(hub.CARDS, NAME, card)
        yield running


def fetch(name=NAME, **options):
    return hub.download(name, progress=False, **options)


def test_a_card_is_downloaded_recorded_and_then_loaded_by_its_name(server, tmp_path):
    path = fetch()
    assert path == tmp_path / "cache" / NAME / "weights.safetensors"
    record = json.loads((path.parent / RECORD).read_text())
    assert record["files"] == {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)}}
    assert record["source"] == hub.CARDS[NAME].source
    server.log.clear()
    assert fetch() == path
    loaded = fp.load_denoiser(NAME)
    assert server.log == []
    expected = state(fp.load_denoiser("digits"))
    assert all(value.equal(expected[name]) for name, value in state(loaded).items())
    assert sorted(p.name for p in path.parent.iterdir() if not p.name.startswith(".")) == [RECORD, path.name]


def test_what_is_not_there_names_the_command_and_asks_nobody(server):
    with pytest.raises(CheckpointError, match=rf"fastpure download {NAME} \(.*licence MIT, size unknown"):
        fp.load_denoiser(NAME)
    with pytest.raises(CheckpointError, match="fastpure download wrn-28-10-cifar10"):
        fp.load_classifier("wrn-28-10-cifar10")
    with pytest.raises(CheckpointError, match=r"is a denoiser: fp\.load_denoiser"):
        fp.load_classifier(NAME)
    assert server.log == []


def test_a_file_of_that_name_comes_first(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(NAME).write_bytes(zoo.weights_path("denoiser", "digits").read_bytes())
    assert fp.load_denoiser(NAME).image_shape == (1, 8, 8)


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b[:100] + bytes([b[100] ^ 1]) + b[101:]])
def test_a_file_that_is_not_the_one_that_came_is_refused(server, change):
    path = fetch()
    path.write_bytes(change(path.read_bytes()))
    for use in (fetch, lambda: fp.load_denoiser(NAME)):
        with pytest.raises(DownloadError, match=r"is not what was downloaded.*Delete .* and download again"):
            use()
    path.unlink()
    with pytest.raises(DownloadError, match="it is gone"):
        fetch()


def test_a_record_that_cannot_be_read_is_no_record_to_trust(server):
    path = fetch()
    (path.parent / RECORD).write_text("{")
    with pytest.raises(DownloadError, match="cannot be read"):
        fp.load_denoiser(NAME)


def test_an_interrupted_download_continues_where_it_stopped(server):
    content = server.files["/weights.safetensors"] = np.random.default_rng(0).bytes(1_000_000)
    server.break_after = 400_000
    with pytest.raises(DownloadError, match="The same command continues"):
        fetch()
    with pytest.raises(CheckpointError, match="is not here"):
        fp.load_denoiser(NAME)
    server.break_after = None
    path = fetch()
    asked = [entry for entry in server.log if entry[0] == "GET"]
    assert path.read_bytes() == content
    assert asked[-1][2] == 206
    assert int(asked[-1][3].removeprefix("bytes=").rstrip("-")) > 300_000
    assert not list(path.parent.glob(".*part*"))


def test_a_file_that_changed_meanwhile_begins_anew(server):
    server.files["/weights.safetensors"] = b"before" * 100_000
    server.break_after = 400_000
    with pytest.raises(DownloadError):
        fetch()
    server.break_after = None
    server.files["/weights.safetensors"] = b"another" * 100_000
    assert fetch().read_bytes() == b"another" * 100_000
    assert server.log[-1][2] == 200


def test_without_a_tag_nothing_is_continued(server):
    server.files["/weights.safetensors"] = b"before" * 100_000
    server.tags, server.break_after = False, 400_000
    with pytest.raises(DownloadError):
        fetch()
    server.break_after = None
    assert fetch().read_bytes() == server.files["/weights.safetensors"]
    assert server.log[-1][2:] == (200, None)


def test_an_address_that_does_not_answer(server):
    server.files.clear()
    with pytest.raises(DownloadError, match="404"):
        fetch()
    assert not (hub.cache_folder() / NAME / RECORD).exists()


def test_another_folder(server, tmp_path):
    path = fetch(dest=tmp_path / "mine")
    assert path == tmp_path / "mine" / NAME / "weights.safetensors"
    assert (path.parent / RECORD).is_file()
    assert fp.load_denoiser(path).image_shape == (1, 8, 8)


def test_what_people_fetch_by_hand_is_recorded_when_it_is_seen(server, monkeypatch):
    card = replace(hub.CARDS[NAME], source="https://example.org/a-page", by_hand=True)
    monkeypatch.setitem(hub.CARDS, NAME, card)
    with pytest.raises(
        DownloadError, match=r"by hand from https://example.org/a-page and save it as .*weights"
    ):
        fetch()
    folder = hub.cache_folder() / NAME
    folder.mkdir(parents=True)
    (folder / card.file).write_bytes(server.files["/weights.safetensors"])
    assert fp.load_denoiser(NAME).image_shape == (1, 8, 8)
    assert (folder / RECORD).is_file()
    (folder / card.file).write_bytes(b"something else")
    with pytest.raises(DownloadError, match="is not what was downloaded"):
        fp.load_denoiser(NAME)


def test_names_that_are_close():
    with pytest.raises(ValueError, match="Did you mean edm-cifar10"):
        hub.download("edm-cifar-10")
    for name in ("hf:", "hf:only", "hf:a/../b", "hf:a/b:../c"):
        with pytest.raises(ValueError, match="hf:OWNER/REPOSITORY"):
            hub.download(name)


def test_a_missing_package_is_named_with_its_extra(server, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtra, match=r"pooch: pip install 'fastpure\[hub\]'"):
        fetch()
    with pytest.raises(MissingExtra, match=r"huggingface_hub: pip install 'fastpure\[hub\]'"):
        fp.load_denoiser("hf:somebody/something")


def test_a_repository_is_fetched_when_hf_is_spelled_and_then_kept(server, tmp_path):
    pytest.importorskip("huggingface_hub")
    server.add_repository("google/ddpm-tiny", TINY, ("diffusion_pytorch_model.bin", b"the same again"))
    loaded = fp.load_denoiser("hf:google/ddpm-tiny")
    folder = tmp_path / "cache" / "hf" / "google--ddpm-tiny"
    record = json.loads((folder / RECORD).read_text())
    assert sorted(record["files"]) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "scheduler_config.json",
    ]
    assert record["commit"] == COMMIT
    expected = state(fp.load_denoiser(TINY))
    assert all(value.equal(expected[name]) for name, value in state(loaded).items())
    server.repositories.clear()
    server.log.clear()
    fp.load_denoiser("hf:google/ddpm-tiny")
    assert server.log == []
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(DownloadError, match="is not what was downloaded"):
        fp.load_denoiser("hf:google/ddpm-tiny")


def test_one_file_and_a_revision_of_a_repository(server):
    pytest.importorskip("huggingface_hub")
    content = zoo.weights_path("classifier", "digits").read_bytes()
    server.repositories["me/nets"] = {"robust/net.safetensors": content, "README.md": b""}
    loaded = fp.load_classifier("hf:me/nets@v1:robust/net.safetensors")
    assert loaded.config == fp.load_classifier("digits").config
    with pytest.raises(DownloadError, match=r"has no file 'absent.pt'; it has README.md"):
        fp.load_classifier("hf:me/nets:absent.pt")
    with pytest.raises(DownloadError, match="could not be downloaded"):
        fp.load_classifier("hf:me/absent")
    with pytest.raises(DownloadError, match=r"expected config.json and model.safetensors of timm"):
        fp.load_classifier("hf:me/nets")


class Answer(nn.Module):
    """What stands for a network of timm."""

    def __init__(self, num_classes=1000, gain=1.0) -> None:
        super().__init__()
        self.fc, self.gain = nn.Linear(3, num_classes), gain
        self.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}

    def forward(self, x):
        return self.fc(self.gain * x.mean((2, 3)))


@pytest.fixture
def timm(monkeypatch):
    module = type(sys)("timm")
    module.is_model = lambda name: name == "answer"
    module.list_models = lambda: ["answer"]
    module.create_model = lambda name, pretrained, **more: Answer(**more)
    monkeypatch.setitem(sys.modules, "timm", module)


def test_a_network_of_timm_brings_classes_and_normalisation(server, timm):
    pytest.importorskip("huggingface_hub")
    from safetensors.torch import save

    network = Answer(7)
    config = {
        "architecture": "answer",
        "num_classes": 7,
        "pretrained_cfg": {"mean": [0.4, 0.4, 0.4], "std": [0.2, 0.2, 0.2]},
    }
    server.repositories["timm/answer.v1"] = {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": save(network.state_dict()),
    }
    loaded = fp.load_classifier("hf:timm/answer.v1")
    x = torch.from_numpy(np.random.default_rng(0).random((2, 3, 4, 4), dtype=np.float32))
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), network((x - 0.4) / 0.2))
    # What the network was built with besides, and what is for the library.
    config["model_args"] = {"gain": 3.0}
    server.repositories["timm/answer.v2"] = {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": save(network.state_dict()),
    }
    with torch.no_grad():
        torch.testing.assert_close(
            fp.load_classifier("hf:timm/answer.v2")(x), network(3 * (x - 0.4) / 0.2), rtol=1e-5, atol=1e-5
        )
    config["model_args"] = {"pretrained": True}
    server.repositories["timm/answer.v3"] = {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": save(network.state_dict()),
    }
    with pytest.raises(CheckpointError, match="model_args must be those of the network, found pretrained"):
        fp.load_classifier("hf:timm/answer.v3")
    server.repositories["some/transformer"] = {
        "config.json": json.dumps({"model_type": "vit"}).encode(),
        "model.safetensors": b"x",
    }
    with pytest.raises(CheckpointError, match=r"found vit.*fp\.Normalised"):
        fp.load_classifier("hf:some/transformer")


def test_how_many_classes(timm, tmp_path):
    file = tmp_path / "seven.pt"
    torch.save(Answer(7).state_dict(), file)
    loaded = fp.load_classifier("timm:answer", weights=file, num_classes=7, normalise="none")
    assert loaded(torch.rand(1, 3, 4, 4)).shape == (1, 7)
    with pytest.raises(CheckpointError, match=r"fc\.weight.*For 7 classes give num_classes"):
        fp.load_classifier("timm:answer", weights=file)
    with pytest.raises(ValueError, match="left out for 'pretrained'"):
        fp.load_classifier("timm:answer", weights="pretrained", num_classes=7)
    with pytest.raises(ValueError, match="`num_classes` must be left out for a module"):
        fp.load_classifier(Answer(7).eval(), num_classes=7)


FILES = {
    "folder": (
        "denoiser",
        ["README.md", "config.json", "scheduler_config.json", "diffusion_pytorch_model.bin", "samples/1.png"],
        ["config.json", "diffusion_pytorch_model.bin", "scheduler_config.json"],
    ),
    "pipeline": (
        "denoiser",
        [
            "model_index.json",
            "scheduler/scheduler_config.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.bin",
            "unet/diffusion_pytorch_model.safetensors",
            "unet/diffusion_pytorch_model.fp16.safetensors",
        ],
        [
            "model_index.json",
            "scheduler/scheduler_config.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
        ],
    ),
    "either": ("any", ["config.json", "pytorch_model.bin"], ["config.json", "pytorch_model.bin"]),
    "ours": ("classifier", ["classifier.safetensors", "x.md"], ["classifier.safetensors"]),
}


@pytest.mark.parametrize(("kind", "files", "chosen"), FILES.values(), ids=FILES.keys())
def test_which_files_are_fetched(kind, files, chosen):
    assert wanted(files, kind, "hf:a/b") == chosen


def test_networks_of_codes_are_refused_before_anything_is_fetched():
    with pytest.raises(DownloadError, match="codes of an autoencoder"):
        wanted(["vqvae/config.json", "unet/config.json", "unet/diffusion_pytorch_model.bin"], "any", "hf:a/b")


def test_a_network_that_robustbench_fetches(server, monkeypatch):
    from fastpure.readers import READERS

    calls = []

    def fetched(name, dataset, threat_model, model_dir):
        calls.append(name)
        file = Path(model_dir) / dataset / threat_model / f"{name}.pt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"weights")
        return nn.Identity()

    monkeypatch.setitem(READERS, "robustbench", fetched)
    monkeypatch.setattr("fastpure.classifiers.loading.load_robustbench", fetched)
    path = hub.download("wrn-28-10-cifar10")
    assert path.read_bytes() == b"weights"
    assert calls == ["Standard"]
    hub.download("wrn-28-10-cifar10")
    assert calls == ["Standard"]
    fp.load_classifier("wrn-28-10-cifar10")
    path.write_bytes(b"others")
    with pytest.raises(DownloadError, match="is not what was downloaded"):
        fp.load_classifier("wrn-28-10-cifar10")


@pytest.mark.parametrize("source", ["file", "repository", "robustbench"])
def test_two_at_once_fetch_once(server, monkeypatch, capsys, source):
    from fastpure.hub import places

    begun, waiting, calls = threading.Event(), threading.Event(), []

    def fetching(folder, name):
        calls.append(name)
        begun.set()
        assert waiting.wait(60)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"weights")

    def of_robustbench(name, dataset, threat_model, model_dir):
        fetching(Path(model_dir) / dataset / threat_model, f"{name}.pt")

    def of_hub(repository, revision, kind, file, folder, progress):
        fetching(folder, file)
        return COMMIT, [file]

    monkeypatch.setattr(
        places, "fetch_file", lambda url, target, progress: fetching(target.parent, target.name)
    )
    monkeypatch.setattr(places, "fetch_repository", of_hub)
    monkeypatch.setitem(places.READERS, "robustbench", of_robustbench)
    monkeypatch.setattr(places, "SILENT", 2 * places.PAUSE)
    sleep, slept = places.time.sleep, []

    def sleeping(seconds):
        slept.append(seconds)
        if len(slept) > 3:
            waiting.set()
        sleep(0.05)

    monkeypatch.setattr(places, "time", SimpleNamespace(sleep=sleeping))
    name = {"file": NAME, "repository": "hf:a/b:weights.pt", "robustbench": "wrn-28-10-cifar10"}[source]
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(fetch, name)
        assert begun.wait(60)
        second = pool.submit(fetch, name)
        assert second.result(60) == first.result(60)
    assert len(calls) == 1
    assert capsys.readouterr().err.count("fastpure: waiting for another download: ") == 1


def test_robustbench_that_writes_no_file_is_named(server, monkeypatch):
    from fastpure.readers import READERS

    monkeypatch.setitem(READERS, "robustbench", lambda name, **options: nn.Identity())
    with pytest.raises(DownloadError, match=r"robustbench wrote no .*Standard\.pt"):
        fetch("wrn-28-10-cifar10")
    # It takes these from torchvision, so that there is no file to keep.
    elsewhere = [
        c for c in hub.CARDS.values() if c.options.get("dataset") == "imagenet" and "Standard" in c.source
    ]
    assert elsewhere == []


@pytest.mark.parametrize("name", sorted(hub.CARDS))
def test_cards_say_what_they_must(name):
    card = hub.CARDS[name]
    assert card.licence
    assert card.architecture
    assert card.data
    assert card.paper
    assert card.source.startswith(("hf:", "robustbench:")) or (
        card.source.startswith("https://") and card.file
    )
    assert name not in zoo.DENOISERS
    assert name not in zoo.CLASSIFIERS

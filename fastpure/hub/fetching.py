"""Fetching: plain addresses by pooch, continued where they stopped; repositories by huggingface_hub."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import DownloadError, MissingExtra
from ..files import replace_file
from ..progress import Progress

CONFIGS = ("config.json", "scheduler_config.json", "model_index.json")
_CODED = ("vae", "vqvae", "movq", "vqgan")
_BLOCK = 1 << 16
MEGABYTE = 1e6
ANY = "any"
"""Kind of a network when the name alone was given: a denoiser if there is one, else a classifier."""


def fetch_file(url: str, target: Path, progress: bool = True) -> None:
    """Fetch ``url`` to ``target``; a part that an earlier call left is continued if it is one of the same file.

    Raises:
        MissingExtra: pooch is not installed.
        DownloadError: the address does not answer, or with less than it announced; the part stays.
    """
    try:
        import pooch
    except ImportError as error:
        raise MissingExtra("pooch", "hub", "downloading") from error
    target.parent.mkdir(parents=True, exist_ok=True)
    pooch.get_logger().setLevel("WARNING")  # it would advise to write the checksum down, which is done here
    try:
        pooch.retrieve(
            url,
            known_hash=None,
            fname=target.name,
            path=target.parent,
            downloader=lambda address, output, _: _continued(address, Path(output), target, progress),
        )
    except DownloadError:
        raise
    except Exception as error:  # requests, urllib3 and pooch raise what they like
        raise DownloadError(
            f"{url} could not be downloaded: {_reason(error)}. The same command continues"
        ) from error


def _continued(url: str, output: Path, target: Path, progress: bool) -> None:
    """Download ``url`` to ``output`` by way of a part beside ``target`` that outlives an interruption."""
    import requests

    part, about = (target.with_name(f".{target.name}.{end}") for end in ("part", "part.json"))
    begun = _known(about) if part.is_file() else {}
    done = part.stat().st_size if begun.get("url") == url and begun.get("tag") else 0
    headers = {"Accept-Encoding": "identity"}
    if done:
        headers |= {"Range": f"bytes={done}-", "If-Range": begun["tag"]}
    with requests.get(url, stream=True, timeout=30, headers=headers) as response:
        if response.status_code == 416:  # nothing is left of it, or it is another file by now
            about.unlink(missing_ok=True)
            part.unlink()
            return _continued(url, output, target, progress)
        response.raise_for_status()
        if response.status_code != 206:
            done = 0
        length = response.headers.get("Content-Length")
        total = None if length is None else done + int(length)
        strong = response.headers.get("ETag", "")
        tag = strong if strong and not strong.startswith("W/") else response.headers.get("Last-Modified", "")
        if not done:
            replace_file(about, json.dumps({"url": url, "tag": tag}).encode())
        of = None if total is None else total / MEGABYTE
        bar = Progress(of, "MB", done=done / MEGABYTE, doing=target.name, fractions=True, shown=progress)
        with part.open("ab" if done else "wb") as file, bar:
            for block in response.iter_content(_BLOCK):
                file.write(block)
                bar.step(len(block) / MEGABYTE)
    if total is not None and part.stat().st_size != total:
        raise DownloadError(
            f"{url}: {part.stat().st_size} of {total} bytes came. The same command continues where it stopped"
        )
    part.replace(output)
    about.unlink(missing_ok=True)


def _known(about: Path) -> dict[str, Any]:
    try:
        found = json.loads(about.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def fetch_repository(
    repository: str, revision: str, kind: str, file: str, folder: Path, progress: bool = True
) -> tuple[str, list[str]]:
    """(commit, names of the files) of what was fetched from a repository of the Hugging Face hub into ``folder``.

    Args:
        kind: "denoiser", "classifier" or `ANY`.
        file: the one file that is wanted; "" for those that `wanted` chooses.

    The environment variable HF_ENDPOINT names another server, HF_TOKEN lets into repositories that ask for it.

    Raises:
        MissingExtra: huggingface_hub is not installed.
        DownloadError: no such repository, revision or file, no connection, or a network that cannot be used here.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingExtra("huggingface_hub", "hub", f"'hf:{repository}'") from error
    endpoint = os.environ.get("HF_ENDPOINT") or None
    shown = f"hf:{repository}" + (f"@{revision}" if revision != "main" else "")
    try:
        found = huggingface_hub.HfApi(endpoint=endpoint).model_info(repository, revision=revision)
        names = [one.rfilename for one in found.siblings or []]
        chosen = _asked(names, file, shown) if file else wanted(names, kind, shown)
        commit = str(found.sha)
        with _bars(progress):
            for name in chosen:
                huggingface_hub.hf_hub_download(
                    repository, name, revision=commit, local_dir=folder, endpoint=endpoint
                )
    except DownloadError:
        raise
    except Exception as error:  # its own errors, those of its HTTP library, and those of validation
        raise DownloadError(f"{shown} could not be downloaded: {_reason(error)}") from error
    return commit, chosen


def _asked(names: list[str], file: str, shown: str) -> list[str]:
    if file not in names:
        raise DownloadError(f"{shown} has no file {file!r}; it has {', '.join(sorted(names)[:12])}")
    return [file]


def wanted(names: Iterable[str], kind: str, shown: str) -> list[str]:
    """Which files of a repository make up the network: configurations, and one copy of the weights.

    Raises:
        DownloadError: it holds no network of this kind, or one of an autoencoder's codes.
    """
    files = sorted(names)
    if kind == ANY:
        kind = "denoiser" if any("diffusion_pytorch_model" in file for file in files) else "classifier"
    if kind == "denoiser":
        if coded := next(
            (name for name in _CODED if any(file.startswith(f"{name}/") for file in files)), None
        ):
            raise DownloadError(f"{shown} denoises the codes of an autoencoder ({coded}), not images")
        folders = (
            [""] if "config.json" in files else sorted({f.split("/")[0] + "/" for f in files if _unet(f)})
        )
        configs = [f for f in files if f in CONFIGS or (f.startswith("scheduler/") and f.endswith(".json"))]
        configs += [f"{folder}config.json" for folder in folders if folder]
        weights = [w for folder in folders for w in _weights(files, folder, "diffusion_pytorch_model")]
        expected = "a UNet2DModel of diffusers: config.json and diffusion_pytorch_model.safetensors or .bin"
    else:
        configs = [file for file in files if file == "config.json"]
        weights = [f for f in files if f == "classifier.safetensors"] or _weights(
            files, "", "model", "pytorch_model"
        )
        expected = "config.json and model.safetensors of timm, or classifier.safetensors of fastpure"
    if not weights:
        remedy = f"Name one file: {shown}:FILE"
        raise DownloadError(
            f"{shown}: expected {expected}, found {', '.join(files[:12]) or 'nothing'}. {remedy}"
        )
    return sorted({*configs, *weights})


def _unet(file: str) -> bool:
    parts = file.split("/")
    return len(parts) == 2 and "unet" in parts[0] and parts[1] == "config.json"


def _weights(files: list[str], folder: str, *stems: str) -> list[str]:
    """The safetensors, or else the older copy of them."""
    for stem in stems:
        for ending in ("safetensors", "bin"):
            if (name := f"{folder}{stem}.{ending}") in files:
                return [name]
    return []


class _bars:
    """The library's progress bars, on or off for a while."""

    def __init__(self, shown: bool) -> None:
        self.shown = shown

    def __enter__(self) -> None:
        from huggingface_hub import utils

        self.before = utils.are_progress_bars_disabled()
        if not self.shown:
            utils.disable_progress_bars()

    def __exit__(self, *_: object) -> None:
        from huggingface_hub import utils

        if not self.shown and not self.before:
            utils.enable_progress_bars()


def _reason(error: Exception) -> str:
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:300]}" if words else type(error).__name__

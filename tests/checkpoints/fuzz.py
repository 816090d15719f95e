"""Mutated weights and configurations, given to every reader: `fuzz_readers` counts what must never happen.

Everything is seeded, so that a finding can be repeated: ``python -m tests.checkpoints.fuzz 600 0 --show`` prints them.
It runs in a process of its own, whose memory is limited and whose every call of another program is noticed.
"""

from __future__ import annotations

import copy
import io
import json
import os
import pickletools
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOM = 256 << 20
SECONDS = 10
#: Audit events of another program, or of the network.
STARTS = (
    "os.system",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "subprocess.Popen",
    "pty.spawn",
    "socket.connect",
)
NUMBERS = (-1, 0, 1, 3, 10**9, 10**30, 2**63, 0.5, -0.5, 1e400, float("nan"), True, None)
#: What a configuration's fields become.
VALUES = (
    *NUMBERS,
    *("", "x", "1,2", "9" * 50, "vesde", "cosine", "epsilon"),
    *([], [0], [10**9], [1] * 5000, [1] * 13, [[1]], {}, {"a": 1}),
)


def fuzz_readers(inputs: int = 600, seed: int = 0, *options: str) -> dict[str, int]:
    """{"inputs", "tracebacks", "hangs", "allocations", "executed"}: how many there were, and how many of each fault."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.checkpoints.fuzz", str(inputs), str(seed), *options]
    ended = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    if ended.returncode != 0:
        raise AssertionError(f"the fuzz itself ended with {ended.returncode}: {ended.stderr[-2000:]}")
    return json.loads(ended.stdout.splitlines()[-1])


# -------------------------------------------------------------------------------------------------- what is mutated
Load = Callable[[Path], Any]


def sources(folder: Path) -> dict[str, tuple[Path, Load]]:
    """Name -> (a good file or folder, how it is loaded): every format in every container."""
    import torch

    from fastpure import load_classifier, load_denoiser
    from fastpure.classifiers import CifarResNet, CifarResNetConfig, WideResNet, save_classifier
    from fastpure.zoo import weights_path
    from tests.checkpoints.pickles import edm_pickle
    from tests.classifiers.helpers import WIDE, used
    from tests.golden import FOLDER, config

    score, settings = FOLDER / "score_sde_checkpoint_tiny.pth", FOLDER / "score_sde_checkpoint_tiny.json"
    from fastpure.checkpoints.sources import load_torch

    model = {name: value.clone() for name, value in load_torch(score)["model"].items()}
    torch.save({"model": model}, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    wide, preact = used(WideResNet(WIDE)), used(CifarResNet(CifarResNetConfig(blocks=(1, 1, 1, 1), width=4)))
    both = {
        "state_dict": wide.state_dict(),
        "state_dict_ema": used(WideResNet(WIDE), 1).state_dict(),
        "epoch": 3,
    }
    torch.save(both, folder / "timm.pth")
    torch.save(preact.state_dict(), folder / "cifar.pt", _use_new_zipfile_serialization=False)
    own = save_classifier(wide, folder / "wide.safetensors")
    shutil.copytree(FOLDER / "diffusers_ddpm_tiny", folder / "unet")
    edm = {**config("edm_adm_tiny"), "precond": "edm"}
    plain = {"format": "score_sde", "config": FOLDER / "ddpmpp_ddpmblock_tiny.json"}
    return {
        "score_sde.pth": (score, lambda p: load_denoiser(p, config=settings)),
        "legacy.pth": (folder / "legacy.pth", lambda p: load_denoiser(p, config=settings)),
        "score_sde.safetensors": (
            FOLDER / "ddpmpp_ddpmblock_tiny.safetensors",
            lambda p: load_denoiser(p, **plain),
        ),
        "edm.safetensors": (FOLDER / "edm_adm_tiny.safetensors", lambda p: load_denoiser(p, config=edm)),
        "edm.pkl": (edm_pickle(folder)[0], load_denoiser),
        "native.safetensors": (weights_path("denoiser", "digits"), load_denoiser),
        "diffusers": (folder / "unet", load_denoiser),
        "timm.pth": (folder / "timm.pth", lambda p: load_classifier(p, normalise="none")),
        "cifar.pt": (folder / "cifar.pt", lambda p: load_classifier(p, normalise="none")),
        "classifier.safetensors": (own, load_classifier),
    }


def configurations() -> dict[str, tuple[dict[str, Any], Callable[[Any], Any]]]:
    """Name -> (a good configuration, what loads with it)."""
    from fastpure import load_denoiser
    from fastpure.nets import named_config
    from tests.golden import FOLDER, config

    adm = {**config("adm_tiny")["create_model_kwargs"], "noise_schedule": "linear", "diffusion_steps": 1000}
    edm = {**config("edm_ddpmpp_tiny"), "precond": "vp"}
    unet = json.loads((FOLDER / "diffusers_ddpm_tiny" / "config.json").read_text())
    ours = {
        "image_size": 8,
        "nf": 8,
        "ch_mult": [1, 2],
        "n_blocks": 1,
        "attn_resolutions": [4],
        "dropout": 0.1,
    }
    return {
        "score_sde": (
            config("ddpmpp_ddpmblock_tiny")["config"],
            lambda c: load_denoiser(
                FOLDER / "ddpmpp_ddpmblock_tiny.safetensors", format="score_sde", config=c
            ),
        ),
        "guided_diffusion": (adm, lambda c: load_denoiser(FOLDER / "adm_tiny.pt", config=c)),
        "edm": (edm, lambda c: load_denoiser(FOLDER / "edm_ddpmpp_tiny.safetensors", config=c)),
        "diffusers": (unet, lambda c: load_denoiser(FOLDER / "diffusers_ddpm_tiny", config=c)),
        "ours": (ours, lambda c: named_config(dict(c))),
    }


# ------------------------------------------------------------------------------------------------------- mutations
def truncated(content: bytes, chance: random.Random) -> bytes:
    return content[: int(len(content) * chance.choice((0, 0.001, 0.01, 0.3, 0.7, 0.99, 0.9999)))]


def flipped(content: bytes, chance: random.Random) -> bytes:
    """Bits changed, most of them at the two ends, where the structure stands."""
    made = bytearray(content)
    for _ in range(chance.choice((1, 2, 8, 32))):
        span = chance.choice((64, 2000, len(made)))
        at = chance.randrange(min(span, len(made)))
        at = at if chance.random() < 0.6 else len(made) - 1 - at
        made[at] ^= 1 << chance.randrange(8)
    return bytes(made)


def overwritten(content: bytes, chance: random.Random) -> bytes:
    made, at = bytearray(content), chance.randrange(len(content))
    filling = chance.choice((b"\xff", b"\x00", b"(", b"]", b".", b"\x8e\xff\xff\xff\xff\xff\xff\xff\x0f"))
    length = chance.choice((1, 8, 100))
    made[at : at + length] = (filling * length)[:length]
    return bytes(made)


def inflated(content: bytes, chance: random.Random) -> bytes:
    """Digits and counts made large: sizes in a safetensors header, integers of a pickle."""
    if content[8:9] == b"{":
        size = struct.unpack("<Q", content[:8])[0]
        if chance.random() < 0.2:
            return struct.pack("<Q", chance.choice((size * 1000, 1 << 40, (1 << 64) - 1))) + content[8:]
        header = content[8 : 8 + size].decode()
        digits = [i for i, letter in enumerate(header) if letter.isdigit()]
        at = chance.choice(digits)
        header = (
            header[:at]
            + chance.choice(("9" * 12, "9" * 30, "-1", "1e99", '"x"', "[" * 2000))
            + header[at + 1 :]
        )
        return struct.pack("<Q", len(header)) + header.encode() + content[8 + size :]
    integers = []
    try:
        for operation, _, position in pickletools.genops(content):
            if operation.name in ("BININT1", "BININT", "BININT2") and position is not None:
                integers.append((position, {"BININT1": 2, "BININT2": 3, "BININT": 5}[operation.name]))
    except Exception:
        pass
    if not integers:
        return flipped(content, chance)
    at, length = chance.choice(integers)
    return (
        content[:at]
        + b"J"
        + struct.pack("<i", chance.choice((2**31 - 1, -1, 10**6, 0)))
        + content[at + length :]
    )


def hostile(content: bytes, chance: random.Random) -> bytes:
    """Programs in place of data: calls of anything, states for anything, memory and time without end."""
    marker = f"touch {os.environ['FUZZ_MARKER']}".encode()
    call = chance.choice(
        (
            b"cos\nsystem\nX" + struct.pack("<I", len(marker)) + marker + b"\x85R",
            b"cposix\nsystem\nX" + struct.pack("<I", len(marker)) + marker + b"\x85R",
            b"cbuiltins\neval\nX\x06\x00\x00\x00exit()\x85R",
            b"csubprocess\nPopen\nX\x04\x00\x00\x00true\x85R",
            b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R",
            b"ctorch\nzeros\nJ\xff\xff\xff\x7f\x85R",
            b"ctorch.storage\n_load_from_bytes\nC\x05\x80\x02K\x01.\x85R",
            b"ctorch._utils\n_rebuild_tensor_v2\n(NK\x00(K\x01t(K\x00t\x89}tR",
            b"ccollections\nOrderedDict\n}X\x01\x00\x00\x00aK\x01sb",
            b"ctorch.nn.modules.linear\nLinear\n)R}X\x08\x00\x00\x00__init__K\x01sb",
            b"ctraining.networks\nEDMPrecond\n)\x81}X\x08\x00\x00\x00_modules}sb",
            b")" + b"q\x01h\x01\x86" * 40 + b"q\x02}h\x02K\x01s",
            b"]" + b"q\x01h\x01a" + b"(h\x01h\x01l" * 40,
            b"K\x01r\xff\xff\xff\x7f",
            b"\x8e\xff\xff\xff\xff\xff\xff\xff\x3f",
            b"\x95\xff\xff\xff\xff\xff\xff\xff\x3f",
            b"\x8b\xff\xff\xff\x7f",
            b"(" * 100_000 + b"t" * 100_000,
            b"]" * 50_000 + b"a" * 49_999,
            b"I" + b"9" * 10_000 + b"\n",
        )
    )
    dictionary = b"\x80\x02}X\x03\x00\x00\x00ema" + call + b"s."
    return chance.choice((b"\x80\x02" + call + b".", dictionary, content[: len(content) // 2] + call + b"."))


BYTES = (truncated, flipped, flipped, overwritten, inflated, hostile)


def in_archive(path: Path, chance: random.Random) -> bytes:
    """A zip archive whose pickle is mutated and whose checksums are right again, or whose members lie."""
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    pickled = next(name for name in members if name.endswith("data.pkl"))
    what = chance.random()
    if what < 0.8:
        members[pickled] = chance.choice(BYTES)(members[pickled], chance)
    else:
        name = chance.choice(sorted(members))
        members[name] = chance.choice((b"", bytes(1 << 20), members[name][:-1], b"\xff" * len(members[name])))
    made = io.BytesIO()
    with zipfile.ZipFile(
        made, "w", chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    ) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return made.getvalue()


def changed(content: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """A configuration with a field or two changed, left out or added."""
    made = copy.deepcopy(content)
    for _ in range(chance.choice((1, 1, 2))):
        part = made
        while nested := [name for name, value in part.items() if isinstance(value, dict) and value]:
            if chance.random() < 0.2:
                break
            part = part[chance.choice(nested)]
        name = chance.choice(sorted(part)) if part and chance.random() < 0.9 else "surprise"
        if chance.random() < 0.15:
            part.pop(name, None)
        else:
            part[name] = copy.deepcopy(chance.choice(VALUES))
    return made


# --------------------------------------------------------------------------------------------------------- the run
def cases(count: int, seed: int, folder: Path) -> Iterator[tuple[str, int, Callable[[], Any]]]:
    """(name, size of the input, the load) of every input."""
    chance = random.Random(seed)
    files, settings = sources(folder), configurations()
    for index in range(count):
        target = folder / f"case{index}"
        if index % 3 == 2:
            name = chance.choice(sorted(settings))
            content, load = settings[name]
            made = changed(content, chance)
            if name != "ours" and chance.random() < 0.5:
                text = json.dumps(made)
                kind = chance.random()
                text = (
                    truncated(text.encode(), chance).decode()
                    if kind < 0.15
                    else "[" * 10**5
                    if kind < 0.2
                    else text
                )
                made = target.with_suffix(".json")
                made.write_text(text)
            yield f"configuration {name} {index}", 1 << 20, lambda load=load, made=made: load(made)
            continue
        name = chance.choice(sorted(files))
        path, load = files[name]
        if path.is_dir():
            shutil.copytree(path, target)
            victim = chance.choice(sorted(target.glob("*.json")) + sorted(target.glob("*.safetensors")))
            if victim.suffix == ".json" and chance.random() < 0.8:
                victim.write_text(json.dumps(changed(json.loads(victim.read_text()), chance)))
            else:
                victim.write_bytes(chance.choice(BYTES)(victim.read_bytes(), chance))
            size = sum(file.stat().st_size for file in target.iterdir())
        else:
            target = target.with_suffix(path.suffix)
            if zipfile.is_zipfile(path) and chance.random() < 0.6:
                target.write_bytes(in_archive(path, chance))
            else:
                target.write_bytes(chance.choice(BYTES)(path.read_bytes(), chance))
            size = target.stat().st_size
        yield f"{name} {index}", size, lambda load=load, target=target: load(target)


class Slow(BaseException):
    """Raised by the clock."""


def peak() -> int:
    """Most memory that was in use since the last call of `forget`, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def forget() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_sentence(error: BaseException) -> bool:
    """Whether this is one of our exceptions: of our types, or a caller's mistake that names the argument."""
    from fastpure.errors import FastpureError

    return isinstance(error, FastpureError) or (type(error) in (ValueError, TypeError) and "`" in str(error))


def faults(count: int, seed: int, folder: Path) -> Iterator[tuple[str, int, Callable[[], Any]]]:
    """One input of every fault, which the run must notice."""
    import numpy

    yield "traceback", 0, lambda: {}["missing"]
    yield "raw ValueError", 0, lambda: int("x")
    yield "hang", 0, lambda: time.sleep(60)
    yield "allocation", 0, lambda: numpy.ones(ROOM // 8 + (8 << 20)).sum()
    yield "refused allocation", 0, lambda: numpy.ones(1 << 40)
    yield "program", 0, lambda: os.system("true")
    yield "code", 0, lambda: Path(os.environ["FUZZ_MARKER"]).touch()


def run(count: int, seed: int, show: bool, inputs: Any = cases, seconds: int = SECONDS) -> dict[str, int]:
    found = dict.fromkeys(("inputs", "tracebacks", "hangs", "allocations", "executed"), 0)
    begun: list[str] = []
    watching = False

    def watch(event: str, _: Any) -> None:
        if watching and event.startswith(STARTS):
            begun.append(event)

    def clock(*_: Any) -> None:
        raise Slow

    def report(what: str, name: str, error: Any) -> None:
        found[what] += 1
        if show:
            print(what, name, type(error).__name__, str(error)[:300], file=sys.stderr)

    sys.addaudithook(watch)
    signal.signal(signal.SIGALRM, clock)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        marker = folder / "executed"
        os.environ["FUZZ_MARKER"] = str(marker)
        for name, size, load in inputs(count, seed, folder):
            found["inputs"] += 1
            allowed, error = 4 * size + ROOM, None
            forget()
            before = peak()
            held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (held + allowed, resource.RLIM_INFINITY))
            signal.alarm(seconds)
            watching = True
            try:
                load()
            except BaseException as raised:
                error = raised
            finally:
                watching = False
                signal.alarm(0)
                resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            causes = list(chain(error))
            if any(isinstance(cause, Slow) for cause in causes):
                report("hangs", name, error)
            elif error is not None and not is_sentence(error):
                report("tracebacks", name, error)
            refused = any(isinstance(c, MemoryError) or "allocate memory" in str(c) for c in causes)
            if refused or peak() - before > allowed:
                report("allocations", name, error)
            if begun or marker.exists():
                report("executed", name, begun)
                begun.clear()
                marker.unlink(missing_ok=True)
    return found


if __name__ == "__main__":
    checked = {"inputs": faults, "seconds": 1} if "--faults" in sys.argv else {}
    print(json.dumps(run(int(sys.argv[1]), int(sys.argv[2]), "--show" in sys.argv, **checked)))

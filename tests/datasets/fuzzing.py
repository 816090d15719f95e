"""Damaged, lying and hostile inputs for the readers of `fastpure.data` and of ``fastpure purify``, and what they do.

`fuzz` is the one function: it gives counts, which `docs/guarantees.md` shows, and what went wrong. It works in a
process of its own, and reads each input in a fork of that: whatever an input does to its reader is seen from outside.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

SECONDS = 10
SPARE = 256 * 2**20
"""An input may take this much memory and four times its size."""
PROGRAMS = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.startfile",
    "pty.spawn",
    "subprocess.Popen",
)

Read = Callable[[Path], Any]
Make = Callable[[random.Random, Path], Read]


def fuzz(inputs: int = 200, seed: int = 0) -> dict[str, Any]:
    """Read ``inputs`` mutated inputs, the same ones for the same seed.

    Returns:
        ``inputs``; how many were ``read`` and ``refused`` (with a `FastpureError` of one sentence); and, of all, how
        many gave ``tracebacks`` (anything else that was raised, or a crash), ``hangs`` (over 10 s), ``allocations``
        (over four times the input and 256 MB), ``executed`` code, or started ``programs``; ``failures`` has a line for
        each of those.
    """
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "tests.datasets.fuzzing", str(inputs), str(seed)]
    answer = subprocess.run(
        command,
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode != 0:
        raise RuntimeError(f"the fuzz itself failed: {answer.stderr[-2000:]}")
    return json.loads(answer.stdout.splitlines()[-1])


# What is mutated. Each maker writes one input into an empty folder and says how it is read.


def _encoded(image: Any, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _pictures() -> dict[str, bytes]:
    import numpy as np
    from PIL import Image

    noise = np.random.RandomState(0)
    colour = Image.fromarray(noise.randint(0, 256, (12, 16, 3), dtype=np.uint8))
    levels = Image.fromarray(noise.randint(0, 65536, (12, 16)).astype(np.uint16))
    clear = Image.fromarray(noise.randint(0, 256, (12, 16, 4), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6

    def two(kind: str) -> bytes:  # new ones, since saving leaves marks in images
        return _encoded(
            colour.copy(), kind, save_all=True, append_images=[colour.convert("L").convert("RGB")]
        )

    return {
        "rgb.png": _encoded(colour, "PNG", exif=exif),
        "grey16.png": _encoded(levels, "PNG"),
        "palette.png": _encoded(colour.convert("P"), "PNG", transparency=3),
        "clear.png": _encoded(clear, "PNG"),
        "moving.png": two("PNG"),
        "photo.jpg": _encoded(colour, "JPEG", exif=exif),
        "progressive.jpeg": _encoded(colour, "JPEG", progressive=True),
        "cmyk.jpg": _encoded(colour.convert("CMYK"), "JPEG"),
        "two.jpg": two("MPO"),
        "plain.bmp": _encoded(colour, "BMP"),
        "palette.bmp": _encoded(colour.convert("P"), "BMP"),
        "colour.ppm": _encoded(colour, "PPM"),
        "text.ppm": b"P3 4 2 255\n" + b" ".join(b"%d" % i for i in range(24)),
        "grey16.pgm": _encoded(levels, "PPM"),
        "plain.tif": _encoded(colour, "TIFF", exif=exif),
        "lzw.tiff": _encoded(clear, "TIFF", compression="tiff_lzw"),
        "deflate.tiff": _encoded(levels, "TIFF", compression="tiff_adobe_deflate"),
        "pages.tif": two("TIFF"),
        "lossless.webp": _encoded(clear, "WEBP", lossless=True),
        "moving.webp": two("WEBP"),
        "script.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    }


def _picture(rng: random.Random, folder: Path) -> Read:
    name = rng.choice(sorted(PICTURES))
    content = _mutated(rng, PICTURES[name])
    if content.startswith(b"\x89PNG") and rng.random() < 0.7:
        content = _png_checksums(content)  # so that the damage gets past them
    (folder / "a").mkdir()
    (folder / "a" / name).write_bytes(content)
    kind = rng.choice(["folder", "imagenet", "purify"])
    return _purify if kind == "purify" else _dataset(kind)


def _npy(rng: random.Random) -> bytes:
    import numpy as np

    kinds = (np.uint8, np.float32, np.float16, np.int64, ">f8", "U3", object, bool)
    shapes = ((4, 8, 8), (4, 1, 8, 8), (4, 8, 8, 3), (4,), (), (0, 8, 8), (4, 3, 8, 8))
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(rng.choice(shapes), rng.choice(kinds)))
    content = buffer.getvalue()
    if rng.random() < 0.5:  # a header that claims something else
        claims = (
            b"(4, 8, 8)",
            b"(99999999999,)",
            b"(-4, 8, 8)",
            b"(4, 9**9, 8)",
            b"(((((",
            b"(1000000000, 0, 8)",
        )
        head = b"{'descr': '%s', 'fortran_order': False, 'shape': %s, }"
        text = head % (
            rng.choice([b"|u1", b"<f4", b"|O", b"<U0", b"|V9", b"<f16", b"<i8"]),
            rng.choice(claims),
        )
        text += b" " * (117 - len(text)) + b"\n"
        content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content[128:]
    return _mutated(rng, content) if rng.random() < 0.5 else content


def _lone_array(rng: random.Random, folder: Path) -> Read:
    (folder / "in.npy").write_bytes(_npy(rng))
    return _purify


def _array_folder(rng: random.Random, folder: Path) -> Read:
    for name in ("images", "labels", "ids"):
        if rng.random() < 0.9:
            (folder / f"{name}.npy").write_bytes(_npy(rng))
    return _dataset("arrays")


def _archive(rng: random.Random, folder: Path) -> Read:
    import numpy as np

    honest = {
        "x": np.zeros((4, 1, 8, 8), np.float32),
        "x_adv": np.ones((4, 1, 8, 8), np.float32),
        "labels": np.arange(4),
        "sample_ids": np.arange(4),
        "classes": np.array(list("abcd")),
        "about": np.array("{}"),
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
        for name, array in honest.items():
            if rng.random() < 0.1:
                continue
            plain = io.BytesIO()
            np.save(plain, array)
            content = plain.getvalue()
            if rng.random() < 0.2:
                content = rng.choice([_npy(rng), _mutated(rng, content), b"", bytes(2**22)])
            archive.writestr(f"{name}.npy", content)
    content = buffer.getvalue()
    (folder / "set.npz").write_bytes(_mutated(rng, content) if rng.random() < 0.5 else content)
    return rng.choice([_dataset("arrays", "set.npz"), _purify])


def _bomb(rng: random.Random, folder: Path) -> Read:
    """Zeros, a thousand times smaller in the file."""
    size, kind = rng.choice([10, 200, 280]) * 10**6, rng.choice(["npz", "tar.gz", "png"])
    if kind == "png":
        from PIL import Image

        side = rng.choice([4000, 6000, 13000])
        (folder / "a").mkdir()
        (folder / "a" / "0.png").write_bytes(_encoded(Image.new("1", (side, side)), "PNG"))
        return rng.choice([_dataset("imagenet"), _dataset("folder"), _purify])
    if kind == "tar.gz":
        path = folder / "cifar-10-python.tar.gz"
        with gzip.open(path, "wb", compresslevel=1) as file:
            for _ in range(size // 10**6):
                file.write(bytes(10**6))
        return _dataset("cifar10", path.name)
    with zipfile.ZipFile(folder / "set.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        text = b"{'descr': '|u1', 'fortran_order': False, 'shape': (%d, 8, 8), }" % (size // 64)
        text += b" " * (117 - len(text)) + b"\n"
        with archive.open("images.npy", "w", force_zip64=True) as member:
            member.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text)
            for _ in range(size // 64 // 10**5):
                member.write(bytes(64 * 10**5))
            member.write(bytes(size // 64 % 10**5 * 64))
    return rng.choice([_dataset("arrays", "set.npz"), _purify])


def _pack(rng: random.Random, folder: Path) -> Read:
    import numpy as np
    from PIL import Image

    parts = [
        PICTURES["photo.jpg"],
        PICTURES["progressive.jpeg"],
        _encoded(Image.new("RGB", (16, 12)), "JPEG"),
    ]
    parts = [_mutated(rng, part) if rng.random() < 0.3 else part for part in parts]
    arrays: dict[str, Any] = {
        "jpeg": np.frombuffer(b"".join(parts), np.uint8),
        "offsets": np.cumsum([0, *map(len, parts)]),
        "labels": np.array([0, 1, 2]),
        "classes": np.array(list("abc")),
    }
    for name in arrays:
        if rng.random() < 0.1:
            wrong = (
                np.zeros(3),
                np.full(3, 2**62),
                np.array(-1),
                np.zeros((3, 3), np.uint8),
                np.full(4, 2**64 - 1),
            )
            arrays[name] = rng.choice(wrong)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    content = buffer.getvalue()
    (folder / "pack.npz").write_bytes(_mutated(rng, content) if rng.random() < 0.4 else content)
    return _dataset(rng.choice(["cifar10", "arrays"]), "pack.npz")


def _cifar(rng: random.Random, folder: Path) -> Read:
    from tests.datasets.test_cifar import binary_files, python_files, tar

    python = rng.random() < 0.7
    files = python_files() if python else binary_files()
    name = rng.choice(sorted(files)) if rng.random() < 0.3 else ("test_batch" if python else "test_batch.bin")
    marker = str(folder.parent / "executed")
    hostile = [
        b"\x80\x02]r\xff\xff\xff\x7f.",
        b"\x80\x02cnumpy\nndarray\n(J\xff\xff\xff\x7ftR.",
        b"cposix\nsystem\n(S'touch " + marker.encode() + b"'\ntR.",
        pickle.dumps(_Touch(marker), 2),
        b"(" * 10**5,
        b"\x80\x02" + b"(" * 10**5 + b"t" * 10**5 + b".",
    ]
    files[name] = rng.choice(hostile) if python and rng.random() < 0.3 else _mutated(rng, files[name])
    if rng.random() < 0.5:
        for file, content in files.items():
            (folder / file).write_bytes(content)
        return _dataset("cifar10")
    path = tar(folder / "cifar-10-python.tar.gz", files)
    if rng.random() < 0.5:
        packed = path.read_bytes()
        path.write_bytes(
            _mutated(rng, packed)
            if rng.random() < 0.5
            else gzip.compress(_mutated(rng, gzip.decompress(packed)), 1)
        )
    return _dataset("cifar10", path.name)


class _Touch:
    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(self.marker),)


def _tree(rng: random.Random, folder: Path) -> Read:
    """A folder with pipes, loops, sockets, odd names, missing classes."""
    folders = [folder]
    for _ in range(rng.randint(0, 12)):
        where = rng.choice(folders)
        name = rng.choice(
            ["a", "b", ".c", "x.png", "0.PNG", "é\udcff.png", "new\nline.jpg", "t.txt", "g.gif", "val"]
        )
        path = where / name
        if path.is_symlink() or path.exists():
            continue
        kind = rng.choice(
            ["folder", "folder", "picture", "picture", "empty", "pipe", "link", "loop", "device", "self"]
        )
        if kind == "folder":
            path.mkdir()
            folders.append(path)
        elif kind in ("picture", "empty"):
            path.write_bytes(PICTURES["plain.bmp"] if kind == "picture" else b"")
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            target = {"link": rng.choice(folders), "loop": where, "device": Path("/dev/zero"), "self": path}[
                kind
            ]
            path.symlink_to(target)
    return rng.choice([_dataset("folder"), _dataset("imagenet"), _purify])


MAKERS: dict[str, Make] = {
    "picture": _picture,
    "npy": _lone_array,
    "folder of npy": _array_folder,
    "npz": _archive,
    "bomb": _bomb,
    "pack": _pack,
    "cifar": _cifar,
    "tree": _tree,
}
WEIGHTS = (8, 3, 1, 4, 1, 2, 3, 3)
PICTURES: dict[str, bytes] = {}


def _mutated(rng: random.Random, content: bytes) -> bytes:
    """One to three changes: bits, numbers at their borders, cuts, repetitions."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data) + 1) if rng.random() < 0.5 else rng.randrange(min(len(data), 64) + 1)
        kind = rng.randrange(7)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            number = rng.choice([0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1])
            form = rng.choice(["<H", ">H", "<I", ">I"])
            data[at : at + struct.calcsize(form)] = struct.pack(
                form, number % 2 ** (8 * struct.calcsize(form))
            )
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + rng.randint(1, 40)]
        elif kind == 4:
            data[at:at] = data[at : at + rng.randint(1, 2000)]
        elif kind == 5:
            data[at : at + 20] = bytes(min(20, len(data) - at))
        else:
            data[at : at + 8] = rng.randbytes(8)
    return bytes(data)


def _png_checksums(content: bytes) -> bytes:
    """The same chunks with the checksums that belong to them."""
    result, at = content[:8], 8
    while at + 12 <= len(content):
        length = struct.unpack(">I", content[at : at + 4])[0]
        body = content[at + 4 : at + 8 + length]
        result += content[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return result + content[at:]


# How it is read, and what is seen of that from outside.


def _dataset(name: str, file: str = "") -> Read:
    def read(folder: Path) -> Any:
        from fastpure.data import load_dataset

        return load_dataset(name, path=folder / file).checksum

    return read


def _purify(folder: Path) -> Any:
    """What `fastpure purify` does with its inputs before the network, and after it."""
    import numpy as np

    from fastpure.purify.files.inputs import ArrayFile, find_sources, remarks

    sources = find_sources([folder])
    remarks([folder], sources)
    for source in sources:
        shape = (1, 8, 8) if isinstance(source, ArrayFile) else (3, 12, 16)
        source.digest()
        starts = range(0, source.count, 256)
        parts = [source.load(range(start, min(start + 256, source.count)), shape) for start in starts]
        encoded = np.concatenate([source.encode(part) for part in parts])
        source.write(folder.parent / "out" / source.name, encoded)


def _observed(read: Read, folder: Path, marker: Path) -> dict[str, Any]:
    """Read in a fork; what came of it."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    bound = SPARE + 4 * size
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(receiver)
            os.write(sender, json.dumps(_child(read, folder, bound)).encode())
        finally:
            os._exit(0)
    os.close(sender)
    started = time.monotonic()
    with os.fdopen(receiver, "rb") as pipe:
        said = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    found = json.loads(said) if said else {"raised": f"ended with status {status}", "kind": "traceback"}
    found["hang"] = status == -signal.SIGALRM or time.monotonic() - started > SECONDS
    found["executed"] = marker.exists()
    marker.unlink(missing_ok=True)
    return found


def _child(read: Read, folder: Path, bound: int) -> dict[str, Any]:
    from fastpure.errors import FastpureError

    programs: list[str] = []
    sys.addaudithook(lambda event, _: programs.append(event) if event in PROGRAMS else None)
    pages = [int(number) for number in Path("/proc/self/statm").read_text().split()]
    virtual, resident = pages[0] * resource.getpagesize(), pages[1] * resource.getpagesize()
    # Memory that is taken and never touched does not count as resident: taking it fails instead.
    resource.setrlimit(resource.RLIMIT_AS, (virtual + bound + SPARE // 4,) * 2)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(SECONDS)
    kind, raised, starved = "read", "", False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(folder)
    except FastpureError as error:
        sentence = 20 < len(str(error)) < 1000 and "Traceback" not in str(error)
        kind, raised = "refused" if sentence else "traceback", f"{type(error).__name__}: {error}"
        starved = isinstance(error.__cause__, MemoryError)
    except BaseException as error:
        kind, raised = "traceback", f"{type(error).__name__}: {error}"
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - resident
    return {
        "kind": kind,
        "raised": raised[:500],
        "allocation": starved or taken > bound,
        "taken": taken,
        "programs": len(programs),
    }


def _main(inputs: int, seed: int) -> dict[str, Any]:
    import torch
    from PIL import Image

    from fastpure.data import cifar

    torch.set_num_threads(1)
    Image.init()
    PICTURES.update(_pictures())
    cifar.CIFAR10 = replace(cifar.CIFAR10, counts={"train": 20, "test": 20})
    counts: dict[str, Any] = dict.fromkeys(
        ("inputs", "read", "refused", "tracebacks", "hangs", "allocations", "executed", "programs"), 0
    )
    failures = []
    with tempfile.TemporaryDirectory() as name:
        for number in range(inputs):
            rng = random.Random(f"{seed} {number}")
            kind = rng.choices(list(MAKERS), WEIGHTS)[0]
            folder = Path(name, str(number), "in")
            folder.mkdir(parents=True)
            found = _observed(MAKERS[kind](rng, folder), folder, folder.parent / "executed")
            counts["inputs"] += 1
            counts["read"] += found["kind"] == "read"
            counts["refused"] += found["kind"] == "refused"
            wrong = {
                "tracebacks": found["kind"] == "traceback" and not found["hang"],
                "hangs": found["hang"],
                "allocations": found.get("allocation", False),
                "executed": found["executed"],
                "programs": found.get("programs", 0) > 0,
            }
            for what, happened in wrong.items():
                counts[what] += happened
            if any(wrong.values()):
                failures.append(f"input {number} ({kind}): {[w for w in wrong if wrong[w]]} {found}")
            if os.environ.get("FUZZ_VERBOSE"):
                print(number, kind, found, file=sys.stderr)
            subprocess.run(["rm", "-rf", str(folder.parent)], check=True)
    return {**counts, "failures": failures}


if __name__ == "__main__":
    print(json.dumps(_main(int(sys.argv[1]), int(sys.argv[2]))))

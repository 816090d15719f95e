"""What `.ci/ray_check` runs on its two hosts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import fastpure as fp
from fastpure.evaluate import merge
from fastpure.evaluate.store import RunStore
from tests.evaluate.toys import attack, dataset, defense

HEAD = "10.77.0.1"
IMAGES = 32


class Slow(nn.Module):
    """A classifier that takes its time, and kills the first worker on the head that calls it often enough."""

    def __init__(self, classifier: nn.Module, marker: str, pause: float) -> None:
        super().__init__()
        self.classifier, self.marker, self.pause, self.calls = classifier, marker, pause, 0
        self.eval()

    def forward(self, u: Tensor) -> Tensor:
        import ray

        time.sleep(self.pause)
        self.calls += 1
        in_worker = ray.is_initialized() and ray.get_runtime_context().worker.mode == ray.WORKER_MODE
        if in_worker and self.calls > 20 and ray.util.get_node_ip_address() == HEAD:
            try:
                os.close(os.open(self.marker, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return self.classifier(u)


def evaluate(target: nn.Module, out: Path | None, **settings: object) -> fp.Report:
    how = fp.protocols.fresh(3)
    return fp.evaluate(target, dataset(IMAGES), attack(), how, out, batch_size=2, progress=False, **settings)


def cluster(folder: Path) -> None:
    """Evaluate on both hosts; one is cut off after some blocks, one worker kills itself on the other."""
    import ray

    marker = folder / "killed"
    target = defense()
    target.classifier = Slow(target.classifier, str(marker), 0.0)
    expected = evaluate(target, None).digest
    ray.init(log_to_driver=False, logging_level="ERROR")
    hosts = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    assert len(hosts) == 2, f"a cluster of {hosts}"
    target.classifier.pause = 0.1
    write, written, cut = RunStore.write, [0], [0.0]

    def counted(self: RunStore, *arguments: object) -> None:
        write(self, *arguments)
        written[0] += 1
        if written[0] == 5:
            subprocess.run(["ip", "-n", "fastpure-b", "link", "set", "fastpure-vb", "down"], check=True)
            cut[0] = time.monotonic()

    RunStore.write = counted  # type: ignore[method-assign]
    began = time.monotonic()
    report = evaluate(target, folder / "ray.sqlite", engine="ray")
    took, after = time.monotonic() - began, time.monotonic() - cut[0]
    alive = [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]
    assert marker.exists(), "a worker was killed"
    assert alive == [HEAD], f"a host was cut off, but {alive} are there"
    assert report.n_images == IMAGES
    assert report.digest == expected, "the content is that of a single process"
    with fp.Run.open(folder / "ray.sqlite") as run:
        assert run.complete
    subprocess.run(["ip", "-n", "fastpure-b", "link", "set", "fastpure-vb", "up"], check=True)
    print(
        "ray-check: two hosts, one cut off, one worker killed: the content of a single process after "
        f"{took:.0f} s ({after:.0f} s of them cut off)"
    )


def main() -> None:
    torch.set_num_threads(1)
    what, where = sys.argv[1], Path(sys.argv[2])
    if what == "cluster":
        cluster(where)
    elif what == "shard":
        evaluate(defense(), where, shard=(int(sys.argv[3]), 2))
    else:
        expected = evaluate(defense(), None).digest
        with fp.Run.open(merge(where / "all.sqlite", [where / "two.sqlite", where / "one.sqlite"])) as run:
            hosts = sorted(
                session["environment"]["host"] for session in run.sessions() if session["environment"]
            )
            assert run.content_digest() == expected, "the content is that of a single process"
        assert len(set(hosts)) == 2, hosts
        print(f"ray-check: shards of {' and '.join(hosts)} merge to the content of a single process")


if __name__ == "__main__":
    main()

"""The GPU kernels compile to what they should: no spills, no atomics, 16-byte accesses; the table says so.

The committed table is checked everywhere; compiling anew needs Triton and cuobjdump, but no GPU.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

if not (Path(__file__).parents[2] / "bench").is_dir():
    pytest.skip("bench/ belongs to the source tree, not to the wheel", allow_module_level=True)

from bench import cubin, cuda_code, machine_code
from fastpure.kernels.triton_support import ARCHITECTURES
from tests.kernels.triton.cases import INTERPRETING
from tests.thirds import todays

REPORT = json.loads((machine_code.RESULTS / "machine_code.json").read_text(encoding="utf-8"))
COLUMNS = ("site", "dtype", "direction", "kernel", "warps")
ROWS = [row for row in REPORT["rows"] if "dtype" in row]
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or INTERPRETING, reason="needs Triton, not interpreting"
)


def test_the_table_belongs_to_these_cuda_kernels():
    assert REPORT["cuda"] == cuda_code.fingerprint(), "run python -m bench.machine_code --write"


def test_comments_and_layout_are_no_part_of_cuda_code():
    code = 'int a = \'"\'; /* one\n */ f("// no comment  "); // two\n  g();'
    same = 'int a = \'"\';\nf("// no comment  ");\n/* three */ g();'
    assert cuda_code.without_comments(code) == cuda_code.without_comments(same)
    assert cuda_code.without_comments(code) == 'int a = \'"\'; f("// no comment  "); g();'


def test_lines_and_names_are_no_part_of_ptx():
    ptx = """
    .visible .entry norm( .param .u64 norm_param_0 )
    {{
        .loc 1 {line} 0   // triton_fused.py:{line}:0
    $L__tmp{line}:
        add.f32 %f3, %f1, {operand};
    }}
        .file 1 "/somewhere/triton_fused.py"
        .section .debug_info
    """
    one = ptx.format(line=3, operand="%f2")
    assert machine_code.ptx_digest(one) == machine_code.ptx_digest(
        ptx.format(line=4, operand="%f2").replace("norm", "other")
    )
    assert machine_code.ptx_digest(one) != machine_code.ptx_digest(ptx.format(line=3, operand="%f1"))


@needs_triton
def test_the_table_has_every_kernel_on_every_architecture():
    for architecture in ARCHITECTURES:
        wanted = [
            (work.site, work.dtype, work.direction, launch.kernel.__name__, launch.tile.warps)
            for work in machine_code.all_work(architecture)
            for launch in work.launches
        ]
        assert [tuple(row[name] for name in COLUMNS) for row in ROWS if row["sm"] == architecture] == wanted


@pytest.mark.parametrize(
    "row", REPORT["rows"], ids=lambda r: f"{r['kernel']}-{r['site']}-{r.get('dtype')}-{r['sm']}"
)
def test_no_spills_no_atomics_wide_accesses(row):
    assert machine_code.faults(row) == []


def test_several_programs_or_many_warps_share_a_multiprocessor():
    for row in ROWS:
        assert row["warps_per_sm"] >= 8, row


def test_one_pass_moves_no_byte_twice():
    """Forward: the input is read and the output written, once; backward also reads the cotangent and `add`.

    Of a sum, its other term is read and the sum written too; backwards `more` is read.
    """
    tensors = {"forward": 2, "backward": 4, "forward of sum": 4, "backward of sum": 5}
    alone = {("forward of sum", "cifar10 32x32x256+128", "bf16")}  # the sum is a kernel of its own there
    seen = set()
    for row in ROWS:
        itemsize = {"bf16": 2, "fp16": 2, "fp32": 4}[row["dtype"]]
        if not row["kernel"].endswith("fused") or "up" in row["site"] or "down" in row["site"]:
            continue
        if (row["direction"], row["site"], row["dtype"]) in alone:
            continue
        seen.add(row["direction"])
        assert row["bytes_per_element"] <= tensors[row["direction"]] * itemsize * 1.05, row
    assert seen == set(tensors)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fresh_machine_code(architecture):
    """Compiled now: no worse than the table, and with the table's Triton the same instructions.

    Some of them only where nothing has changed since the table was written.
    """
    import triton

    same = (triton.__version__, machine_code.fingerprint()) == (REPORT["triton"], REPORT["kernels"])
    table = {tuple(row[name] for name in COLUMNS): row for row in ROWS if row["sm"] == architecture}
    stale = []
    works = list(machine_code.all_work(architecture))
    for work in todays(works) if same else works:
        for launch in work.launches:
            row = machine_code.row_of(architecture, work, launch)
            assert machine_code.faults(row) == [], row
            key = tuple(row[name] for name in COLUMNS)
            if triton.__version__ == REPORT["triton"] and table[key]["ptx"] != row["ptx"]:
                stale.append(key)
    assert stale == [], "these kernels have changed, run python -m bench.machine_code --write"


def test_faults_are_found():
    good = {"spills": 0, "atomics": 0, "access": 16, "loads": {"16": 4, "4": 2}, "stores": {"16": 1}}
    good |= {"loads_wanted": 4, "stores_wanted": 1}
    assert machine_code.faults(good) == []
    assert machine_code.faults(good | {"spills": 3}) == ["3 spills"]
    assert machine_code.faults(good | {"atomics": 1}) == ["1 atomics"]
    scalar = good | {"loads": {"4": 16}}
    assert machine_code.faults(scalar) == ["0 loads of 16 bytes per thread, 4 are needed"]


def test_accesses_are_read_from_machine_code(monkeypatch):
    sass = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P1 LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/                   LDG.E.64.CONSTANT R4, desc[UR4][R2.64] ;
        /*0030*/                   LDG.E.U16 R4, desc[UR4][R2.64] ;
        /*0040*/                   LDG.E R4, desc[UR4][R2.64] ;
        /*0050*/               @P0 STG.E.128 desc[UR4][R2.64], R8 ;
        /*0060*/                   STL [R1], R8 ;
        /*0070*/                   LDL.LU R8, [R1] ;
        /*0080*/                   RED.E.ADD.F32 desc[UR4][R2.64], R8 ;
        /*0090*/                   NOP ;
    """
    dumps = {
        "--dump-resource-usage": " Function norm:\n  REG:40 STACK:8 SHARED:128 LOCAL:0 CONSTANT[0]:552\n",
        "--dump-sass": f"code for sm_90\n\t\tFunction : norm\n{sass}",
    }
    monkeypatch.setattr(cubin, "_dump", lambda option, path: dumps[option])
    (code,) = cubin.read_cubin(b"")
    assert (code.name, code.registers, code.stack, code.shared) == ("norm", 40, 8, 128)
    assert (code.instructions, code.spills, code.atomics) == (9, 2, 1)
    assert code.loads == {16: 1, 8: 1, 4: 1, 2: 1}
    assert code.stores == {16: 1}


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "programs"),
    [(32, 0, 8, 8), (128, 0, 8, 2), (129, 0, 16, 0), (32, 100 * 1024, 8, 2), (16, 0, 1, 32)],
)
def test_occupancy(registers, shared, warps, programs):
    """Of 65536 registers, 64 warps, 32 programs and 228 KB of shared memory (1 KB of it kept per program)."""
    assert cubin.occupancy(90, registers, shared, warps) == programs

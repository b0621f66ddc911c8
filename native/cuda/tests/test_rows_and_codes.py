"""How rows are divided, how reductions are cut, how 4-bit weights lie: what needs no GPU to be checked."""

import ml_dtypes
import numpy as np
import pytest

from pumice_cuda import device, lowbit, rows
from pumice_cuda.compiling import resources
from pumice_cuda.teams import KEPT, contiguous, team_of


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("columns", [1, 3, 127, 768, 1000, 1001, 8192, 9000, 32_768])
def test_a_team_keeps_the_whole_row_in_registers(columns, itemsize):
    team = team_of(columns, itemsize)
    assert team.vectors * team.threads * team.wide >= columns
    assert team.vectors * team.wide <= KEPT
    assert columns % team.wide == 0


def test_a_row_too_long_to_keep_is_read_again_by_the_largest_team():
    assert (team_of(40_000, 4).threads, team_of(40_000, 4).vectors) == (1024, 0)


def test_what_is_out_of_alignment_is_read_one_by_one():
    assert team_of(1024, 4, aligned=False).wide == 1


def test_few_long_rows_are_cut_and_many_short_ones_are_not():
    assert rows._parts(1, 1 << 24, 1, 132) > 132
    assert rows._parts(100_000, 1024, 1, 132) == 1
    assert rows._parts(1, 1 << 16, 64, 132) > 100


def test_axes_are_reduced_run_by_run():
    assert list(rows._neighbours([0, 1, 3, 5, 6])) == [(0, 1), (3, 3), (5, 6)]


@pytest.mark.parametrize("in_pairs", [False, True])
def test_every_code_is_where_its_thread_looks(rng, in_pairs):
    """Output 16 tile + 8 half + g, k = 128 step + 32 j + 8 t + i: field i of its word, or even k before odd ones."""
    k, n = 300, 35
    codes = rng.integers(0, 16, (k, n)).astype(np.uint8)
    words = lowbit.arranged(codes, in_pairs=in_pairs)
    at_k, at_n = np.meshgrid(np.arange(k), np.arange(n), indexing="ij")
    i = at_k % 8
    field = i // 2 + i % 2 * 4 if in_pairs else i
    found = words[at_n // 16, at_k // 128, at_n // 8 % 2, at_n % 8, at_k // 8 % 4, at_k // 32 % 4]
    np.testing.assert_array_equal(found >> (4 * field).astype(np.uint32) & 15, codes)


def test_two_parts_of_a_table_keep_sixteen_bits(rng):
    table = rng.standard_normal((5, 16)).astype(np.float32)
    parts = lowbit.tables_of_bytes(table, 2)
    values = (parts[:, :, 0] | parts[:, :, 1].astype(np.uint16) << 8).view(ml_dtypes.bfloat16).astype(np.float32)
    assert (np.abs(values.sum(axis=1) - table) <= 2.0**-16 * np.abs(table)).all()


def test_tables_of_consecutive_integers_are_arithmetic():
    assert lowbit.arithmetic(np.arange(16, dtype=np.float32) - 8) == -8
    assert lowbit.arithmetic(np.arange(16, dtype=np.float32) * 2) is None
    assert lowbit.arithmetic(np.arange(32, dtype=np.float32).reshape(2, 16)) is None


def packed(n, decoder, parts, k=4096):
    """Without arrays: what decides how a product is launched."""
    none = {"codes": None, "tables": None, "scale": None, "offset": None, "strides": (0, 0)}
    return lowbit.Codebook(k=k, n=n, group=k, decoder=decoder, parts=parts, **none)


@pytest.mark.parametrize(("capability", "calls"), [((9, 0), [8]), ((8, 0), [4, 4]), ((8, 9), [2, 2, 2, 2])])
def test_rows_that_do_not_fit_into_shared_memory_come_in_parts(gpu, monkeypatch, capability, calls):
    there = device.Gpu(name="", capability=capability, memory=1, multiprocessors=100)
    monkeypatch.setattr(device, "gpu", lambda: there)
    monkeypatch.setattr(lowbit, "kernel", lambda *_: None)
    monkeypatch.setattr(lowbit, "aligned", lambda *_: True)
    rows, shared = [], []

    def launch(code, grid, block, a, *_, **how):
        rows.append(len(a))
        shared.append(how["shared"])

    monkeypatch.setattr(lowbit, "launch", launch)
    a = np.zeros((8, 4096), np.float32)
    lowbit._few_rows(a, packed(64, "Pairs", 2), None, np.zeros((8, 64), np.float32))
    assert rows == calls
    assert max(shared) <= lowbit.ROOM.get(capability, lowbit.LEAST_ROOM)


@pytest.mark.parametrize("decoder", ["Levels", "Pairs", "Tables"])
@pytest.mark.parametrize(("k", "n", "cluster"), [(4096, 4096, 2), (1024, 4100, 1), (4096, 2100, 2), (4096, 11008, 2)])
def test_few_rows_leave_room_for_the_next_kernel(gpu, monkeypatch, decoder, k, n, cluster):
    there = device.Gpu(name="", capability=(9, 0), memory=1, multiprocessors=132)
    monkeypatch.setattr(device, "gpu", lambda: there)
    monkeypatch.setattr(lowbit, "kernel", lambda *_: None)
    monkeypatch.setattr(lowbit, "aligned", lambda *_: True)
    seen = []
    monkeypatch.setattr(lowbit, "launch", lambda code, grid, block, *_, **how: seen.append((grid, block, how)))
    a, weights = np.zeros((8, k), ml_dtypes.bfloat16), packed(n, decoder, 1, k)
    run = lowbit._run(8, a, weights)
    run(a, weights, None, np.zeros((8, n), ml_dtypes.bfloat16))
    [(grid, block, how)] = seen
    assert (how["cluster"], how["overlaps"]) == ((cluster, 1, 1), True)
    assert grid >= there.multiprocessors
    assert grid % cluster == 0
    assert 2 * (how["shared"] + 1024) <= 228 << 10
    assert 2 * block <= 2048


SOURCES = [
    "rows", "quantize", "lowbit_few", "lowbit_few_sm90", "lowbit_some", "lowbit_many", "lowbit_sm90", "recurrent_sm90",
]  # fmt: skip


@pytest.mark.parametrize("source", SOURCES)
def test_no_kernel_runs_out_of_registers_on_hopper(source):
    spilling = {name: found.spills for name, found in resources(source, arch="sm_90a").items() if found.spills}
    assert not spilling


def test_a_number_stays_a_number(gpu):
    assert contiguous(gpu.asarray(np.float32(3))).shape == ()
    turned = contiguous(gpu.asarray(np.zeros((2, 3), np.float32)).T)
    assert (turned.shape, turned.flags.c_contiguous) == ((3, 2), True)

"""The library as a whole: levels and how they are forced, memory, threads, forks, and the code of the hot loops."""

import multiprocessing
import os
import re
import subprocess
import sys
import threading

import attrs
import numpy as np
import pytest

from pumice.measure.plan_runtime import PlanRuntime
from pumice.testing.models import tiny_cnn
from pumice_cpu import _native, arrays, native
from pumice_cpu.gemm import gemm, pack
from pumice_cpu.peak import peak

# --- levels -----------------------------------------------------------------------------------------------------------

SAY = "from pumice_cpu import native; print(native.level())"


def say(**environment):
    command = [sys.executable, "-c", SAY]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


def test_scalar_is_always_there_and_the_best_level_is_in_force():
    assert native.levels()[0] == "scalar"
    assert say(PUMICE_CPU_ISA="").stdout.strip() == native.levels()[-1]


def test_the_variable_forces_a_level():
    for name in native.levels():
        assert say(PUMICE_CPU_ISA=name).stdout.strip() == name


@pytest.mark.parametrize("name", ["neon", "sse9"])
def test_a_level_that_cannot_be_had_is_an_error_that_names_those_that_can(name):
    if name in native.levels():
        name = "avx2"
    done = say(PUMICE_CPU_ISA=name)
    assert done.returncode != 0
    assert f"PUMICE_CPU_ISA={name}" in done.stderr.splitlines()[-1]
    assert "use one of scalar" in done.stderr.splitlines()[-1]


def test_every_slot_is_filled_at_scalar_and_stays_filled(level):
    for slot in native.slots():
        assert native.giver(slot) in {level, *native.ancestors(level)}


def test_a_level_is_put_back_also_after_an_error():
    before = native.level()
    with pytest.raises(RuntimeError), native.using_level("scalar"):
        raise RuntimeError
    assert native.level() == before


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), 0, 5, (3, 0, 2), (7, 9)])
@pytest.mark.parametrize("dtype", ["float32", "uint8", "int64"])
def test_arrays_begin_on_a_cache_line(shape, dtype):
    array = arrays.empty(shape, dtype)
    assert array.ctypes.data % 64 == 0 or array.size == 0
    assert array.shape == np.empty(shape).shape
    assert array.dtype == dtype


def test_a_copy_is_reported(caplog):
    with caplog.at_level("DEBUG", logger="pumice_cpu.arrays"):
        arrays.contiguous(np.zeros((3, 4)).T, "weights")
        arrays.rows(np.zeros((3, 8), np.float32)[:, ::2], "residual")
        arrays.contiguous(np.zeros((3, 4)), "nothing")
    assert [record.message.split()[0] for record in caplog.records] == ["weights", "residual"]


def test_rows_with_room_between_them_are_taken_in_place():
    whole = np.zeros((6, 10), np.float32)
    taken, stride = arrays.rows(whole[:, 2:7], "a")
    assert np.shares_memory(taken, whole)
    assert stride == 10


# --- threads ----------------------------------------------------------------------------------------------------------


def product():
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((300, 400), dtype=np.float32), rng.standard_normal((400, 500), dtype=np.float32)
    return a, pack(b)


def test_concurrent_callers_get_the_same_bits():
    a, b = product()
    expected = gemm(a, b, threads=1).tobytes()
    found = []

    def call():
        found.extend(gemm(a, b, threads=2).tobytes() == expected for _ in range(20))

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert found == [True] * 80


def _in_child(a, b, queue):
    queue.put(gemm(a, b, threads=3).tobytes())


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_child_computes_too():
    a, b = product()
    expected = gemm(a, b, threads=3).tobytes()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(a, b, queue))
    child.start()
    assert queue.get(timeout=30) == expected
    child.join(30)
    assert child.exitcode == 0


def test_the_number_of_threads_can_be_set_and_given_back():
    cores = native.threads()
    try:
        native.set_threads(3)
        assert native.threads() == 3
    finally:
        native.set_threads(0)
    assert native.threads() == cores


def test_a_limit_holds_for_this_thread_and_until_it_is_left():
    cores, elsewhere = native.threads(), []
    with native.at_most(cores + 1):
        assert native.threads() == cores + 1
        other = threading.Thread(target=lambda: elsewhere.append(native.threads()))
        other.start()
        other.join()
    assert elsewhere == [native.threads()] == [cores]


def test_the_plan_as_a_runtime_holds_kernels_to_its_threads():
    class Plan:
        def run(self, feeds):
            return {"threads": native.threads()}

    session = PlanRuntime().open(tiny_cnn(), threads=3)
    assert attrs.evolve(session, plan=Plan()).run({}) == {"threads": 3}


@pytest.mark.parametrize("product", ["float", "bfloat", "integer"])
def test_the_peak_of_every_level_is_a_rate_of_arithmetic(level, product):
    assert 0 < peak(product, threads=2, rounds=1, seconds=1e-4) < 1e15  # how fast is for a benchmark to say


# --- the machine code -------------------------------------------------------------------------------------------------

INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\t(?:\{vex\} )?(\S+)\s*(.*)$")
JUMP = re.compile(r"^(j|b\b|b\.|cbn?z|tbn?z)")
VECTOR_TO_STACK = re.compile(r"^(%[xyz]mm\d+,\S*\(%r(sp|bp)\)|q\d+, (q\d+, )?\[(sp|x29).*)$")
SUMS = ("vfmadd", "vpdpbusd", "vdpbf16", "vpmaddwd", "fmla", "smlal", "sdot", "smmla")
FEWEST_SUMS = 8
"""A loop with as many multiply-adds is the k loop of a tile, or evaluates a function."""
OF_FUNCTIONS = (
    "vdiv",
    "vround",
    "vrndscale",
    "vscalef",
    "vcvtps2dq",
    "vpermt2ps",
    "vpermi2ps",
    "fdiv",
    "frint",
    "fcvt",
)
"""What exp, tanh and their like have in their loops and no k loop has: their polynomials keep temporaries on the stack,
not sums."""


def functions():
    """Instructions (address, name, operands) of every function of the extension; objdump comes with every compiler."""
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", _native.__file__], capture_output=True, text=True, check=True
    ).stdout
    for part in listing.split("\n\n"):
        head, _, body = part.partition("\n")
        found = [match.groups() for line in body.splitlines() if (match := INSTRUCTION.match(line))]
        yield head, [(int(address, 16), name, operands) for address, name, operands in found]


def loops(instructions):
    """Bodies of the innermost loops: from the target of a backward jump to the jump."""
    jumps = []
    for address, name, operands in instructions:
        target = re.search(r"(?:^|, )([0-9a-f]+)(?: <|$)", operands)
        if JUMP.match(name) and target and int(target[1], 16) < address:
            jumps.append((int(target[1], 16), address))
    for head, tail in jumps:
        if not any(head <= other[0] and other[1] < tail for other in jumps if other != (head, tail)):
            yield [(name, operands) for address, name, operands in instructions if head <= address <= tail]


def test_no_accumulator_is_stored_inside_a_k_loop():
    checked = 0
    for name, instructions in functions():
        for body in loops(instructions):
            names = [mnemonic for mnemonic, _ in body]
            sums = sum(mnemonic.startswith(SUMS) for mnemonic in names)
            if sums < FEWEST_SUMS or any(mnemonic.startswith(OF_FUNCTIONS) for mnemonic in names):
                continue
            checked += 1
            spills = [f"{mnemonic} {operands}" for mnemonic, operands in body if VECTOR_TO_STACK.match(operands)]
            assert not spills, f"{name} keeps accumulators on the stack: {spills[:3]}"
    assert checked >= 20

"""The peers of `bench_kernels.py`, each in a process of its own in one environment of their own.

The environment is made once, in the benchmark cache, with the versions pinned here. A peer's process is stopped
(SIGSTOP) whenever it is not its turn, so that threads of one library that wait by spinning do not slow another.
"""

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from peers.environment import PeerError, interpreter

PACKAGES = ("numpy==2.4.6", "onnxruntime==1.31.1", "openvino==2026.4.1", "onnx==1.23.2", "torch==2.13.0")
SERVER = Path(__file__).with_name("server.py")


def environment() -> Path:
    """The interpreter that the peers run in, made on first use.

    Raises:
        PeerError: the packages cannot be installed.
    """
    return interpreter("kernel-peers", PACKAGES)


class Peer:
    """A peer's process, awake only while it is asked something."""

    def __init__(self, name: str, python: Path, threads: int) -> None:
        self.name = name
        variables = {k: v for k, v in os.environ.items() if not k.startswith(("OPENBLAS_", "PYTHON"))}
        variables |= {key: str(threads) for key in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        self._process = subprocess.Popen(
            [python, SERVER, name, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=variables,
        )
        self._ask()

    def build(self, family: str, copies: int, given: dict[str, Any]) -> None:
        """Make the case ready, with as many sets of weights.

        Raises:
            PeerError: the peer cannot.
        """
        self._ask(build=family, copies=copies, given=given)

    def burst(self, calls: int) -> float:
        """Seconds a call, of this many in a row after one that does not count."""
        return float(self._ask(burst=calls)["seconds"])

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGCONT)
        self._process.kill()
        self._process.communicate()

    def _ask(self, **question: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.send_signal(signal.SIGCONT)
        answer = ""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        if not answer:
            raise PeerError(f"{self.name} died with exit code {self._process.wait()}")
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)  # a thread that spins stops tens of milliseconds later
        found = json.loads(answer)
        if "error" in found:
            raise PeerError(f"{self.name}: {found['error']}")
        return dict(found)

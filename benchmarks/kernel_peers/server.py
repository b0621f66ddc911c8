"""A peer's process: reads one JSON question a line, answers one a line. Runs in the peers' environment.

A call that returns a float tells the seconds it took by the library's own counter; the others are timed here.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Server:
    """Holds the calls of the case at hand, one for each set of weights."""

    def __init__(self, peer: str, threads: int) -> None:
        self.peer, self.threads = peer, threads
        self.calls: list[Callable[[], Any]] = []
        self.turn = 0

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        if "build" in question:
            self.calls.clear()
            build = importlib.import_module(f"served.{question['build']}").build
            given = question["given"]
            self.calls += [
                build(self.peer, seed=seed, threads=self.threads, **given) for seed in range(question["copies"])
            ]
            for call in self.calls:
                call()
            return {}
        return {"seconds": self.burst(question["burst"])} if "burst" in question else {}

    def burst(self, calls: int) -> float:
        counts, counted = isinstance(self._next(), float), 0.0
        start = time.perf_counter()
        for _ in range(calls):
            found = self._next()
            counted += found if counts else 0.0
        return (counted or time.perf_counter() - start) / calls

    def _next(self) -> Any:
        self.turn = (self.turn + 1) % len(self.calls)
        return self.calls[self.turn]()


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    sys.path.insert(0, str(Path(__file__).parent))
    server = Server(sys.argv[1], int(sys.argv[2]))
    for line in sys.stdin:
        try:
            found = server.answer(json.loads(line))
        except Exception as error:
            words = (str(error).strip().splitlines() or [""])[0]
            found = {"error": f"{type(error).__name__}: {words}"}
        answers.write(json.dumps(found) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()

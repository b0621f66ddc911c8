"""What is made of constants when it is first needed."""

import time
from concurrent.futures import ThreadPoolExecutor

from pumice_cuda.constants import Once


def test_many_threads_make_one_and_have_it_when_it_is_finished(gpu, monkeypatch):
    happened = []

    def make():
        happened.append("made")
        time.sleep(0.02)
        return object()

    def wait(_):
        time.sleep(0.02)
        happened.append("finished")

    monkeypatch.setattr(gpu.cuda.Stream, "synchronize", wait)
    once = Once(make)
    with ThreadPoolExecutor(8) as pool:
        found = {id(thing) for thing in pool.map(lambda _: once(), range(16))}
    assert (len(found), happened) == (1, ["made", "finished"])

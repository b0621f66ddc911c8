"""Training on a GPU: a network that memory does not hold without checkpoints, and a teacher of three billion weights
beside its student.

    python benchmarks/bench_cuda_training.py [--quick] [--json FILE] [--only memory,teaching] [--seconds N]

`memory` trains a network of BERT-large's shape, in 16 bits with masters of 32, under a limit on CuPy's memory: keeping
everything fails, checkpoints train. What activations take is the peak of a step above what is held between steps, with
what the recording of the steps keeps; its `ratio` is that of keeping everything (under no limit) to it. `teaching`
trains a student of 500 million weights by reverse KL and the next byte of a real text on what one of three billion
says, in one process: memory planned against memory measured, bytes of text in a second, and both losses. All
weights are drawn on the GPU, so that one knows nothing: what is shown is that it fits and goes, not that it teaches.
`pytorch` is a step of the network of `memory` by PyTorch, in bfloat16 by autocast, where PyTorch and transformers are
installed. Every part ends at its share of `--seconds`.
"""

import argparse
import gc
import importlib.util
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import attrs
import numpy as np
from models import language
from models.transformers import Shape, is_described
from tables import Table, now, write_json

from pumice.autograd import Profile
from pumice.data import Batch, open_dataset
from pumice.distil.connectors import Connection
from pumice.distil.memory import planned
from pumice.distil.objective import Distillation, Term
from pumice.registry import registry
from pumice.steps import Train
from pumice.strategy import Loss
from pumice.train import Parameters, Trainer
from pumice.train.application import trainable_plan
from pumice.train.feeding import Feeder, Portion
from pumice_cuda.placing import OnDevice

BERT_LARGE = Shape(width=1024, layers=24, heads=16, length=512, words=1000, causal=False)
TEACHER = Shape(width=3072, layers=27, heads=24, length=512)
STUDENT = Shape(width=1280, layers=25, heads=20, length=512)
TINY = {"width": 32, "layers": 3, "heads": 2, "length": 16}
SETTINGS = Train(
    loss=None, epochs=1_000_000, lr=2e-4, weight_decay=1e-2, schedule="constant", keep_zeros=False, clip=1.0
)
WARM_UPS, STEPS = 4, 7
"""Before what is measured; timed, of which the median counts."""
LIMITED = 0.85
"""Of the activations that keeping everything takes, those that the limit leaves room for."""
PRESSED, QUICK_PRESSED = (2.5, 6.0), (1.5, 2.5)
"""How many times less than everything the residuals may take where memory is limited."""


class DrawnOnDevice(OnDevice):
    """Matrices that the model only describes are drawn on the GPU."""

    def __init__(self, seed: int = 0, *, records: bool = True) -> None:
        super().__init__(records=records)
        import cupy

        self._draws = cupy.random.default_rng(seed)

    def constant(self, value: Any, array: np.ndarray) -> Any:
        if not is_described(array):
            return super().constant(value, array)
        matrix = self._draws.standard_normal(array.shape, dtype=np.float32)
        matrix *= np.float32(array.flat[0])
        return matrix.astype(array.dtype)


class Peak:
    """The most bytes that CuPy's memory has had in use at once while it is open."""

    def __enter__(self) -> Self:
        import cupy

        peak = self
        pool = cupy.get_default_memory_pool()

        class Hook(cupy.cuda.MemoryHook):
            name = "peak"

            def malloc_postprocess(self, **_: Any) -> None:
                peak.bytes = max(peak.bytes, pool.used_bytes())

        self.before = self.bytes = pool.used_bytes()
        self._hook = Hook()
        self._hook.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.__exit__(*_)


def emptied() -> Any:
    """CuPy's memory, with nothing held that is not in use."""
    import cupy

    gc.collect()
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    return pool


def recorded_bytes(training: Trainer) -> int:
    """What the recording of its steps keeps, beside CuPy's memory."""
    return getattr(training.tape, "recorded_bytes", 0)


def finish() -> None:
    import cupy

    cupy.cuda.Device().synchronize()


def trainer_of(shape: Shape, objective: Callable[..., Any], placement: OnDevice, **settings: Any) -> Trainer:
    """A trainer for one batch at a time, given by hand."""
    plan = trainable_plan(shape.model(), placement=placement)
    chosen = attrs.evolve(SETTINGS, **settings)
    parameters = Parameters.of(plan, keep_zeros=chosen.keep_zeros)
    feeder = Feeder(open_dataset({"x": np.zeros((2, 1), np.float32)}), 1)
    return Trainer(plan, parameters, objective, feeder, chosen, placement=placement)


def portion(x: Any, labels: Any) -> Portion:
    return Portion(Batch(feeds={"x": x}, labels=labels, size=len(x)))


# --- memory -----------------------------------------------------------------------------------------------------------


def memory(*, quick: bool, seconds: float) -> Iterator[dict[str, Any]]:
    """Everything kept, everything kept under a limit, and checkpoints under the same limit, fewer and more; then the
    first and the last where no step is recorded.
    """
    shape = attrs.evolve(BERT_LARGE, **TINY) if quick else BERT_LARGE
    batch, steps = (4, 2) if quick else (32, STEPS)
    ends, name = time.perf_counter() + seconds, "BERT-large's shape"
    whole = step_of(shape, batch, steps, 0.0, None, ends)
    yield memory_row(f"{name}, {batch} x {shape.length}, everything kept", whole, whole)
    limit = round(whole["held"] + whole["activations"] * LIMITED)
    budgets = [whole["residuals"] / pressed / 1e6 for pressed in (QUICK_PRESSED if quick else PRESSED)]
    for allowed in (0.0, *budgets):
        kept = f"residuals of {allowed:.0f} MB" if allowed else "everything kept"
        try:
            found = step_of(shape, batch, steps, allowed, limit, ends)
        except MemoryError as error:
            found = {"answer": f"out of memory ({str(error).partition('.')[0]})"}
        yield memory_row(f"{name}, {kept}, limit {limit / 1e9:.1f} GB", found, whole)
    plain = step_of(shape, batch, steps, 0.0, None, ends, records=False)
    yield memory_row(f"{name}, not recorded, everything kept", plain, plain)
    found = step_of(shape, batch, steps, budgets[-1], None, ends, records=False)
    yield memory_row(f"{name}, not recorded, residuals of {budgets[-1]:.0f} MB", found, plain)


def step_of(
    shape: Shape, batch: int, steps: int, budget: float, limit: int | None, ends: float, *, records: bool = True
) -> dict[str, Any]:
    """Bytes and seconds of a step.

    Raises:
        MemoryError: the limit does not suffice.
    """
    import cupy

    pool = emptied()
    pool.set_limit(size=limit or 0)
    try:
        placement = DrawnOnDevice(records=records)
        loss = registry().make(Loss, {"name": "cross-entropy", "scores": "logits"})
        training = trainer_of(shape, loss.value_and_grad, placement, memory=budget)
        draws = np.random.default_rng(1)
        words = draws.integers(0, shape.words, (batch, shape.length))
        given = [portion(cupy.asarray(words), cupy.asarray(draws.integers(0, shape.classes, batch)))]
        for _ in range(WARM_UPS):  # compiles, makes the optimizer's state, records
            training.step(given)
        with Peak() as peak:
            training.step(given)
            finish()
        times = []
        while len(times) < steps and (time.perf_counter() < ends or not times):
            began = time.perf_counter()
            training.step(given)
            finish()
            times.append(time.perf_counter() - began)
        feeds = {**given[0].batch.feeds, **training.parameters.fed()}
        tape = training.tape
        profile = Profile.of(tape, feeds)
        return {
            "held": peak.before,
            "activations": peak.bytes - peak.before + recorded_bytes(training),
            "residuals": profile.peak(tape.cuts(feeds)),
            "segments": len(tape.cuts(feeds)) + 1,
            "seconds": float(np.median(times)),
            "on the CPU": dict(placement.fallen),
        }
    finally:
        pool.set_limit(size=0)


def memory_row(case: str, found: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    row = {"case": case, "metric": "memory", "peers": {}, "ratio": None, "spread": 0.0, **found}
    if "answer" not in found:
        ratio, slower = whole["activations"] / found["activations"], found["seconds"] / whole["seconds"]
        row |= {"ratio": ratio, "time against everything kept": slower}
        row["answer"] = (
            f"activations {found['activations'] / 1e9:.2f} GB above {found['held'] / 1e9:.2f} held, residuals "
            f"{found['residuals'] / 1e9:.2f} GB in {found['segments']} segments; {1e3 * found['seconds']:.0f} ms, "
            f"{slower:.2f} times"
        )
    return row


# --- teaching ---------------------------------------------------------------------------------------------------------


def teaching(*, quick: bool, seconds: float) -> Iterator[dict[str, Any]]:
    """A student of 500 million weights and a teacher of three billion in one process."""
    teacher, student = (attrs.evolve(s, **TINY) if quick else s for s in (TEACHER, STUDENT))
    if quick:
        teacher = attrs.evolve(teacher, width=64)
    batch, steps = (4, 30) if quick else (8, 300)
    ends = time.perf_counter() + seconds
    plan = planned(teacher.model(), student.model(), SETTINGS, {"x": (batch, student.length)})
    pool = emptied()
    lesson = Lesson(teacher, student)
    text = passages(student.length)
    with Peak() as peak:
        lesson.train(text, batch, 2, ends)
        finish()
    yield {
        **SAME, "case": f"{weights(lesson):,} weights taught by {teacher_weights(lesson):,}",
        "metric": "planned memory", "ours": peak.bytes, "planned": plan.total(), "ratio": plan.total() / peak.bytes,
        "parts": dict(plan.rows()),
        "answer": f"planned {plan.total() / 1e9:.2f} GB, measured {peak.bytes / 1e9:.2f} GB "
                  f"(with what CuPy keeps {pool.total_bytes() / 1e9:.2f} GB)",
    }  # fmt: skip
    began = time.perf_counter()
    losses, of_labels = lesson.train(text, batch, steps, ends)
    tokens = len(losses) * batch * student.length / (time.perf_counter() - began)
    divergences = [(loss - (1 - ALPHA) * own) / ALPHA for loss, own in zip(losses, of_labels, strict=True)]
    yield {
        **SAME, "case": f"{len(losses)} steps of {batch} x {student.length} bytes", "metric": "teaching",
        "ours": tokens, "losses": losses, "cross-entropies": of_labels, "on the CPU": lesson.fallen(),
        "recorded": recorded_bytes(lesson.trainer),
        "answer": f"{tokens:,.0f} bytes of text/s, reverse KL {_ends(divergences)}, cross-entropy {_ends(of_labels)}; "
                  f"the recording keeps {recorded_bytes(lesson.trainer) / 1e9:.1f} GB",
    }  # fmt: skip


def _ends(values: Sequence[float]) -> str:
    """The means of the first and the last ten."""
    return f"{np.mean(values[:10]):.3f} to {np.mean(values[-10:]):.3f}"


SAME = {"peers": {}, "ratio": None, "spread": 0.0}
ALPHA = 0.5
"""The teacher's share of the loss."""


@attrs.frozen(eq=False)
class Noting(Loss):
    """A loss that remembers its values."""

    name = "noting"
    loss: Loss
    values: list[Any] = attrs.field(factory=list)

    def value_and_grad(self, outputs: Any, batch: Any) -> Any:
        value, grads = self.loss.value_and_grad(outputs, batch)
        self.values.append(value)
        return value, grads


class Lesson:
    """Both networks on the GPU, and the student's training."""

    def __init__(self, teacher: Shape, student: Shape) -> None:
        self._placements = DrawnOnDevice(1), DrawnOnDevice(2)
        self.teacher = trainable_plan(teacher.model(), placement=self._placements[0])
        divergence = registry().make(Loss, {"name": "reverse-kl", "scores": "logits"})
        self._labels = Noting(registry().make(Loss, {"name": "cross-entropy", "scores": "logits"}))
        objective = Distillation(
            terms=(Term(divergence, (Connection("y", "y"),)),), answers=self.teacher, alpha=ALPHA, labels=self._labels,
            outputs=("y",),
        )  # fmt: skip
        self.trainer = trainer_of(student, objective.value_and_grad, self._placements[1])

    def train(self, text: np.ndarray, batch: int, steps: int, ends: float) -> tuple[list[float], list[float]]:
        """The losses of so many steps, or of those that there was time for, and those on labels among them."""
        import cupy

        draws, losses = np.random.default_rng(len(text)), []
        self._labels.values.clear()
        for _ in range(steps):
            chosen = text[draws.integers(0, len(text), batch)]
            losses.append(self.trainer.step([portion(*map(cupy.asarray, (chosen[:, :-1], chosen[:, 1:])))]))
            if len(losses) % 10 == 0:
                finish()
                if time.perf_counter() > ends:
                    break
        return [float(loss) for loss in losses], [float(loss) for loss in self._labels.values]

    def fallen(self) -> dict[str, str]:
        return {name: why for placement in self._placements for name, why in placement.fallen.items()}


def passages(length: int) -> np.ndarray:
    """(n, length + 1) bytes of the King James Bible, and of the modern one, one after the other."""
    text = "\n".join(line for name in ("engKJV", "engWEB") for line in language.text_lines(name))
    found = np.frombuffer(text.encode(), np.uint8).astype(np.int64)
    return found[: len(found) // (length + 1) * (length + 1)].reshape(-1, length + 1)


def weights(lesson: Lesson) -> int:
    return sum(value.size for value in lesson.trainer.parameters.values.values())


def teacher_weights(lesson: Lesson) -> int:
    template = lesson.teacher.program.template
    held = [template[slot] for slot in lesson.teacher.initializers.values()]
    return sum(array.size for array in held if array.dtype.kind == "f" and array.ndim)


# --- PyTorch ----------------------------------------------------------------------------------------------------------


def pytorch(*, quick: bool, seconds: float) -> Iterator[dict[str, Any]]:
    """The network of `memory` in PyTorch, everything kept."""
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if quick or missing:
        why = f"needs {' and '.join(missing)}: pip install {' '.join(missing)}" if missing else "has no small case"
        yield {**SAME, "case": "PyTorch", "metric": "left out", "answer": why}
        return
    emptied()
    ends = time.perf_counter() + seconds
    for attention in ("eager", "sdpa"):
        found = float(np.median(list(_torch_steps(BERT_LARGE, 32, attention, ends))))
        case = f"BERT-large's shape in PyTorch, attention '{attention}'"
        yield {**SAME, "case": case, "metric": "step", "seconds": found, "answer": f"{1e3 * found:.0f} ms"}


def _torch_steps(shape: Shape, batch: int, attention: str, ends: float) -> Iterator[float]:
    """Seconds of steps by autocast in bfloat16 with weights of 32 bits."""
    import torch
    import transformers

    sizes = {"hidden_size": shape.width, "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads}
    config = transformers.BertConfig(
        vocab_size=shape.words, intermediate_size=4 * shape.width, max_position_embeddings=shape.length,
        hidden_dropout_prob=0, attention_probs_dropout_prob=0, attn_implementation=attention, **sizes,
    )  # fmt: skip
    network = transformers.BertModel(config, add_pooling_layer=False).cuda()
    head = torch.nn.Linear(shape.width, shape.classes).cuda()
    optimizer = torch.optim.AdamW([*network.parameters(), *head.parameters()], lr=SETTINGS.lr, fused=True)
    x = torch.randint(shape.words, (batch, shape.length), device="cuda")
    labels = torch.randint(shape.classes, (batch,), device="cuda")
    for number in range(3 + STEPS):
        torch.cuda.synchronize()
        began = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16):
            scores = head(network(x).last_hidden_state.mean(1))
        torch.nn.functional.cross_entropy(scores.float(), labels).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), SETTINGS.clip)
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()
        if number >= 3:
            yield time.perf_counter() - began
        if time.perf_counter() > ends and number >= 3:
            return


# --- the script -------------------------------------------------------------------------------------------------------

PARTS: dict[str, tuple[Callable[..., Iterator[dict[str, Any]]], float]] = {
    "memory": (memory, 0.3),
    "teaching": (teaching, 0.6),
    "pytorch": (pytorch, 0.1),
}
"""Every part, and its share of the time."""


def rows(only: Sequence[str], *, quick: bool, seconds: float) -> Iterator[dict[str, Any]]:
    """Those of every part; one that fails says so and the next begins."""
    for name in only:
        part, share = PARTS[name]
        try:
            yield from part(quick=quick, seconds=share * seconds)
        except Exception as error:
            traceback.print_exc()
            yield {**SAME, "case": name, "metric": "failed", "answer": f"{type(error).__name__}: {error}"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny networks")
    parser.add_argument("--json", type=Path, help="write the figures there, as they come")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(PARTS), help="parts")
    parser.add_argument("--seconds", type=float, default=300.0, help="for all parts together")
    options = parser.parse_args()
    from pumice_cuda import device

    if problem := device.unavailable():
        print(f"error: {problem}", file=sys.stderr)
        return 2
    print(f"{device.examination()}; {now()}\n")
    table, found = Table({"case": 58, "metric": 14, "ratio": -6, "figures": 110}), []
    for row in rows(options.only, quick=options.quick, seconds=options.seconds):
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        table.row([row["case"], row["metric"], ratio, row["answer"]])
        found.append(row)
        if options.json:
            write_json(options.json, {"device": str(device.examination()), "cases": found})
    return 1 if any(row["metric"] == "failed" for row in found) else 0


if __name__ == "__main__":
    sys.exit(main())

"""The training loop.

    for every step:  forward, loss, backward, scale and clip, update, average
    after an epoch:  judge on the held-out samples; keep the best; stop when it has not improved for a while

A step is a function of the state and of (seed, epoch, position) only, so a run that resumes from a snapshot ends in the
same bits as one that was never interrupted.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from pumice.autograd import Tape
from pumice.errors import DataError, PumiceError
from pumice.ops.dtypes import wide
from pumice.ops.gradient import namespace
from pumice.ops.record import Array, Placement
from pumice.progress import Progress, Silent
from pumice.train.feeding import Feeder, Portion
from pumice.train.optimizers import DeferredLossScale, LossScale, Optimizer, clip
from pumice.train.parameters import Parameters
from pumice.train.peers import Peers, part
from pumice.train.schedules import factor
from pumice.train.snapshots import Snapshot

if TYPE_CHECKING:
    from pumice.data import Batch
    from pumice.plan import Plan
    from pumice.steps import Train

Values = dict[str, Array]
Objective = Callable[[Mapping[str, Array], "Batch"], tuple[Any, Mapping[str, Array]]]
"""(outputs, batch) -> the loss and its gradient with respect to each output it used, as `Loss.value_and_grad`."""
Judge = Callable[[Mapping[str, Array]], float]
"""Values of initializers -> score on held-out samples, higher is better."""

FIRST_SCALE = 2.0**15
CURVE_POINTS = 200


@attrs.define
class History:
    """What happened, for the report."""

    losses: list[Any] = attrs.field(factory=list)
    """Of every step: numbers, and while an epoch lasts arrays without axes of the device."""
    scores: list[float] = attrs.field(factory=list)
    """Of every epoch that was judged."""
    left_out: int = 0
    """Steps whose gradients overflowed."""

    def curve(self) -> list[float]:
        """The losses, averaged over neighbours to at most 200 points."""
        parts = np.array_split(np.asarray(self.losses), min(CURVE_POINTS, len(self.losses)) or 1)
        return [float(part.mean()) for part in parts if len(part)]


@attrs.frozen(eq=False)
class Fit:
    """A finished training."""

    values: Values
    """What the initializers should hold: parameters and running statistics."""
    history: History
    best_epoch: int
    """From 1; of the values, if the best were kept."""
    stopped_early: bool
    seconds: float


class Trainer:
    """Trains the parameters of a plan towards an objective, as the settings say."""

    def __init__(
        self,
        plan: Plan,
        parameters: Parameters,
        objective: Objective,
        feeder: Feeder,
        settings: Train,
        *,
        judge: Judge | None = None,
        run: str = "",
        progress: Progress | None = None,
        placement: Placement | None = None,
        peers: Peers | None = None,
    ) -> None:
        """
        Args:
            plan: the model, with the kernels to train on.
            parameters: what is trained; changed in place.
            objective: what the outputs should approach; `Loss.value_and_grad` of a configured loss.
            feeder: the data.
            settings: the `train` step, whose knobs say everything else.
            judge: scores values of the initializers after every epoch; None keeps the last.
            run: identifies the run in its snapshots.
            progress: shows progress; None is silent.
            placement: the device of the plan; None is the CPU.
            peers: processes that train the same parameters on their parts of every batch; None trains alone.

        Raises:
            UnsupportedOp: an operator between the loss and a parameter has no gradient.
        """
        self._placement, self._peers = placement, peers
        self.plan, self.objective = plan, objective
        self.parameters = parameters if placement is None else parameters.on(placement)
        self.feeder, self.settings, self.judge = feeder, settings, judge
        self._run, self._progress = run, progress or Silent()
        budget = round(settings.memory * 1e6) or None
        tape = Tape(plan, self.parameters.values, training=settings.batch_statistics, budget=budget)
        self.tape = tape if placement is None else placement.tape(tape)
        self._optimizer = Optimizer(
            name=settings.optimizer, momentum=settings.momentum, nesterov=settings.nesterov, decay=settings.weight_decay
        )
        narrow = any(dtype.itemsize < 4 for dtype in parameters.dtypes.values())
        scaling = LossScale if placement is None else DeferredLossScale
        self._scale = scaling(scale=FIRST_SCALE, dynamic=True) if narrow else scaling()
        self._statistics: Values = {}
        self._average: Values = {n: v.copy() for n, v in self.parameters.values.items()} if settings.ema else {}
        self._best: Values = {}
        self._history = History()
        self._position = (0, 0)

    @property
    def total(self) -> int:
        """Steps of the whole training."""
        return self.settings.epochs * self.feeder.steps

    @property
    def done(self) -> float:
        """The share of the steps that are behind, in [0, 1]."""
        return len(self._history.losses) / self.total

    def fit(self) -> Fit:
        """Train to the end, from the snapshot if there is one.

        Raises:
            DataError: bad samples, a loss that is no longer finite, a snapshot of another run.
            PumiceError: the memory does not suffice.
        """
        began = time.perf_counter()
        self._resume()
        stopped = False
        with self._progress.task("train", total=self.total) as advance:
            advance(self._position[0] * self.feeder.steps + self._position[1])
            while self._position[0] < self.settings.epochs and not (stopped := self._has_stalled()):
                self._epoch_in_memory(advance)
        values = self._best if self._best and self.settings.keep == "best" else self._current()
        if self.settings.statistics:
            values = values | self._estimated_statistics(values)
        values = {name: self._fetched(value) for name, value in values.items()}
        return Fit(values, self._history, self._best_epoch(), stopped, time.perf_counter() - began)

    def _epoch_in_memory(self, advance: Callable[..., None]) -> None:
        try:
            self._epoch(advance)
        except MemoryError as error:
            raise PumiceError(
                f"the memory does not suffice to train on {self.settings.batch} samples at once ({error}): set "
                f"'memory' to the megabytes that may be kept for gradients, or 'batch' to fewer samples"
            ) from error

    def _epoch(self, advance: Callable[..., None]) -> None:
        epoch, start = self._position
        for step, portions in enumerate(self.feeder.epoch(epoch, start), start):
            self._history.losses.append(self.step([self._brought(portion) for portion in portions]))
            self._position = (epoch, step + 1)
            if self._optimizer.count % self.settings.snapshot_every == 0:
                self._save()
            advance()
        self._position = (epoch + 1, 0)
        self._settle()
        if self.judge is not None:
            self._history.scores.append(self.judge(self._current()))
            if self._best_epoch() == len(self._history.scores):
                self._best = {name: value.copy() for name, value in self._current().items()}
        self._save()

    def _brought(self, portion: Portion) -> Portion:
        """The samples on the device, before the step that sees them."""
        if self._placement is None:
            return portion
        bring, batch = self._placement.bring, portion.batch
        feeds = {name: bring(x) for name, x in batch.feeds.items()}
        return attrs.evolve(portion, batch=attrs.evolve(batch, feeds=feeds, labels=bring(batch.labels)))

    def _fetched(self, value: Any) -> Any:
        return value if self._placement is None else self._placement.fetch(value)

    def _settle(self) -> None:
        """Look at the losses that are still on the device, all at once: a step does not wait for its own.

        Raises:
            DataError: one is not finite.
        """
        losses = self._history.losses
        waiting = [i for i, loss in enumerate(losses) if not isinstance(loss, float)]
        if waiting:
            for i, loss in zip(waiting, self._fetched(np.stack([losses[i] for i in waiting])), strict=True):
                losses[i] = float(loss)
                self._check(losses[i], i)
            assert isinstance(self._scale, DeferredLossScale)
            self._history.left_out = int(self._fetched(self._scale.left_out))

    def _check(self, loss: float, number: int) -> None:
        if not math.isfinite(loss):
            raise DataError(
                f"the loss became {loss} at step {number + 1}: lower lr (it is {self.settings.lr:g}), set clip, or "
                f"check the data"
            )

    def step(self, portions: Sequence[Portion]) -> Any:
        """One update; the loss before it, on the device that it was computed on.

        Raises:
            DataError: the loss is not finite. On a device that shows later, at the end of the epoch.
        """
        loss, grads = self.gradients(portions)
        number, rate = len(self._history.losses), self.settings.lr
        if isinstance(loss, float):
            self._check(loss, number)
        found = self._scale.unscaled(grads)
        if found is None:
            self._history.left_out += 1
            return loss
        warmup = round(self.settings.warmup * self.total)
        rate *= factor(self.settings.schedule, number, self.total, warmup)
        self._optimizer.update(self.parameters, clip(found, self.settings.clip), rate)
        for name, average in self._average.items():
            average += (1 - self.settings.ema) * (self.parameters.values[name] - average)
        return loss

    def gradients(self, portions: Sequence[Portion]) -> tuple[Any, Values]:
        """The loss, and its gradients times the loss scale, averaged over the samples of all portions."""
        whole = sum(portion.batch.size for portion in portions)
        if self._peers is not None:
            portions = [part(portion, self._peers) for portion in portions]
        loss: Any = 0.0
        total: dict[str, Any] = {}
        for portion in portions:
            outputs, pull = self.tape.forward({**portion.batch.feeds, **self.parameters.fed(), **self._statistics})
            value, grads = self._loss(outputs, portion)
            share = portion.batch.size / whole
            found = pull({name: self._scaled(grad, share, outputs[name].dtype) for name, grad in grads.items()})
            self._statistics |= pull.updates
            loss += share * value
            total = {name: total[name] + g if name in total else g for name, g in found.items()}
        return (loss, total) if self._peers is None else self._shared(self._peers, loss, total)

    def _shared(self, peers: Peers, loss: Any, grads: Values) -> tuple[Any, Values]:
        """Loss and gradients of all parts, and the mean of their running statistics."""
        (name, *_) = grads
        total = peers.total(grads)
        summed = peers.total({"loss": namespace(grads[name]).asarray(loss)})["loss"]
        statistics = peers.total(self._statistics)
        self._statistics = {name: (s / peers.count).astype(s.dtype) for name, s in statistics.items()}
        return (float(summed) if isinstance(loss, float) else summed), total

    def _scaled(self, grad: Array, share: float, dtype: Any) -> Array:
        """In the type of the output, where it may overflow: then the step is left out and the scale halved."""
        with np.errstate(over="ignore"):
            return (wide(grad) * (self._scale.scale * share)).astype(dtype, copy=False)

    def _loss(self, outputs: Mapping[str, Array], portion: Portion) -> tuple[Any, Mapping[str, Array]]:
        value, grads = self.objective(outputs, portion.batch)
        if portion.mixed is None or portion.batch.labels is None:  # a teacher is asked about the mixture itself
            return value, grads
        own = portion.mixed
        following = attrs.evolve(portion.batch, labels=np.roll(portion.batch.labels, -1, axis=0))
        other, other_grads = self.objective(outputs, following)
        blended = {name: own * grad + (1 - own) * other_grads[name] for name, grad in grads.items()}
        return own * value + (1 - own) * other, blended

    # --- values -------------------------------------------------------------------------------------------------------

    def _current(self) -> Values:
        values = self._average or self.parameters.values
        return self.parameters.fed(values) | self._statistics

    def _estimated_statistics(self, values: Values) -> Values:
        """Running statistics anew: the mean of those of some training batches, with the weights at rest.

        A step blends momentum of the old statistics with the rest of the new: fed zeros, it returns the rest alone.
        """
        rests = {
            name: 1 - step.node.get("momentum", 0.9)
            for step in self.tape.steps
            if step.node.op_type == "BatchNormalization" and step.node.get("training_mode", 0)
            for name in (self.plan.program.names[slot] for slot in step.inputs[3:5])
        }
        sums = {name: np.zeros_like(values[name], np.float64) for name in rests if name in values}
        zero = {name: np.zeros_like(values[name]) for name in sums}
        count = 0
        for portions in itertools.islice(self.feeder.epoch(0), self.settings.statistics if sums else 0):
            for portion in portions:
                _, pull = self.tape.forward({**portion.batch.feeds, **values, **zero})
                for name in sums:
                    sums[name] += pull.updates[name] / rests[name]
                count += 1
        return {name: (total / count).astype(values[name].dtype) for name, total in sums.items()}

    def _best_epoch(self) -> int:
        scores = self._history.scores
        return 1 + max(range(len(scores)), key=lambda i: (scores[i], -i)) if scores else self._position[0]

    def _has_stalled(self) -> bool:
        scores, patience = self._history.scores, self.settings.patience
        return bool(patience and scores and len(scores) - self._best_epoch() >= patience)

    # --- snapshots ----------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        if not self.settings.snapshot or (self._peers is not None and self._peers.rank):
            return
        self._settle()
        moments = {
            f"moment {i}": {name: held[i] for name, held in self._optimizer.moments.items()}
            for i in range(max(map(len, self._optimizer.moments.values()), default=0))
        }
        arrays = {
            "parameters": self.parameters.values,
            "statistics": self._statistics,
            "average": self._average,
            "best": self._best,
            **moments,
        }
        numbers = {
            "position": self._position,
            "history": attrs.asdict(self._history),
            "updates": self._optimizer.count,
            "scale": {name: np.asarray(self._fetched(n)).item() for name, n in attrs.asdict(self._scale).items()},
        }
        held = {group: {n: self._fetched(v) for n, v in values.items()} for group, values in arrays.items()}
        Snapshot(held, numbers).save(Path(self.settings.snapshot), self._run)

    def _resume(self) -> None:
        found = Snapshot.load(Path(self.settings.snapshot), self._run) if self.settings.snapshot else None
        if found is None:
            return
        if self._placement is not None:
            brought = {g: {n: self._placement.bring(v) for n, v in held.items()} for g, held in found.arrays.items()}
            found = attrs.evolve(found, arrays=brought)
        for name, value in found.arrays["parameters"].items():
            self.parameters.values[name][...] = value
        self._statistics = dict(found.arrays.get("statistics", {}))
        self._average = dict(found.arrays.get("average", {}))
        self._best = dict(found.arrays.get("best", {}))
        groups = [
            found.arrays[f"moment {i}"]
            for i in itertools.takewhile(lambda i: f"moment {i}" in found.arrays, itertools.count())
        ]
        self._optimizer.moments = {name: [group[name] for group in groups] for name in (groups[0] if groups else ())}
        self._optimizer.count = found.numbers["updates"]
        self._history = History(**found.numbers["history"])
        self._scale = type(self._scale)(**found.numbers["scale"])
        epoch, step = found.numbers["position"]
        self._position = (epoch, step)

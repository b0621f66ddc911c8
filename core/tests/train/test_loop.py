"""The loop: it learns, resumes to the same bits, keeps the best, stops, averages, refuses."""

import numpy as np
import pytest

from pumice.data import open_dataset
from pumice.errors import DataError, ModelError, PumiceError
from pumice.steps import Train
from pumice.train import Parameters, Trainer
from pumice.train.application import trainable_plan
from pumice.train.feeding import Feeder
from pumice.train.snapshots import Snapshot

from .conftest import points

EVERYTHING = {"epochs": 3, "batch": 32, "lr": 0.05, "ema": 0.9, "snapshot_every": 1, "warmup": 0.1}


class Interrupted(Exception):
    pass


def trainer(model, dataset, loss, *, objective=None, judge=None, run="run", **knobs):
    settings, plan = Train(**knobs), trainable_plan(model)
    parameters = Parameters.of(plan, freeze=settings.freeze, keep_zeros=settings.keep_zeros)
    feeder = Feeder(dataset, settings.batch, seed=3)
    return Trainer(plan, parameters, objective or loss.value_and_grad, feeder, settings, judge=judge, run=run)


def bits(values):
    return {name: value.tobytes() for name, value in sorted(values.items())}


def test_it_learns(classifier, dataset, loss):
    fit = trainer(classifier(), dataset, loss, epochs=12, batch=32, lr=0.05).fit()
    assert fit.history.losses[0] > 0.5
    assert np.mean(fit.history.losses[-10:]) < 0.35


def test_memory_that_does_not_suffice_is_said_with_the_knobs_that_help(classifier, dataset, loss):
    def exhausting(outputs, batch):
        raise MemoryError("Out of memory allocating 512 bytes")

    with pytest.raises(PumiceError, match=r"32 samples at once \(Out of memory allocating 512 bytes\): set 'memory'"):
        trainer(classifier(), dataset, loss, objective=exhausting, batch=32).fit()


def test_the_same_seed_gives_the_same_bits(classifier, dataset, loss):
    first, second = (trainer(classifier(), dataset, loss, **EVERYTHING).fit() for _ in range(2))
    assert bits(first.values) == bits(second.values)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("stop", [1, 7, 10, 23])
def test_a_run_that_was_interrupted_ends_in_the_same_bits(classifier, dataset, loss, tmp_path, stop, optimizer):
    knobs = {**EVERYTHING, "optimizer": optimizer, "snapshot": str(tmp_path / "state.npz")}
    judged = {"judge": lambda values: -float(np.abs(values["w1"]).sum())}
    whole = trainer(classifier(), dataset, loss, **judged, **{**knobs, "snapshot": ""}).fit()
    seen = []

    def failing(outputs, batch):
        if len(seen) == stop:
            raise Interrupted
        seen.append(None)
        return loss.value_and_grad(outputs, batch)

    with pytest.raises(Interrupted):
        trainer(classifier(), dataset, loss, objective=failing, **judged, **knobs).fit()
    resumed = trainer(classifier(), dataset, loss, **judged, **knobs).fit()
    assert bits(resumed.values) == bits(whole.values)
    assert resumed.history == whole.history


def test_a_snapshot_of_another_run_is_refused(classifier, dataset, loss, tmp_path):
    knobs = {**EVERYTHING, "snapshot": str(tmp_path / "state.npz")}
    trainer(classifier(), dataset, loss, **knobs).fit()
    with pytest.raises(DataError, match="belongs to a training with other settings"):
        trainer(classifier(), dataset, loss, run="another", **knobs).fit()


def test_a_file_that_is_no_snapshot_is_refused(tmp_path):
    path = tmp_path / "state.npz"
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="is not a snapshot"):
        Snapshot.load(path, "run")


def test_a_snapshot_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "state.npz"
    Snapshot({"parameters": {"w": np.ones(3)}}, {"position": [1, 2]}).save(path, "run")
    before = path.read_bytes()
    with pytest.raises(TypeError):
        Snapshot({"parameters": {"w": np.ones(3)}}, {"position": object()}).save(path, "run")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_best_epoch_is_kept(classifier, dataset, loss):
    scores = iter([0.1, 0.9, 0.5])
    kept = []

    def judge(values):
        kept.append(bits(values))
        return next(scores)

    fit = trainer(classifier(), dataset, loss, judge=judge, **EVERYTHING).fit()
    assert fit.best_epoch == 2
    assert bits(fit.values) == kept[1]


def test_it_stops_when_nothing_improves(classifier, dataset, loss):
    knobs = {**EVERYTHING, "epochs": 50, "patience": 2}
    fit = trainer(classifier(), dataset, loss, judge=lambda values: 0.0, **knobs).fit()
    assert fit.stopped_early
    assert len(fit.history.scores) == 3


def test_an_average_of_the_weights_is_kept(classifier, dataset, loss):
    run = trainer(classifier(), dataset, loss, **{**EVERYTHING, "epochs": 1})
    fit = run.fit()
    assert bits(fit.values)["w1"] != bits(run.parameters.values)["w1"]


def test_running_statistics_follow_the_data(classifier, dataset, loss):
    fit = trainer(classifier(), dataset, loss, epochs=4, batch=32, lr=1e-9, statistics=10).fit()
    model = classifier()
    x = np.concatenate([s.feeds["x"] for s in dataset.samples()])
    hidden = x @ model.graph.initializers["w1"].const_value.numpy()
    np.testing.assert_allclose(fit.values["mean"], hidden.mean(axis=0), atol=0.02)
    np.testing.assert_allclose(fit.values["var"], hidden.var(axis=0), rtol=0.1)


def test_stored_statistics_stay_where_the_batch_is_not_asked(classifier, dataset, loss):
    fit = trainer(classifier(), dataset, loss, batch_statistics=False, **EVERYTHING).fit()
    assert "mean" not in fit.values


def test_pruned_elements_stay_zero(classifier, dataset, loss):
    pruned = np.ones((2, 8))
    pruned[:, :3] = 0
    fit = trainer(classifier(w1=pruned), dataset, loss, **EVERYTHING).fit()
    assert not fit.values["w1"][:, :3].any()
    assert fit.values["w1"][:, 3:].all()


def test_a_matrix_of_zeros_has_not_been_pruned_and_learns(classifier, dataset, loss):
    fit = trainer(classifier(w2=np.zeros((8, 2))), dataset, loss, **EVERYTHING).fit()
    assert fit.values["w2"].any()


def test_what_is_frozen_is_no_parameter(classifier):
    parameters = Parameters.of(trainable_plan(classifier()), freeze=["w*"])
    assert sorted(parameters.values) == ["b1", "b2", "scale", "shift"]
    assert parameters.frozen == ("w1", "w2")
    with pytest.raises(ModelError, match="nothing to freeze is called 'conv"):
        Parameters.of(trainable_plan(classifier()), freeze=["conv*"])


def test_running_statistics_are_no_parameters(classifier):
    parameters = Parameters.of(trainable_plan(classifier()))
    assert sorted(parameters.values) == ["b1", "b2", "scale", "shift", "w1", "w2"]
    assert parameters.decayed == {"w1", "w2"}


def test_a_loss_that_explodes_stops_the_training_with_advice(classifier, dataset, loss):
    def exploding(outputs, batch):
        return float("nan"), {"y": np.zeros_like(outputs["y"])}

    with pytest.raises(DataError, match="the loss became nan at step 1: lower lr"):
        trainer(classifier(), dataset, loss, objective=exploding, **EVERYTHING).fit()


def test_a_memory_limit_changes_no_bit(classifier, dataset, loss):
    whole, limited = (trainer(classifier(), dataset, loss, **EVERYTHING, memory=m).fit() for m in (0, 0.006))
    assert bits(limited.values) == bits(whole.values)


def test_narrow_weights_are_trained_wide_with_a_scaled_loss(classifier, loss):
    given = points(320)
    model = classifier(kind=np.float16)
    dataset = open_dataset({**given, "x": given["x"].astype(np.float16)}, model)
    run = trainer(model, dataset, loss, epochs=8, batch=32, lr=0.05)
    fit = run.fit()
    assert {value.dtype for value in run.parameters.values.values()} == {np.dtype(np.float32)}
    assert {value.dtype for value in fit.values.values()} == {np.dtype(np.float16)}
    assert np.mean(fit.history.losses[-10:]) < 0.4

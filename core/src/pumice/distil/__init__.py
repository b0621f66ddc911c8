"""Distillation: a student learns from a teacher's values, not only from labels.

`Distillation` joins losses, taps and a teacher into one objective for the trainer; the `distil` step puts it to work.
The losses themselves are plugins, subclasses of `pumice.DistillationLoss`.
"""

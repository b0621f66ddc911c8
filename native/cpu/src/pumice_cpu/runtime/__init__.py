"""The native runtime: a model compiled once into a flat program of C calls, with no Python between layers.

trace       one run of the plan tells shapes, types and what is constant
compiler    steps become instructions over strided views; `lower` has one module a family of operators
arena       one piece of memory for all values, planned by their lifetimes
executable  instructions as C structs; a run is one call, or a few with reference kernels between
session     programs by input shape, callers, profiles
"""

"""What peers compute, a module a family: `build(peer, seed, threads, **given)` returns a call without arguments.

These modules run in the peers' environment: they import nothing of pumice.
"""

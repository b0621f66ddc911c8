"""The runtime `cuda`: whole models on the GPU, replayed as CUDA graphs.

`strategy` is what pumice finds, `session` an open model, `replay` one recorded run of it for inputs of one shape.
"""

"""Quantization: parameters, calibration, placement, rounding and rewriting. Schemes come from plugins."""

"""Calibration of the adaptation of a model on held-out passages of a data space."""

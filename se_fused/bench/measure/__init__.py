"""Measurements: time, memory, counted bytes, and the limits and the state of a device."""

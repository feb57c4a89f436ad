"""Measuring: time, memory, counted bytes, what a device can do and the state that it is in."""

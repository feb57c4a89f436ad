"""Benchmarks: workloads, the implementations that compute them, measurements and reports."""

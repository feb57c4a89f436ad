"""Benchmarks: workloads, the implementations that compute them, honest measuring, and reports."""

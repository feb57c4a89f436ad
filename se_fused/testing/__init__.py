"""Whether results are right: derived error bounds, and the check of every function against float64."""

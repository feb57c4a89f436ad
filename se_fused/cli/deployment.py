"""Using trained models: predict, export, serve."""

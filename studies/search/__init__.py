"""Hyper-parameter search: a space (YAML), Optuna proposing, Ray Tune running, cells as trials."""

"""What stands around a run: directory, metrics, checkpoints, evaluation, films, plots."""

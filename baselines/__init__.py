"""Other algorithms on the same worlds, one file each: python -m baselines.<name>."""

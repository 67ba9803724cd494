"""What made the figures in results/; run from the repository's root: python -m benchmarks.NAME."""

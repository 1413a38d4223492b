"""Studies of `polarprune serve`: python -m benchmarks.serving."""

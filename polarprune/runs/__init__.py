"""A training run: the program behind `polarprune train`, and what it leaves on disk."""

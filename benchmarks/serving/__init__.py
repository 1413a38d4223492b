"""Recorded studies of `polarprune serve`: each starts a real server and is its client."""

"""Pages and pictures about a run, made from its files alone."""

"""Single layers: what they take, where a network's time goes, and what would save some."""

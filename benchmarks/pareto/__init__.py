"""Accuracy against kept MACs: the whole study, one record a run, resumable across days."""

"""The backends that run a network, behind one protocol (runners.py)."""

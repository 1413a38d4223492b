"""Showing what a network, a run or a bundle is: figures, tables, a drawing."""

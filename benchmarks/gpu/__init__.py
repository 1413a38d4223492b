"""What a GPU shows: `python -m benchmarks.gpu PART`, in parts of minutes that can be continued."""

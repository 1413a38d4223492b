"""`python -m polarprune`."""

from polarprune.cli import main

main()

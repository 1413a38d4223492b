"""`polarprune serve`: bundles behind the Open Inference Protocol, on one machine."""

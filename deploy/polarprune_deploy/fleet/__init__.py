"""Bundles handed to the engines that serve a fleet: Triton, KServe, a container."""

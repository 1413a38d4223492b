"""The graph core: normalise, label, find sites, cut, clean up, lower, cost; one stage a file."""

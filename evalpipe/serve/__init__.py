"""`evalpipe serve`: a local page of the experiments, their counters, decisions and canaries."""

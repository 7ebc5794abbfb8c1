"""Sample quality after equal CPU time: our method and five others, with the same network, data, batch and metrics."""

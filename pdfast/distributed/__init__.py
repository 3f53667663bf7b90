"""Several processes of one run, their device, and their signals."""

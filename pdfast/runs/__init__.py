"""Run directories: config, metrics, saved states, and what is done about damage."""

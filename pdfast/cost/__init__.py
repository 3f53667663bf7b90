"""What a run will take: counted, timed and forecast for `--dry-run`."""

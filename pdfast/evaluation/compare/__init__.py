"""`pdfast compare`: runs side by side."""

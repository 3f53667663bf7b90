"""What is said: the screen, the log, and the sentence for what went wrong."""

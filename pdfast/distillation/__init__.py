"""Progressive distillation: the teacher, the rounds, and what each learns from."""

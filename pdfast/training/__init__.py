"""The update and the loop that training and distillation share."""

"""What can be typed in a chat besides messages: `/help` and its kin."""

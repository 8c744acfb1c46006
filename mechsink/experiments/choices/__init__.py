"""Multiple choice, the Chinchilla way."""

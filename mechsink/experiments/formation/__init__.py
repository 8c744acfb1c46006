"""How sinks form in training: timelines, and what makes them."""

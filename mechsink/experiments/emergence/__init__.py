"""When Attention Sink Emerges, at small scale."""

"""Secondary sinks: found, dated, made by which MLP, steered."""

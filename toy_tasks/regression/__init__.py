"""In-context linear regression: task, predictors in closed form, heads, training."""

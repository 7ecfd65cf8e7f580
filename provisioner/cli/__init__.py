"""Click commands, one renderer, one place that turns an error into text and an exit status."""

"""The outside world, one module each: the only side effects."""

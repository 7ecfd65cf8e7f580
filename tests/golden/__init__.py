"""Texts that macvm writes, compared with files. Regenerate them with `pytest tests/golden --regenerate-golden`."""

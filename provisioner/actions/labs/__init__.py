"""Labs: many machines from one file."""

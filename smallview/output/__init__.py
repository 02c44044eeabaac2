"""Output: what a run leaves for people."""

"""Output for people: plots, tables and drawings."""

"""Model repositories: what is in them, and writing one."""

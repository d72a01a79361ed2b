"""Whether an artifact computes what transformers computes."""

"""Checkpoints of every form: spec, weights, tokenizer, generation defaults."""

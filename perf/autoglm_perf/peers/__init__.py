"""What a user would pick instead: one module a peer, run in an environment of its own."""

"""What a caller says of tools, checked, and as a chat template takes it."""

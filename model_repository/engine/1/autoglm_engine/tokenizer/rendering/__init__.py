"""What a request tells a chat template beside its messages, and where the answer begins."""

"""What the engine asks of the operating system: threads, processes, memory, files."""

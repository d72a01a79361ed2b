"""The options of one request: their table, and how they are read from tensors, texts and other backends' inputs."""

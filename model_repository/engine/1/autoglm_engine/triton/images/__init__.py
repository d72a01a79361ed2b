"""Images on their way through Triton: to the engine with a request, and to the model that encodes them."""

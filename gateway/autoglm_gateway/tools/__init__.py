"""Functions that a model may call: what a request says of them, and the calls in an answer's text."""

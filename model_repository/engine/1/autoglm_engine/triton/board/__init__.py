"""The board in shared memory by which the models of one server know of each other."""

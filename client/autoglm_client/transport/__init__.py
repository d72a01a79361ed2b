"""How requests travel: protobuf, gRPC, TLS, shared memory."""

"""The gateway as a process: sockets, TLS, connections within bounds."""

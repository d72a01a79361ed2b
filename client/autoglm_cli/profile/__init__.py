"""Where the time of a run goes: drives a server, watches its host, and names the bottleneck. Standard library only."""

"""What is seen of requests, and who is told: the access log, metrics for Prometheus, traces."""

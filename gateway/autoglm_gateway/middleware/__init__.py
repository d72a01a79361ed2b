"""What every request passes before an endpoint: keys, limits, bounds."""

"""What the gateway is told when it starts: settings, their file, keys."""

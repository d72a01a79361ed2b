"""What can be said on the command line: options, and groups of them that commands share."""

"""The decoder of every family: its spec, its operators, its one definition."""

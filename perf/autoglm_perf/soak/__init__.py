"""The soak: its traffic, its watch and its verdict."""

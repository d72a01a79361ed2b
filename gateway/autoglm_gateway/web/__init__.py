"""Pages for people: the playground at `/`, and /docs."""

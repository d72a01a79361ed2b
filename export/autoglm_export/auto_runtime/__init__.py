"""`--runtime auto`: which runtime serves a model fastest here."""

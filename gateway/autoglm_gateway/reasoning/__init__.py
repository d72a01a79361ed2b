"""What a model thinks before it answers, apart from its answer."""

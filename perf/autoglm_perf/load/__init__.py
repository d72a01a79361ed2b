"""Load: prompts, arrivals, many streams at once, and their timings."""

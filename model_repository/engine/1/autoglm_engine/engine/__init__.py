"""The engine: requests, slots, the scheduler and the loop that steps."""

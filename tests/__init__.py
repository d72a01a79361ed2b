"""The tests. They name each other, and what they share, from here on: `tests.support...`."""

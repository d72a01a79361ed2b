"""How the small model that sees drawn screens was trained, and how often it taps the right button."""

"""Images in messages: what they may be given as, and how they are sent."""

"""What an app team receives: models, how to load them, what they measured, and how to check it."""

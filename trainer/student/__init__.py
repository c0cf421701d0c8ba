"""The room student."""

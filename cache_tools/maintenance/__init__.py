"""The room maintenance."""

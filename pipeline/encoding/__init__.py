"""The room encoding."""

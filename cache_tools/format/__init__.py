"""The room format."""

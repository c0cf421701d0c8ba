"""The room teachers."""

"""The room viewer."""

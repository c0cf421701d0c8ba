"""The room corpus."""

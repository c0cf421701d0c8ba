"""The room verdicts."""

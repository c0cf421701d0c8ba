"""Measurements behind the README's claims; each module prints a table, or ``--json`` rows."""

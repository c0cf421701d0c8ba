"""The room vocabularies."""

"""The room codecs."""

"""The room tokenizers."""

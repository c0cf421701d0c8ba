"""The demo: corpus, toy teacher and the run that ends in a table."""

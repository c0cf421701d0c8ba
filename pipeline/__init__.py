"""Stage one: documents in, teacher predictions out, into the store. Needs torch; runs once."""

DISTRIBUTION = "logitcask"

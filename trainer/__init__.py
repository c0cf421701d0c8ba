"""Stage two: trains students from the store. No teacher is ever loaded here."""

DISTRIBUTION = "logitcask"

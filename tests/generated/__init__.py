"""Models that tests make up: random DAGs over everything that real models contain."""

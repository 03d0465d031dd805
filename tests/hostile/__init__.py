"""What strangers may hand to the commands: one table of cases, for the tests and for the benchmark."""

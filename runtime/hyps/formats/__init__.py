"""What is written to files and wires, and the units people write."""

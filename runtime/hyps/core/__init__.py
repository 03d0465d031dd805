"""The pure state machines: one event in, instructions out; no I/O, no clock, no arrays."""

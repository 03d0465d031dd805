"""The cluster in virtual time: the very state machines of manager and nodes, with faults drawn from seeds."""

"""A manager and its nodes on a testbed, for benchmarks: plans placed by hand, processes, requests, what they took."""

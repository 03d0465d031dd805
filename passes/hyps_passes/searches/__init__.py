"""Searches over a cut graph: split points and partitionings. Plain functions of immutable inputs."""

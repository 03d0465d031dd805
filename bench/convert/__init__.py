"""Conversion of many models from many frameworks: does it succeed, at what cost, how far off is the result."""

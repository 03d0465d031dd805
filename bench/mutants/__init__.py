"""Puts deliberate faults into a copy of HyPS, one at a time, and sees whether the tests catch each of them."""

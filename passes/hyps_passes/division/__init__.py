"""Dividing a region of a model into pieces: rules per operator, one engine that applies them."""

"""A small convolutional network trained on scikit-learn's handwritten digits, with the images to test it on."""

from hyps_models.digits.network import digits_test

__all__ = ["digits_test"]

"""Graph rewrites: valid model in, valid model out, equal outputs."""

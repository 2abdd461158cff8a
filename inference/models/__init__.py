"""Transformers' models, with our attention and our linears in them."""

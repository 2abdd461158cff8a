"""Merges: an adapter into its base model, or several adapters into one. Knows no Django and, at import, no torch.

checkpoint    the tensors of a base model on disk, and which parameter each becomes
changes       what an adapter makes of each parameter, a block of rows at a time
writing       safetensors files, written tensor by tensor and whole or not at all
standalone    an adapter in its base, as a checkpoint of its own
verification  whether that checkpoint answers as base and adapter do
arithmetic    what PEFT's add_weighted_adapter computes of several pairs
combination   several adapters as one
"""

"""Adapters on the device: files to weights, weights to slots, slots to rows."""

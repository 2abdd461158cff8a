"""Knows what a request may say: OpenAI's fields, their types and limits, and vLLM's extras; knows nothing of who asks.

Types are strict. A field that OpenAI has and that asks for nothing (`user`, `tools: []`) is dropped; one that asks for
what is not served here is refused by name, and so is one that nobody knows: nothing is silently ignored.
"""

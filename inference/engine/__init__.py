"""The engine: one loop that decodes every tenant's sequences in one batch."""

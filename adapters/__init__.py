"""What both planes share about adapters: format, validation, storage. Knows no Django and, at import, no torch."""

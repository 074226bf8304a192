"""Whose text is trained on."""

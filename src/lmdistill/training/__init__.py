"""Training: one thin subclass of `transformers.Trainer`, and what it is given."""

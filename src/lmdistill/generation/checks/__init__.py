"""The checks that a generated row must pass, one concept a module; `lmdistill.generation.filters` chains them."""

"""Finding passages: by words (BM25), and by vectors of an encoder that learns a better-informed order."""

"""Tasks beyond the next token: labelled rows, encoders and other students, their losses, training and scores.

A recipe with a `task` is carried out here and in `stages/task_*.py`; the kinds are classes or a number of a text or a
pair, a class of each word, an embedding, and masked tokens.
"""

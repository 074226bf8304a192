"""A local page over a folder of runs: live progress, comparison, chat, heat maps, generated data and signals.

Gradio (extra `studio`) is imported by `app.py` and `server.py` alone; what the tabs show is made by modules without it.
"""

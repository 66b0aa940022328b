"""The generation half: question/answer pairs -> training rows -> adapter -> generated text.

Training and serving build their prompts with the same function (prompt.py), because an adapter is only as
good as the match between the two. Nothing here imports the service.
"""

"""Both halves at work: question -> passages -> prompt -> answer, over HTTP, a chat page and the command line.

There is one answering path (answering.py); every caller uses it.
"""

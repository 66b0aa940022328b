"""The retrieval half: documents -> chunks -> vectors -> passages.

SQLite holds everything and FAISS is derived from it, because FAISS files carry no checksum: a damaged one
loads and answers wrongly. Nothing here imports the tuner or the service.
"""

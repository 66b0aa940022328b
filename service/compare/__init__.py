"""The trade-off, measured on the user's own documents: the same questions in every arm, scored, tested, with a verdict.

Every answer of an arm that runs a model comes from service.answering.Answerer, so what is measured is what is served.
Records of answers (records.py) are written as they come and everything else is computed from them: a comparison that
was cut off goes on where it was, and a metric can be computed again without asking again.
"""

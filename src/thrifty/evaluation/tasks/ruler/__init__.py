"""RULER's thirteen tasks (2404.06654): `needles` eight times, tracing, two kinds of counting, and made-up documents.

Their structure, counts and answers' lengths are RULER's; the sentences are Thrifty's own. `qa_made_1` and `qa_made_2`
stand for SQuAD and HotpotQA, which no package carries: their documents are made up, so no figure of theirs is RULER's.
"""

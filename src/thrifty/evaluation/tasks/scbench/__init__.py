"""SCBench's tasks (2412.10319): several questions over one context, in two ways to share it.

Their kinds and scores are SCBench's; contexts and sentences are generated, or read from what every installation of
Python has. Of the twelve, `qa_chn` is missing: no Chinese text lies on every machine.
"""

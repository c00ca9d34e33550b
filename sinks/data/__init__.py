"""Token streams: Bigram-Backcopy and real text, in one order of data."""

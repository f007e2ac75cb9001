"""Token scores: `shards` computes raw values, `merging` joins them, `scorers` says what a score is, `weights` what a weight is.

Training imports the last two only, so that its key does not depend on how scores are computed.
"""

"""Whether a fix does at each token what the sink did: rank correlations of runs, token by token."""

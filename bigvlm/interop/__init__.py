"""In and out: models of other libraries as ours, and ours as theirs."""

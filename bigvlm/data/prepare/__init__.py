"""What is done with data sets before a run: checking, counting, converting, filtering; the work behind tools/data.py."""

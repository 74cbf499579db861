"""Parts for the tests of the data pipeline, reached by dotted names."""

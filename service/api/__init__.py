"""The HTTP interface: thin routes over the answerer, the store and the jobs."""

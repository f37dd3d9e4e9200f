"""A real deployment, for the tests and the demo: what runs in it and how it is started."""

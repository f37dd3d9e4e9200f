"""A real deployment, for the tests and the demo: what runs in it and how it is started."""

import os

# Debian's servers, nginx for one, are not on the path of an ordinary user.
os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"

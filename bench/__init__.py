"""What whoami-router costs, beside what it is compared with: ``make bench``."""

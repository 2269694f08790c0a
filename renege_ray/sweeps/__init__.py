"""What a trial of a sweep does and reports, what is searched, and whether a gain was luck."""

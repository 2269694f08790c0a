"""What people read of an evaluation: tables in four formats, plots, and one HTML file that holds everything.

`report.html` needs no network and no other file: styles, program, plots and pictures are in it.
"""

"""What ``studies/speed.py`` is made of: cases, probes of the machine, rooflines, reports."""

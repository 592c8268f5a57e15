"""Measurements, printed as ratios within one run; `make bench` runs them all.

Nothing here is a test: machines differ, and so do their moods.
"""

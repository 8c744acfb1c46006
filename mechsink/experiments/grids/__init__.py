"""Grids of toys over seeds: trained side by side, measured, summarised."""

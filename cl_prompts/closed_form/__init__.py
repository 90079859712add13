"""Heads without gradient: ridge regression and linear discriminants from running sums, in float64."""

"""Recipes, installed with the package so that they are found by name."""

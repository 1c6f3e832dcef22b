"""Optuna's dashboard over our studies: notes, artifacts and graphs for it, and the server.

Written by the driver's process alone, from our tables, and again after a crash: nothing twice.
"""

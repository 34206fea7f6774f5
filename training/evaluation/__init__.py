"""The parts of :mod:`training.evaluate`: models, kinds of sets, results, reports.

Imports torch and the core.
"""

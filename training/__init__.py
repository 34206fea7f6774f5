"""Training of embedders: margin heads, BroadFace, backbones, data, the loop, export.

Imports facerec's core and torch, never gallery or gradio. Importing this package loads
nothing heavy; its modules load torch.
"""

"""facerec: face recognition that you host and retrain yourself.

The core package: images, detection, alignment, embedding, metrics and model
packs. ``gallery`` keeps people, ``training`` makes embedders. Importing this
package imports nothing else.
"""

__version__ = "0.1.0"

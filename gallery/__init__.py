"""Identities and templates: enrol, identify, verify, remove.

The public interface is what ``__all__`` lists. May import the facerec core, faiss
and SQLAlchemy; never torch, gradio or the training package.
"""

from gallery.archive import ExportManifest
from gallery.gallery import Gallery
from gallery.transfer import Conflict, ImportResult, from_export, read_manifest
from gallery.values import NewTemplate, Removal

__all__ = [
    "Conflict",
    "ExportManifest",
    "Gallery",
    "ImportResult",
    "NewTemplate",
    "Removal",
    "from_export",
    "read_manifest",
]

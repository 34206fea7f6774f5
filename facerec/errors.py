"""The one error tree of facerec; every package raises only these.

::

    FacerecError
    ├── ConfigError            a setting, flag or file of settings is wrong
    ├── ImageError             an image cannot be read, or has no usable face
    ├── ModelError             a pack, a model file or a device cannot be used
    ├── ContractMismatch       vectors of two embedding contracts would meet
    └── GalleryError           the gallery cannot do what was asked
        ├── IdentityExists     the name is taken
        ├── IdentityNotFound   no such name or id
        └── StoreCorrupt       the database is damaged; nothing was overwritten

A message names the input, the reason and the remedy, in sentences that a page
or a terminal can show as they are. Exceptions of other libraries are
translated where they enter, with the cause kept (``raise ... from exc``).
This module imports nothing.
"""


class FacerecError(Exception):
    """Base of every error that facerec raises on purpose.

    ``exit_code`` is what the command line returns for it.
    """

    exit_code = 1


class ConfigError(FacerecError):
    """A setting, a flag or a settings file is wrong."""

    exit_code = 2


class ImageError(FacerecError):
    """An image cannot be read, or holds no face where one is needed."""

    exit_code = 3


class ModelError(FacerecError):
    """A pack, a model file or a device cannot be used."""

    exit_code = 4


class GalleryError(FacerecError):
    """The gallery cannot do what was asked; it is unchanged."""

    exit_code = 5


class IdentityExists(GalleryError):
    """The name belongs to another identity of this gallery."""


class IdentityNotFound(GalleryError):
    """No identity, or no template, of that name or id."""


class StoreCorrupt(GalleryError):
    """The gallery's database is damaged. Nothing was overwritten."""


class ContractMismatch(FacerecError):
    """Vectors of two embedding contracts would have been compared."""

    exit_code = 6

"""Encoded images as they are stored: JPEG and PNG byte for byte, the rest as PNG."""

import io

from PIL import Image

from spvit_jax.data.decode import DAMAGE, open_image

_JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_PNG = b"\x89PNG\r\n\x1a\n"


def storable(data: bytes, name: str) -> bytes:
    """``data`` itself if it is a JPEG or PNG, else a PNG of the RGB pixels that it decodes to.

    Decoding everything would take hours for a large set: of a JPEG the header is read and the mark
    at its end looked for, of a PNG all checksums are compared, and what fails that is decoded. So
    what is empty, cut off or no image is found; a JPEG whose middle is damaged is not.

    Raises:
      DataError: such an image; names it as ``name``.
    """
    if not data.startswith((_JPEG, _PNG)):
        file = io.BytesIO()
        open_image(data, name).full().save(file, format="PNG")
        return file.getvalue()
    if not _looks_whole(data):
        open_image(data, name).full()
    return data


def _looks_whole(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data)) as opened:
            opened.verify()
    except DAMAGE:
        return False
    return data.startswith(_PNG) or data[-64:].rstrip(b"\0\r\n").endswith(_JPEG_END)

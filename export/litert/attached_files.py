"""Files that TFLite's metadata keeps in a ZIP behind the model, such as labels.

https://ai.google.dev/edge/litert/conversion/tensorflow/metadata: the FlatBuffer comes first, and
a ZIP archive is appended; each sees its own end of the file.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path

MAX_BYTES = 64 << 20  # of all files, unpacked


def carry_over(source: Path, content: bytes) -> tuple[bytes, tuple[str, ...]]:
    """The new file's content with what was attached to the source, and a note where there was."""
    try:
        with zipfile.ZipFile(source) as archive:
            entries = archive.infolist()
            names = ", ".join(entry.filename for entry in entries[:5])
            if sum(entry.file_size for entry in entries) > MAX_BYTES:
                raise ValueError(f"they are larger than {MAX_BYTES} bytes")
            found = [(entry.filename, archive.read(entry)) for entry in entries]
    except zipfile.BadZipFile:
        return content, ()  # nothing is attached
    except (ValueError, OSError, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
        return content, (f"files attached to the source are left out: {error}",)
    whole = io.BytesIO(content)
    with zipfile.ZipFile(whole, "a", zipfile.ZIP_DEFLATED) as archive:
        for name, data in found:
            archive.writestr(name, data)
    return whole.getvalue(), (f"carried over {len(found)} attached files: {names}",)

"""Lines for the user of a site, from the processes that answer messages to `genfed join`, which shows them."""

from genfed.core.files import open_file
from genfed.core.text import one_line
from genfed.deployment.site_settings import LocatedSite

NOTICES = "notices.log"
"""File name of the lines, in the folder of the site."""
_LONGEST = 500
_LARGEST = 2**20  # bytes of the file


def add(site: LocatedSite, text: str) -> None:
    """Adds a line. Other parties may have written a part of it: control characters are escaped, and it is bounded."""
    line = one_line(text, _LONGEST)
    file = site.folder / NOTICES
    if not file.exists() or file.stat().st_size < _LARGEST:
        with open_file(file, "a") as lines:
            lines.write(f"{line}\n")


class NoticeReader:
    """Reads the lines that are added from now on."""

    def __init__(self, site: LocatedSite) -> None:
        """Deletes older lines, which an earlier `genfed join` has shown."""
        self._file, self._place = site.folder / NOTICES, 0
        self._file.unlink(missing_ok=True)

    def read(self) -> list[str]:
        """Returns the lines that were added since the last time."""
        if not self._file.exists():
            return []
        with self._file.open("rb") as lines:
            lines.seek(self._place)
            new = lines.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._place += len(whole)
        return whole.decode("utf-8", "replace").splitlines()

"""Make the links of README.md absolute: a package index shows it without the repository.

python .github/absolute_links.py README.md https://github.com/OWNER/NAME REVISION
"""

import re
import sys
from pathlib import Path

LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?://|#)([^)\s]+)\)")


def absolute(text: str, repository: str, revision: str) -> str:
    """Return a Markdown text whose relative links lead into a revision of a repository."""

    def lead(link: re.Match) -> str:
        kind = "raw" if link[1] else "blob"  # pictures, pages
        return f"{link[1]}[{link[2]}]({repository}/{kind}/{revision}/{link[3]})"

    return LINK.sub(lead, text)


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(absolute(page.read_text("utf-8"), *sys.argv[2:]), "utf-8")

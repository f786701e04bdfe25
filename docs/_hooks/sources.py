"""For the site: links from a page to files outside of docs/ lead to copies of them on the site.

On a code host such links show the file. The site has a page for each file, or folder, that some page
links to; a folder of the package is its page of the API reference.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
# the target of a link, or code, in which there are none
LINK = re.compile(r"^(`{3,}).*?^\1`*$|(?<=\]\()(?![a-z]+:|#|/)(?P<target>[^)\s#]+)", re.MULTILINE | re.DOTALL)
HIDDEN = "---\nsearch:\n  exclude: true\n---\n\n"
LANGUAGES = {".py": "python", ".yaml": "yaml", ".sh": "bash", ".sbatch": "bash"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each linked file, and for those that they link to."""
    waiting = [file.src_uri for file in files.documentation_pages()]
    texts = {uri: (Path(config.docs_dir) / uri).read_text() for uri in waiting}
    while waiting:
        uri = waiting.pop()
        for link in LINK.finditer(texts[uri]):
            outside = outside_of_docs(uri, link["target"])
            page = outside and page_of(outside)
            if outside and page and page not in texts:
                texts[page] = text_of(ROOT / outside)
                waiting.append(page)
                files.append(
                    File.generated(config, page, content=texts[page], inclusion=InclusionLevel.NOT_IN_NAV)
                )
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to files outside of docs/ to their pages."""
    here = page.file.src_uri

    def turned(found: re.Match[str]) -> str:
        outside = outside_of_docs(here, found["target"])
        return posixpath.relpath(page_of(outside), posixpath.dirname(here) or ".") if outside else found[0]

    return LINK.sub(turned, markdown)


def outside_of_docs(uri: str, link: str | None) -> str | None:
    """The path, seen from the root of the repository, of a link that leaves docs/; None for others."""
    copied = uri.startswith("source/")
    folder = posixpath.dirname(uri.removeprefix("source/") if copied else f"docs/{uri}")
    path = posixpath.normpath(posixpath.join(folder, link or ""))
    if link is None or not (ROOT / path).exists():  # mkdocs says so
        return None
    return path if copied or not path.startswith("docs/") else None


def page_of(path: str) -> str:
    """The page on the site of a file or folder."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    reference = f"reference/{posixpath.basename(path)}.md"
    if path.startswith("lightning_signvr/") and (ROOT / "docs" / reference).exists():
        return reference
    return f"source/{path}" if path.endswith(".md") else f"source/{path}.source.md"


def text_of(path: Path) -> str:
    """The page: Markdown as it is, other files in a frame, a folder as its files."""
    if path.suffix == ".md":
        return HIDDEN + path.read_text()
    title = path.relative_to(ROOT).as_posix()
    if path.is_dir():
        inside = sorted(file for file in path.iterdir() if file.is_file())
        return f"{HIDDEN}# {title}\n\n" + "\n".join(f"## {file.name}\n\n{framed(file)}" for file in inside)
    return f"{HIDDEN}# {title}\n\n{framed(path)}"


def framed(path: Path) -> str:
    return f"````{LANGUAGES.get(path.suffix, 'text')}\n{path.read_text()}````\n"

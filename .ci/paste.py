"""Makes a project of a page: python3 .ci/paste.py PAGE PROJECT.

Its dependencies are those of the page's `cargo add` lines, or the crate `deltallm` if there are none; every block of Rust is a
program of its own, as it stands or, without a `main`, inside one. Prints the names of the programs, with `:no_run` behind those
that are only to be built.
"""

import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAIN = "fn main() -> Result<(), Box<dyn std::error::Error>> {{\n{}\nOk(())\n}}\n"


def blocks(text):
    """Language, attributes and code of each fenced block."""
    for info, code in re.findall(r"^```([^\n]*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        language, *attributes = info.split(",")
        yield language, attributes, code


def dependencies(shell):
    """Lines of Cargo.toml for the `cargo add NAME [--features A,B]` of a page."""
    versions = (ROOT / "Cargo.toml").read_text()
    added = re.findall(r"^cargo add ([\w-]+)(?:[^\n#]*?--features ([\w,-]+))?", shell, re.MULTILINE)
    for name, features in added or [("deltallm", "")]:
        listed = ", ".join(f'"{feature}"' for feature in features.split(",") if feature)
        folder = ROOT / "crates" / name
        version = re.search(rf'^{name} = (?:"|\{{ version = ")([^"]+)"', versions, re.MULTILINE)
        if folder.is_dir():
            source = f'path = "{folder}"'
        elif version:
            source = f'version = "{version[1]}"'
        else:
            sys.exit(f"error: `cargo add {name}`: a crate that this repository does not use")
        yield f"{name} = {{ {source}, features = [{listed}] }}"


def main(page, project):
    found = list(blocks(page.read_text()))
    programs = [(attributes, code) for language, attributes, code in found if language == "rust"]
    if not programs:
        return
    shell = "".join(code for language, _, code in found if language == "sh")
    (project / "src/bin").mkdir(parents=True)
    manifest = '[package]\nname = "pasted"\nversion = "0.0.0"\nedition = "2024"\n\n[workspace]\n\n[dependencies]\n'
    (project / "Cargo.toml").write_text(manifest + "\n".join(dependencies(shell)) + "\n")
    shutil.copy(ROOT / "Cargo.lock", project)
    for number, (attributes, code) in enumerate(programs, 1):
        name = f"block_{number}"
        whole = re.search(r"^fn main\b", code, re.MULTILINE)
        (project / "src/bin" / f"{name}.rs").write_text(code if whole else MAIN.format(code))
        print(name + (":no_run" if "no_run" in attributes else ""))


main(Path(sys.argv[1]), Path(sys.argv[2]))

"""Questions to `cargo metadata` (JSON on standard input), for the scripts beside this one.

published            the crates that are published, each after those it depends on
features             for each of them a line per set of features that must build alone: crate, features
rust-version         fails if a dependency of a published crate needs a newer Rust than the workspace says
docs                 fails if a published crate lacks what its page on the registry and on docs.rs needs
"""

import json
import sys
from pathlib import Path

metadata = json.load(sys.stdin)
members = {p["id"]: p for p in metadata["packages"] if p["id"] in metadata["workspace_members"]}
published = {p["name"]: p for p in members.values() if p["publish"] is None}


def in_order():
    """Published crates, each after those of them that it depends on."""
    done = []

    def visit(name):
        for dependency in published[name]["dependencies"]:
            if dependency["name"] in published and dependency["kind"] is None:
                visit(dependency["name"])
        if name not in done:
            done.append(name)

    for name in sorted(published):
        visit(name)
    return done


def feature_sets(package):
    """Each feature by itself, and none, unless one of several is needed (`[package.metadata.ci] one-of`)."""
    ci = (package["metadata"] or {}).get("ci", {})
    one_of = ci.get("one-of", [])
    names = sorted(set(package["features"]) - {"default"})
    if not one_of:
        return [[]] + [[name] for name in names]
    alone = [[name] for name in one_of]
    return alone + [[one_of[0], name] for name in names if name not in one_of]


def version(text):
    return tuple(int(part) for part in (text.split(".") + ["0", "0"])[:3])


def newer_than_stated():
    packages = {p["id"]: p for p in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    problems, seen, waiting = [], set(), [p["id"] for p in published.values()]
    stated = next(iter(published.values()))["rust_version"]
    while waiting:
        package = packages[waiting.pop()]
        if package["id"] in seen:
            continue
        seen.add(package["id"])
        needed = package["rust_version"]
        if needed and version(needed) > version(stated):
            problems.append(f"{package['name']} {package['version']} needs Rust {needed}, the workspace says {stated}")
        for dependency in nodes[package["id"]]["deps"]:
            # Normal and build dependencies; what tests need does not bind users.
            if any(kind["kind"] != "dev" for kind in dependency["dep_kinds"]):
                waiting.append(dependency["pkg"])
    print(f"{len(seen)} packages looked at; stated: Rust {stated}")
    return problems


def incomplete():
    problems = []
    for name, package in published.items():
        folder = Path(package["manifest_path"]).parent
        for field in ("description", "license", "readme", "documentation", "categories", "keywords", "rust_version"):
            if not package[field]:
                problems.append(f"{name}: no `{field}`")
        for file in ("README.md", "LICENSE"):
            if not (folder / file).is_file():
                problems.append(f"{name}: no {file} beside Cargo.toml")
        docs_rs = (package["metadata"] or {}).get("docs", {}).get("rs", {})
        if docs_rs.get("all-features") is not True or "--cfg" not in docs_rs.get("rustdoc-args", []):
            problems.append(f"{name}: [package.metadata.docs.rs] without all-features or `--cfg docsrs`")
    return problems


def main():
    question = sys.argv[1]
    if question == "published":
        print("\n".join(in_order()))
    elif question == "features":
        for name in in_order():
            for features in feature_sets(published[name]):
                print(name, ",".join(features))
    else:
        problems = {"rust-version": newer_than_stated, "docs": incomplete}[question]()
        if problems:
            sys.exit("\n".join(f"error: {problem}" for problem in problems))


main()

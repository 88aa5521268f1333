"""Fails where modules of a crate import each other in a circle, and prints what ties it.

A module is a file; what stands in `mod name { … }` inside of it belongs to it. Imports are `use` declarations and paths
that begin with `crate::`, `self::` or `super::`, followed through re-exports to the file that defines the name. Code under
`#[cfg(test)]` and comments do not count. Reads the sources as text: python3 .ci/circles.py [CRATE/src …].
"""

import re
import sys
from pathlib import Path


def stripped(text):
    """Source without comments, strings and what is compiled for tests alone."""
    token = re.compile(
        r"//[^\n]*|/\*.*?\*/|r#*\".*?\"#*|b?\"(?:\\.|[^\"\\])*\"|b?'(?:\\.[^']*|[^'\\])'", re.DOTALL
    )
    text = token.sub(" ", text)
    out, at = [], 0
    for match in re.finditer(r"#\[cfg\((?:all\()?test\b[^\]]*\]", text):
        if match.start() < at:
            continue
        out.append(text[at : match.start()])
        at = end_of_item(text, match.end())
    return "".join(out) + text[at:]


def end_of_item(text, at):
    """Where the item that begins at `at` ends: behind its block, or its semicolon."""
    depth = 0
    for place in range(at, len(text)):
        if text[place] == "{":
            depth += 1
        elif text[place] == "}":
            depth -= 1
            if depth == 0:
                return place + 1
        elif text[place] == ";" and depth == 0:
            return place + 1
    return len(text)


def paths_of(tree, prefix=()):
    """Every (path, name) of a use tree: `a::{b, c as d}` gives ((a, b), b) and ((a, c), d)."""
    tree = tree.strip()
    if not tree:
        return
    brace = tree.find("{")
    if brace >= 0:
        head = [part.strip() for part in tree[:brace].split("::") if part.strip()]
        depth, start, inside = 0, 0, tree[brace + 1 : tree.rindex("}")]
        for place, letter in enumerate(inside + ","):
            if letter == "{":
                depth += 1
            elif letter == "}":
                depth -= 1
            elif letter == "," and depth == 0:
                yield from paths_of(inside[start:place], (*prefix, *head))
                start = place + 1
        return
    path, _, name = (part.strip() for part in tree.partition(" as "))
    parts = tuple(part.strip() for part in path.split("::") if part.strip())
    if parts[-1] == "self":
        parts = parts[:-1]
    whole = (*prefix, *parts)
    yield whole, name or whole[-1]


class Crate:
    """The modules of a crate: path in the crate -> file, what it re-exports, and the paths that it names."""

    def __init__(self, source):
        self.files, self.exports, self.named, self.defined = {}, {}, {}, {}
        root = source / "lib.rs" if (source / "lib.rs").exists() else source / "main.rs"
        for file in sorted(source.rglob("*.rs")):
            parts = list(file.relative_to(source).with_suffix("").parts)
            if parts[0] == "bin" or parts[-1] == "tests" or (len(parts) == 1 and file != root and parts[0] in ("main", "lib")):
                continue
            module = () if file == root else tuple(parts[:-1] if parts[-1] == "mod" else parts)
            self.files[module] = file
            self.read(module, stripped(file.read_text()))

    def read(self, module, text):
        exports, named = {}, []
        for match in re.finditer(r"\b(pub(?:\([^)]*\))?\s+)?use\s+([^;]+);", text):
            for path, name in paths_of(match[2]):
                named.append(path)
                exports[name] = path
        text = re.sub(r"\buse\s+[^;]+;", " ", text)
        for match in re.finditer(r"\b(?:crate|self|super)(?:::\w+)+", text):
            named.append(tuple(match[0].split("::")))
        for child in re.findall(r"\bmod\s+(\w+)\s*;", text):
            if re.search(rf"(?<![:\w]){child}::\w", text):
                named.append(("self", child))
        self.exports[module], self.named[module] = exports, named
        self.defined[module] = set(
            re.findall(r"\b(?:fn|struct|enum|trait|type|const|static|union|macro_rules!)\s+(\w+)", text)
        )

    def resolve(self, module, path, seen=()):
        """The module in which the name at the end of `path` is defined, or None for one of another crate."""
        at, rest = list(module), list(path)
        if rest[0] == "crate":
            at, rest = [], rest[1:]
        elif rest[0] == "self":
            rest = rest[1:]
        elif rest[0] == "super":
            while rest and rest[0] == "super":
                at, rest = at[:-1], rest[1:]
        elif (*at, rest[0]) not in self.files:
            return None
        while rest and (*at, rest[0]) in self.files:
            at, rest = [*at, rest[0]], rest[1:]
        here = tuple(at)
        if not rest or here not in self.files:
            return here if here in self.files else None
        again = self.exports[here].get(rest[0])
        if again and rest[0] not in self.defined[here] and (here, rest[0]) not in seen and again != path:
            return self.resolve(here, (*again, *rest[1:]), (*seen, (here, rest[0])))
        return here

    def arrows(self):
        for module, named in self.named.items():
            for path in named:
                to = self.resolve(module, path)
                if to is not None and to != module:
                    yield module, to, path[-1]


def circles(arrows):
    """Strongly connected components of more than one module (Tarjan)."""
    graph = {}
    for a, b, _ in arrows:
        graph.setdefault(a, set()).add(b)
        graph.setdefault(b, set())
    index, low, stack, found = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for to in graph[node]:
            if to not in index:
                visit(to)
                low[node] = min(low[node], low[to])
            elif to in stack:
                low[node] = min(low[node], index[to])
        if low[node] == index[node]:
            part = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(part) > 1:
                found.append(set(part))

    sys.setrecursionlimit(10_000)
    for node in graph:
        if node not in index:
            visit(node)
    return found


def main():
    sources = [Path(name) for name in sys.argv[1:]] or sorted(
        [*Path("crates").glob("*/src"), Path("benches/src"), Path("fuzz/src")]
    )
    count = files = 0
    for source in sources:
        crate = Crate(source)
        files += len(crate.files)
        arrows = sorted(set(crate.arrows()))
        for circle in circles(arrows):
            count += 1
            print(f"{source}: a circle of {len(circle)} modules")
            for a, b, name in arrows:
                if a in circle and b in circle:
                    print(f"  {crate.files[a]} -> {crate.files[b]}: {name}")
    print(f"{files} files of {len(sources)} crates, {count} circles")
    if count:
        sys.exit("error: modules that import each other in a circle: move what both need into a third, or join them")


main()

"""Builds what times llama.cpp and ik_llama.cpp, from packages that bring their sources with them."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

PACKAGE = "llama-cpp-python"
IK_CRATE, IK_VERSION = "ik-llama-cpp-sys", "0.1.7"

# What both do by default on the machine they are built on, in one binary and without what needs a network.
SHARED_OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "GGML_NATIVE": "ON",
    "BUILD_SHARED_LIBS": "OFF",
    "GGML_CCACHE": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_SERVER": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
}
OPTIONS = {**SHARED_OPTIONS, "LLAMA_BUILD_APP": "OFF", "LLAMA_OPENSSL": "OFF", "LLAMA_USE_PREBUILT_UI": "OFF"}
IK_OPTIONS = {**SHARED_OPTIONS, "LLAMA_CURL": "OFF"}


class BuildError(Exception):
    """One line for the user."""


def build(folder, version, jobs):
    """Leaves `llama-bench`, `llama-perplexity` and `build.json`, which says what was built, in `folder` and returns the path of the first."""
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    archive = download(folder / "sdist", version)
    package = re.sub(r".*-|\.tar\.gz$", "", archive.name)
    source, commit = unpack(archive, folder / "source" / package, package)
    mended = mend(source)
    target = folder / "build" / package
    options = {**OPTIONS, "LLAMA_BUILD_COMMIT": commit}
    for program in ("llama-perplexity", "llama-bench"):
        make(source, target, options, program, jobs)
        binary = folder / program
        write_whole(binary, (target / "bin" / program).read_bytes(), mode=0o755)
    about = {"package": f"{PACKAGE} {package}", "commit": commit, "options": options, "mended": mended, **cache_values(target)}
    write_whole(folder / "build.json", (json.dumps(about, indent=1) + "\n").encode())
    return binary


def build_ik(folder, jobs):
    """Leaves `ik-bench` and `ik-build.json` in `folder` and returns the path of the former."""
    folder = Path(folder).resolve()
    source = ik_source(folder / "ik-source")
    target = folder / "build" / f"{IK_CRATE}-{IK_VERSION}"
    # The package leaves out the program that times, so there is one here, and it becomes part of that build.
    program = Path(__file__).with_name("ik_bench.cpp")
    make(source, target, {**IK_OPTIONS, "CMAKE_PROJECT_INCLUDE": ik_bench(folder, program)}, "ik-bench", jobs)
    binary = folder / "ik-bench"
    write_whole(binary, next(target.glob("**/ik-bench")).read_bytes(), mode=0o755)
    about = {"package": f"{IK_CRATE} {IK_VERSION}", "options": IK_OPTIONS, **cache_values(target)}
    write_whole(folder / "ik-build.json", (json.dumps(about, indent=1) + "\n").encode())
    return binary


def ik_source(folder):
    """The sources of ik_llama.cpp, which cargo gets with a package that needs that crate."""
    if not folder.exists():
        scratch = folder.with_name(folder.name + ".tmp")
        shutil.rmtree(scratch, ignore_errors=True)
        (scratch / "src").mkdir(parents=True)
        (scratch / "src/lib.rs").touch()
        manifest = f'[package]\nname = "needs"\n[dependencies]\n{IK_CRATE} = "={IK_VERSION}"\n[workspace]\n'
        (scratch / "Cargo.toml").write_text(manifest)
        run(["cargo", "vendor", "--manifest-path", scratch / "Cargo.toml", scratch / "vendor"])
        scratch.rename(folder)
    return folder / "vendor" / IK_CRATE / "ik_llama.cpp"


def ik_bench(folder, program):
    """A file that CMake reads with the project's own, which adds our program to it once all targets are known."""
    text = f"""function(add_ik_bench)
  add_executable(ik-bench {program})
  target_link_libraries(ik-bench PRIVATE llama)
endfunction()
if(PROJECT_NAME STREQUAL "llama.cpp")
  cmake_language(DEFER CALL add_ik_bench)
endif()
"""
    path = folder / "ik-bench.cmake"
    write_whole(path, text.encode())
    return path


def make(source, target, options, program, jobs):
    cmake, ninja = tool("cmake"), tool("ninja")
    if cmake is None:
        raise BuildError(f"expected cmake, found none; {sys.executable} -m pip install cmake ninja")
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
    defines = [f"-D{name}={value}" for name, value in options.items()]
    run([cmake, "-S", source, "-B", target, *generator, *defines])
    run([cmake, "--build", target, "--target", program, "--parallel", str(jobs)])


def tool(name):
    """The program beside this Python, as in a virtual environment, or else on the PATH."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def download(folder, version):
    """The source package. An archive that is there already is taken, if it is of the version asked for."""
    requirement = f"{PACKAGE}=={version}" if version else PACKAGE
    stem = PACKAGE.replace("-", "_")
    there = sorted(folder.glob(f"{stem}-{version or '*'}.tar.gz"))
    if not there:
        # Only this package has to be source: what pip needs to read its metadata may be binary.
        run([sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", PACKAGE, "-d", folder, requirement])
        there = sorted(folder.glob(f"{stem}-*.tar.gz"))
    if not there:
        raise BuildError(f"expected {stem}-*.tar.gz in {folder}, found none")
    return there[-1]


def unpack(archive, folder, package):
    """llama.cpp's sources, and the commit that the package's changelog says they are of."""
    vendor = "vendor/llama.cpp/"
    if not folder.exists():
        print(f"unpacking {archive.name}", file=sys.stderr)
        scratch = folder.with_name(folder.name + ".tmp")
        shutil.rmtree(scratch, ignore_errors=True)
        with tarfile.open(archive) as tar:
            wanted = []
            for member in tar:
                member.name = member.name.partition("/")[2]
                if member.name.startswith(vendor) or member.name == "CHANGELOG.md":
                    wanted.append(member)
            tar.extractall(scratch, wanted, filter="data")
        scratch.rename(folder)
    if not (folder / vendor / "CMakeLists.txt").exists():
        raise BuildError(f"{archive}: expected {vendor}CMakeLists.txt in it, found none; take another --version")
    changelog = (folder / "CHANGELOG.md").read_text(encoding="utf-8", errors="replace")
    section = changelog.partition(f"## [{package}]")[2].partition("\n## ")[0]
    commit = re.search(r"llama\.cpp@([0-9a-f]+)", section)
    return folder / vendor, commit[1] if commit else "unknown"


def mend(source):
    """Makes llama.cpp's use of AMX sound with GCC 12, whose `_tile_loadconfig` does not say that it reads all of its argument: what is
    written there is left out, and the program ends with a general protection fault. The barrier is right for every compiler."""
    path = source / "ggml/src/ggml-cpu/amx/mmq.cpp"
    load, barrier = "    _tile_loadconfig(&tc);\n", '    __asm__ volatile ("" : : "r" (&tc) : "memory");\n'
    text = path.read_text() if path.exists() else ""
    if load not in text:
        return []
    if barrier + load not in text:
        write_whole(path, text.replace(load, barrier + load).encode())
    return ["a memory barrier before _tile_loadconfig"]


def cache_values(target):
    """Compiler and flags of a build, from CMake's cache and its compile commands."""
    files = list(target.glob("CMakeFiles/*/CMakeCXXCompiler.cmake"))
    found = re.search(r'CMAKE_CXX_COMPILER_VERSION "([^"]*)"', files[0].read_text()) if files else None
    name = re.search(r'CMAKE_CXX_COMPILER_ID "([^"]*)"', files[0].read_text()) if files else None
    return {"compiler": f"{name[1]} {found[1]}" if name and found else "unknown"}


def write_whole(path, data, mode=0o644):
    """The file is there whole or not at all."""
    scratch = path.with_name(path.name + ".tmp")
    scratch.write_bytes(data)
    scratch.chmod(mode)
    os.replace(scratch, path)


def run(command):
    """Runs a step; what it prints goes to stderr."""
    command = [str(part) for part in command]
    try:
        subprocess.run(command, stdout=sys.stderr, check=True)
    except FileNotFoundError as error:
        raise BuildError(f"expected {command[0]}, found none") from error
    except subprocess.CalledProcessError as error:
        raise BuildError(f"{' '.join(command)} failed with {error.returncode}") from error

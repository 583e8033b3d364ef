"""What the lab is built of: one recipe an artefact, heavy ones first where the order is free."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import versions
from lab import places
from lab.builds import debian, golang, oci
from lab.builds.cache import Build, Recipe, Workshop, files_below

PULUMI = "3.259.0"
HELM = "4.3.1"
COREDNS = "1.14.1"
PAUSE = "3.6"

IMAGE_SOURCES = places.REPOSITORY / "lab" / "images"
K3S_SOURCES = places.REPOSITORY / "lab" / "k3s"
K3S_PAYLOAD = "runtime.tar.zst"
"""What the build script of k3s puts between its sources when somebody runs it by hand."""

DOWNLOADS = places.CACHE / "debian-packages"
"""Debian package files, kept so that a changed recipe does not download them again."""


def source_of(*parts: Callable[..., object] | object) -> tuple[str, ...]:
    """The text of functions and the value of constants, as inputs of a recipe: a change of either makes it new."""
    return tuple(inspect.getsource(part) if callable(part) else repr(part) for part in parts)


# ------------------------------------------------------------------ Go programs


def go_program(
    name: str,
    *packages: str,
    usual_seconds: float,
    module: Path | None = None,
    sources: Sequence[Path] = (),
    variables: Mapping[str, str] | None = None,
) -> Recipe:
    """The programs ``packages`` of the module folder ``name`` (or ``module``), in the artefact's directory.

    One package becomes a program called ``name``; several keep the names of their own folders. ``sources`` are the
    parts of the module that the programs are made of (default: all of it).
    """
    folder = module or golang.MODULES / name

    def build(directory: Path, shop: Workshop, needs: Mapping[str, Path]) -> None:
        output = directory / name if len(packages) == 1 else directory
        golang.go_build(shop, folder, output, *packages, variables=variables)

    inputs: tuple[str | Path, ...] = (
        *(sources or [folder]),
        *packages,
        repr(variables),
        golang.go_version(),
        *source_of(golang.go_build),
    )
    return Recipe(name=name, build=build, inputs=inputs, usual_seconds=usual_seconds)


def k3s() -> Recipe:
    """The lab's k3s: Kubernetes, kine and flannel in one program, by the build script beside its sources."""

    def build(directory: Path, shop: Workshop, needs: Mapping[str, Path]) -> None:
        scratch = directory / "sources"
        shutil.copytree(K3S_SOURCES, scratch, ignore=lambda _, names: {K3S_PAYLOAD}.intersection(names))
        shop.run(["bash", scratch / "build.sh", directory / "k3s"], environment=golang.go_environment())
        (directory / "sha256").write_text(debian.file_digest(directory / "k3s", "sha256"))
        shutil.rmtree(scratch)

    inputs: list[str | Path] = [golang.go_version()]
    for path in sorted(files_below(K3S_SOURCES)):
        if path.name != K3S_PAYLOAD and not path.name.endswith("_test.go"):
            inputs += [str(path.relative_to(K3S_SOURCES)), path]
    return Recipe(name="k3s", build=build, inputs=tuple(inputs), usual_seconds=360)


def tools(pulumi: Recipe, helm: Recipe) -> Recipe:
    """A directory to put on PATH: the Pulumi command line and Helm."""

    def build(directory: Path, shop: Workshop, needs: Mapping[str, Path]) -> None:
        for name in ("pulumi", "helm"):
            oci.link_files(needs[name], directory)

    return Recipe(name="tools", build=build, inputs=source_of(tools), needs=(pulumi, helm))


# ------------------------------------------------------------------ Debian


def template() -> Recipe:
    """The container template, its checksum and its content unpacked."""
    build = partial(_build_template, name=places.TEMPLATE_NAME)
    inputs = (places.TEMPLATE_NAME, *(source.line for source in debian.debian_sources()))
    parts = source_of(
        debian.build_template,
        debian.bootstrap,
        debian.pack,
        debian.TEMPLATE_PACKAGES,
        debian.REMOVED_FROM_ALL,
        debian.REMOVED_FROM_TEMPLATE,
    )
    return Recipe(name="template", build=build, inputs=inputs + parts, usual_seconds=75)


def _build_template(directory: Path, shop: Workshop, needs: Mapping[str, Path], name: str) -> None:
    debian.build_template(directory, shop, name, DOWNLOADS)


def database_root() -> Recipe:
    """Debian with PostgreSQL, PgBouncer and Patroni, as a directory and as an image layer."""
    requirements = IMAGE_SOURCES / "database" / "requirements.txt"

    def build(directory: Path, shop: Workshop, needs: Mapping[str, Path]) -> None:
        debian.build_database_root(directory, shop, requirements, DOWNLOADS)
        oci.write_layer(shop, directory / "root", directory)

    parts = source_of(
        debian.build_database_root,
        debian.bootstrap,
        debian.renumber,
        debian.link_client_programs,
        debian.install_wheels,
        debian.pack,
        debian.DATABASE_PACKAGES,
        debian.REMOVED_FROM_ALL,
        debian.REMOVED_FROM_DATABASE,
        oci.write_layer,
    )
    return Recipe(name="database-root", build=build, inputs=(requirements, *parts), usual_seconds=120)


# ------------------------------------------------------------------ images


def image(
    name: str, fill: Build, config: oci.ImageConfig, *needs: Recipe, inputs: Sequence[str | Path] = (), base: str = ""
) -> Recipe:
    """An image whose one layer of its own is filled by ``fill``, upon the layer of the artefact ``base`` if given."""

    def build(directory: Path, shop: Workshop, have: Mapping[str, Path]) -> None:
        root = directory / "root"
        root.mkdir()
        fill(root, shop, have)
        oci.write_layer(shop, root, directory)
        oci.write_image(directory, [*([have[base]] if base else []), directory], config)
        shutil.rmtree(root)

    recipe_inputs = (*inputs, repr(config), base, *source_of(fill, oci.write_layer, oci.write_image, debian.pack))
    return Recipe(name=f"image-{name}", build=build, inputs=recipe_inputs, needs=needs, usual_seconds=4)


def put(source: Path, root: Path, target: str) -> None:
    """Copy the program ``source`` into an image under the absolute path ``target``, owned by root and executable."""
    place = root / target.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, place)
    place.chmod(0o755)


def plain_root(root: Path, database_root: Path) -> None:
    """Lay out what a static program expects around it: /tmp, certificate authorities, names of users."""
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    (root / "etc/ssl/certs").mkdir(parents=True)
    shutil.copyfile(
        database_root / "root/etc/ssl/certs/ca-certificates.crt", root / "etc/ssl/certs/ca-certificates.crt"
    )
    (root / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")


def program_image(name: str, program: Recipe, file: str, path: str, base: Recipe, user: str = "") -> Recipe:
    """An image of one static program: ``file`` of the artefact ``program``, at ``path``, which is its entry."""

    def fill(root: Path, shop: Workshop, have: Mapping[str, Path]) -> None:
        plain_root(root, have["database-root"])
        put(have[program.name] / file, root, path)

    config = oci.ImageConfig(entrypoint=(path,), user=user)
    return image(name, fill, config, program, base, inputs=(file, path, *source_of(plain_root, put)))


def database_image(base: Recipe) -> Recipe:
    """The stand-in for Spilo and for the operator's PgBouncer image."""
    launch = IMAGE_SOURCES / "database" / "launch.py"

    def fill(root: Path, shop: Workshop, have: Mapping[str, Path]) -> None:
        put(launch, root, "/usr/local/bin/launch")

    config = oci.ImageConfig(
        entrypoint=("/usr/bin/tini", "--", "/usr/local/bin/launch"),
        user=f"{debian.SPILO_UID}:{debian.SPILO_GID}",
        environment={
            "PATH": f"/usr/lib/postgresql/15/bin:{oci.PATH}",
            "LANG": "C.UTF-8",
            "HOME": "/home/postgres",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
        },
        working_directory="/home/postgres",
    )
    return image("database", fill, config, base, inputs=(launch, *source_of(put)), base="database-root")


def rclone_image(rclone: Recipe, base: Recipe) -> Recipe:
    """Rclone with a shell and the small Unix tools, laid out as in rclone's own image."""

    def fill(root: Path, shop: Workshop, have: Mapping[str, Path]) -> None:
        plain_root(root, have["database-root"])
        put(have["rclone"] / "rclone", root, "/usr/local/bin/rclone")
        busybox = have["database-root"] / "root/bin/busybox"
        put(busybox, root, "/bin/busybox")
        listed = subprocess.run([busybox, "--list-full"], capture_output=True, text=True, check=True).stdout
        for applet in listed.split():
            place = root / applet
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.exists():
                place.symlink_to("/bin/busybox")
        for directory in ("data", "config/rclone"):
            (root / directory).mkdir(parents=True)

    config = oci.ImageConfig(
        entrypoint=("rclone",), environment={"XDG_CONFIG_HOME": "/config"}, working_directory="/data"
    )
    return image("rclone", fill, config, rclone, base, inputs=source_of(plain_root, put))


def registry(images: Mapping[str, Recipe]) -> Recipe:
    """The storage of a registry with ``images``, which are recipes by reference."""

    def build(directory: Path, shop: Workshop, needs: Mapping[str, Path]) -> None:
        oci.write_registry(directory, {reference: needs[recipe.name] for reference, recipe in images.items()})

    recipes = tuple({recipe.name: recipe for recipe in images.values()}.values())
    inputs = (json.dumps({reference: recipe.name for reference, recipe in images.items()}),)
    return Recipe(name="registry", build=build, inputs=inputs + source_of(oci.write_registry), needs=recipes)


# ------------------------------------------------------------------ charts


def charts(helm: Recipe) -> Recipe:
    """A Helm repository with the charts that the program installs, packed from the sources of their modules."""
    sources = {
        versions.METALLB: ("metallb", "go.universe.tf/metallb", "charts/metallb"),
        versions.ZALANDO_OPERATOR: (
            "postgres-operator",
            "github.com/zalando/postgres-operator",
            "charts/postgres-operator",
        ),
    }

    def build(directory: Path, shop: Workshop, needs: Mapping[str, Path]) -> None:
        program = needs["helm"] / "helm"
        scratch = directory / "scratch"
        scratch.mkdir()
        home = {"HELM_CACHE_HOME": str(scratch), "HELM_CONFIG_HOME": str(scratch), "HELM_DATA_HOME": str(scratch)}
        for chart, (folder, module, path) in sources.items():
            source = golang.module_directory(shop, golang.MODULES / folder, module, scratch) / path
            copy = scratch / chart.name
            shutil.copytree(source, copy)
            for place, _, files in os.walk(copy):
                for entry in (place, *(os.path.join(place, file) for file in files)):
                    os.chmod(entry, 0o755 if os.path.isdir(entry) else 0o644)
            shop.run([program, "package", copy, "--destination", directory], environment=home)
            if not (directory / f"{chart.name}-{chart.version}.tgz").is_file():
                raise shop.failure(f"the module {module} does not hold version {chart.version} of {chart.name}")
        shutil.rmtree(scratch)
        shop.run([program, "repo", "index", directory], environment=home)

    modules = [golang.MODULES / folder / "go.mod" for folder, _, _ in sources.values()]
    inputs: tuple[str | Path, ...] = (repr(sources), *modules, *source_of(charts))
    return Recipe(name="charts", build=build, inputs=inputs, needs=(helm,), usual_seconds=4)


# ------------------------------------------------------------------ all of them


def all_recipes() -> dict[str, Recipe]:
    """The artefacts the lab needs, by what it calls them; what they need in turn is in their ``needs``."""
    pulumi = go_program(
        "pulumi",
        "github.com/pulumi/pulumi/pkg/v3/cmd/pulumi",
        variables={"github.com/pulumi/pulumi/sdk/v3/go/common/version.Version": PULUMI},
        usual_seconds=220,
    )
    helm = go_program(
        "helm",
        "helm.sh/helm/v4/cmd/helm",
        variables={"helm.sh/helm/v4/internal/version.version": f"v{HELM}"},
        usual_seconds=110,
    )
    metallb = go_program(
        "metallb", "go.universe.tf/metallb/controller", "go.universe.tf/metallb/speaker", usual_seconds=108
    )
    operator = go_program("postgres-operator", "github.com/zalando/postgres-operator/cmd", usual_seconds=221)
    rclone = go_program("rclone", ".", usual_seconds=14)
    pause = go_program("pause", ".", usual_seconds=2)
    coredns = go_program(
        "coredns",
        "./cmd/coredns",
        module=K3S_SOURCES,
        sources=[K3S_SOURCES / "go.mod", K3S_SOURCES / "go.sum", K3S_SOURCES / "cmd" / "coredns"],
        usual_seconds=30,
    )
    base = database_root()
    database = database_image(base)
    metallb_tag = f"v{versions.METALLB.version}"
    images = {
        versions.SPILO_IMAGE: database,
        versions.POOLER_IMAGE: database,
        f"ghcr.io/zalando/postgres-operator:v{versions.ZALANDO_OPERATOR.version}": program_image(
            "postgres-operator", operator, "postgres-operator", "/postgres-operator", base, user="1000:1000"
        ),
        f"quay.io/metallb/controller:{metallb_tag}": program_image(
            "metallb-controller", metallb, "controller", "/controller", base
        ),
        f"quay.io/metallb/speaker:{metallb_tag}": program_image(
            "metallb-speaker", metallb, "speaker", "/speaker", base
        ),
        f"docker.io/rancher/mirrored-coredns-coredns:{COREDNS}": program_image(
            "coredns", coredns, "coredns", "/coredns", base
        ),
        f"docker.io/rancher/mirrored-pause:{PAUSE}": program_image(
            "pause", pause, "pause", "/pause", base, "65535:65535"
        ),
        versions.RCLONE_IMAGE: rclone_image(rclone, base),
    }
    return {
        "k3s": k3s(),
        "tools": tools(pulumi, helm),
        "template": template(),
        "registry": registry(images),
        "charts": charts(helm),
    }

"""
Every way in which the state of a resource on a host can be changed, made from the resource itself.

`tampering_of` fails for a kind of resource that it does not know, and `test_every_field_is_changed`
for a field of a known kind that nothing changes: a new kind or field comes with its line here.
"""

import posixpath
from dataclasses import dataclass

from deploy.host import layout

FOREIGN = "bin"  # a user and group of every Debian


@dataclass(frozen=True)
class Tampering:
    """
    Attributes:
        resource: Name of the resource.
        field: Its field, or what else provisioning sets there.
        script: Changes it; for `sh`.
        is_named: Provisioning does not mend it, and names it with its remedy.
        undo: Of one that provisioning does not mend.
    """

    resource: str
    field: str
    script: str
    is_named: bool = False
    undo: str = ""

    def __str__(self):
        return f"{self.resource} {self.field}"


# Fields that say how a host is brought to its state, and are no part of that state.
NO_STATE = {
    "file": {"check", "mac_key"},
    "certificate": {"mac_key", "issuer", "ends"},
    "upload": {"source"},
    "venv": {"text", "wheels", "disk"},
    "standalone_python": {"release", "source", "size", "disk"},
    "slot_unit": {"start_s", "socket"},
    "packages": {"proxy", "no_proxy"},
    "apt_sources": {"label"},
    "bind_mount": {"what"},  # where the lease of the run goes; the unit file has it too
}
# Fields that a change of another one covers.
COVERED = {
    "file": {"content": "content"},
    "venv": {"digest": "path", "python": "interpreter", "torch": "content"},
    "standalone_python": {"python": "program", "sha256": "path"},
    "units_read": {"units": "drop-in"},
    "enabled_units": {"timer": "active", "units": "drop-in"},
    "service": {"unit": "active", "description": "description"},
    "slot_unit": {"unit": "inactive"},
    "packages": {"names": "names"},
    "apt_sources": {"sources": "content"},
    "bind_mount": {"unit": "enabled", "where": "mounted"},
}


def tampering_of(resource, facts_root=""):
    """
    Return every tampering of *resource*.

    Args:
        facts_root: Prefix of the paths of files.
    """
    known = globals().get(f"_of_{resource.kind}")
    assert known is not None, f"nothing tampers with resources of kind {resource.kind}"
    return [
        Tampering(resource.name, *one) if isinstance(one, tuple) else one
        for one in known(resource, facts_root)
    ]


def _of_packages(resource, root):
    # One stands for all: they are compared in one way.
    name = "socat" if "socat" in resource.names else resource.names[-1]
    yield "names", f"dpkg --purge --force-depends {name}"


def _of_apt_sources(resource, root):
    path = f"{root}{resource.path}"
    if not resource.sources:
        return
    yield "content", f"echo '# tampered' >>{path}"
    yield "owner", f"chown {FOREIGN} {path}"
    yield "mode", f"chmod 0600 {path}"
    yield "path", f"rm {path}"
    yield "replaces", f"echo '# tampered' >{resource.replaces[0]}"


def _of_user(resource, root):
    user = resource.user
    yield "user", f"userdel {user}; groupdel {user} 2>/dev/null; :"
    yield "group", f"usermod --gid {FOREIGN} {user}"
    yield "groups", f"usermod --groups adm {user}"
    yield "home", f"usermod --home /root {user}"
    yield "shell", f"usermod --shell /bin/sh {user}"
    yield "password", f"echo {user}:tampered | chpasswd"
    yield "empty password", f"passwd --delete {user}"


def _of_directory(resource, root):
    path = f"{root}{resource.path}"
    yield from _owned(path, resource)
    yield "set-id", f"chmod g+s {path}"
    yield "sticky", f"chmod +t {path}"
    yield "path", f"mv {path} {path}.away"
    aside = f"rm -rf {path}.away; mv {path} {path}.away"
    back = f"rm -rf {path}; mv {path}.away {path}"
    yield Tampering(resource.name, "type", f"{aside}; ln -s {path}.away {path}", True, back)
    yield Tampering(resource.name, "type file", f"{aside}; touch {path}", True, back)


def _of_file(resource, root):
    path = f"{root}{resource.path}"
    yield from _owned(path, resource)
    yield from _replaced(path, resource)
    yield "content", f"echo '# tampered' >>{path}"
    yield "content of the same size", f"printf X | dd of={path} conv=notrunc status=none"
    yield "empty", f": >{path}"


def _of_certificate(resource, root):
    path = f"{root}{resource.path}"
    yield "owner", f"chown {FOREIGN} {path}"
    yield "mode", f"chmod 0644 {path}"
    yield from _replaced(path, resource)
    yield "pem", f"echo tampered >>{path}"


def _of_reserve(resource, root):
    path = f"{root}{resource.path}"
    yield "owner", f"chown {FOREIGN} {path}"
    yield "group", f"chgrp {FOREIGN} {path}"
    yield "mode", f"chmod 0644 {path}"
    yield "size", f"truncate -s 1 {path}"
    yield from _replaced(path, resource)


def _of_upload(resource, root):
    path = f"{root}{resource.path}"
    yield "owner", f"chown {FOREIGN} {path}"
    yield "group", f"chgrp {FOREIGN} {path}"
    yield "mode", f"chmod 0644 {path}"
    yield "size", f"truncate -s 1 {path}"
    yield "sha256", f"printf X | dd of={path} conv=notrunc status=none"
    yield from _replaced(path, resource)
    if resource.link:
        link = f"{root}{resource.link}"
        yield "link", f"ln -sfn /bin/true {link}"
        yield "link gone", f"rm {link}"
        yield "link is a file", f"rm {link}; cp /bin/true {link}"


def _of_absent(resource, root):
    yield "path", f"mkdir -p $(dirname {root}{resource.path}); touch {root}{resource.path}"
    yield "path with content", f"rm -f {root}{resource.path}; mkdir -p {root}{resource.path}/x"


def _of_socket(resource, root):
    path = f"{root}{resource.path}"
    bind = f"rm -f {path}; python3 -c 'import socket; socket.socket(1).bind(\"{path}\")'"
    owner = resource.owner
    yield "path", f"{bind}; chmod 0600 {path}; chown {FOREIGN} {path}"
    yield "mode", f"{bind}; chown {owner} {path}; chmod 0666 {path}"
    yield "owner", f"{bind}; chmod 0600 {path}; chown {FOREIGN} {path}"


def _a_module(path):
    return f"$(find {path}/lib -name '*.py' -size +1k | sort | head -n 1)"


def _of_venv(resource, root):
    path = f"{root}{resource.path}"
    a_module = _a_module(path)
    yield "owner", f"chown {FOREIGN} {path}"
    yield "group", f"chgrp {FOREIGN} {path}"
    yield "mode", f"chmod 0755 {path}"
    yield "set-id", f"chmod g+s {path}"
    yield "content", f"echo '# tampered' >>{a_module}"
    write = "printf '\\001' | dd of=$f conv=notrunc status=none"
    same = f"t=$(stat -c @%.9Y $f); {write}; touch -d $t $f"
    yield "content of the same size and time", f"f={a_module}; {same}"
    yield "mode of a file", f"chmod 0666 {a_module}"
    yield "owner of a file", f"chown {FOREIGN} {a_module}"
    yield "a file is gone", f"rm {a_module}"
    yield "a file is added", f"touch {path}/lib/tampered.py"
    yield "interpreter", f"ln -sfn /bin/true {path}/bin/python"
    yield "record", f"rm {path}/.files"
    yield "complete", f"rm {path}/.complete"
    yield "path", f"rm -rf {path}"


def _of_standalone_python(resource, root):
    program = f"{root}{resource.program}"
    yield "owner", f"chown {FOREIGN} {program}"
    yield "group", f"chgrp {FOREIGN} {program}"
    yield "mode", f"chmod 0777 {program}"
    yield "program", f"rm {program}"
    yield "program is a link", f"ln -sfn /bin/true {program}"
    path = f"{root}{resource.path}"
    a_module = _a_module(path)
    yield "content", f"echo '# tampered' >>{a_module}"
    yield "a file is gone", f"rm {a_module}"
    yield "a file is added", f"touch {path}/lib/tampered.py"
    yield "record", f"rm {path}/.files"
    yield "path", f"rm -rf {path}"


def _of_bind_mount(resource, root):
    unit = resource.unit
    yield "mounted", f"umount --lazy {resource.where}"
    yield "enabled", f"systemctl disable --quiet {unit}"
    mask = f"mv /etc/systemd/system/{unit} /root/; systemctl mask --quiet {unit}"
    back = f"systemctl unmask --quiet {unit}; mv /root/{unit} /etc/systemd/system/"
    yield Tampering(resource.name, "masked", mask, True, f"{back}; systemctl daemon-reload")


def _of_units_read(resource, root):
    for unit in resource.units:
        folder = f"/etc/systemd/system/{unit}.d"
        drop_in = f"mkdir -p {folder}; printf '[Unit]\\nDescription=x\\n' >{folder}/x.conf"
        yield f"drop-in of {unit}", f"{drop_in}; systemctl daemon-reload"
        yield f"drop-in of {unit}, not loaded", drop_in
    yield "drop-in", f"{drop_in}; systemctl daemon-reload"
    instance = next(unit for unit in resource.units if "@" in unit)
    place = f"/etc/systemd/system/{instance}"
    template = f"$(systemctl show -P FragmentPath {instance})"
    yield "fragment", f"cp {template} {place}; systemctl daemon-reload"
    mask = f"ln -sfn /dev/null {place}; systemctl daemon-reload"
    yield Tampering(resource.name, "masked", mask, True, f"systemctl unmask {instance}")
    run = f"/run/systemd/system/{instance}.d"
    drop_in = f"mkdir -p {run}; printf '[Service]\\nNice=1\\n' >{run}/x.conf"
    yield "drop-in of this boot", f"{drop_in}; systemctl daemon-reload"
    yield "property", f"systemctl set-property {instance} MemoryMax=1G"


def _of_slot_unit(resource, root):
    # Nothing was released to the host: the unit cannot start, which the run names.
    undo = f"systemctl disable --quiet {resource.unit}; systemctl reset-failed {resource.unit}; :"
    enable = f"systemctl enable --quiet {resource.unit}"
    yield Tampering(resource.name, "inactive", enable, undo=undo)


def _of_service(resource, root):
    unit = resource.unit
    yield "active", f"systemctl stop {unit}"
    yield "enabled", f"systemctl disable --quiet {unit}"
    yield "socket", f"rm -f {resource.socket}"
    yield "the directory of its socket", f"rm -rf {posixpath.dirname(resource.socket)}"
    other = "sed -i.kept 's/^ *description .*/    description other/' /etc/haproxy/haproxy.cfg"
    back = "mv /etc/haproxy/haproxy.cfg.kept /etc/haproxy/haproxy.cfg"
    yield "description", f"{other}; systemctl reload {unit}; sleep 1; {back}"
    mask = f"systemctl stop {unit}; systemctl mask --quiet {unit}"
    yield Tampering(resource.name, "masked", mask, True, f"systemctl unmask {unit}")
    folder = f"/etc/systemd/system/{unit}.d"
    drop_in = f"mkdir -p {folder}; printf '[Service]\\nExecStart=\\n' >{folder}/x.conf"
    revert = f"systemctl revert {unit}"
    loaded = f"{drop_in}; systemctl daemon-reload"
    yield Tampering(resource.name, "drop-in", loaded, True, revert)


def _of_enabled_units(resource, root):
    yield "active", f"systemctl stop {resource.timer}"
    for unit in resource.enabled:
        yield f"enabled {unit}", f"systemctl disable --quiet {unit}"
    yield "enabled", f"systemctl disable --quiet {' '.join(resource.enabled)}"
    for unit in resource.units:
        folder = f"/etc/systemd/system/{unit}.d"
        drop_in = f"mkdir -p {folder}; printf '[Unit]\\nDescription=x\\n' >{folder}/x.conf"
        yield f"drop-in of {unit}", f"{drop_in}; systemctl daemon-reload"
    yield "drop-in", f"{drop_in}; systemctl daemon-reload"


def _of_deadman_mark(resource, root):
    path = f"{root}{resource.path}"
    yield "owner", f"chown {FOREIGN} {path}"
    yield "mode", f"chmod 0666 {path}"
    yield "mark", f"echo tampered >{path}"
    yield from _replaced(path, resource)


def _owned(path, resource):
    yield "owner", f"chown -h {FOREIGN} {path}"
    yield "group", f"chgrp -h {FOREIGN} {path}"
    yield "mode", f"chmod {int(resource.mode, 8) ^ 0o022:04o} {path}"


def _replaced(path, resource):
    yield "path", f"rm {path}"
    yield "link", f"mv {path} {path}.away; ln -s {path}.away {path}"
    aside = f"rm -rf {path}.away; mv {path} {path}.away"
    back = f"rm -rf {path}; mv {path}.away {path}"
    yield Tampering(resource.name, "type", f"{aside}; mkdir {path}", True, back)
    held = f"chattr +i {path}"
    change = f"rm -f {path}; touch {path}; {held}"
    undo = f"chattr -i {path}"
    yield Tampering(resource.name, "immutable", change, True, undo)


def kept(resource_set):
    """
    Return the paths of directories that hold what other resources place.
    """
    paths = [
        path
        for resource in (*resource_set.placed, *resource_set.running)
        for path in (*resource.query.paths, *resource.query.secrets)
    ]
    folders = {posixpath.dirname(path) for path in paths} | {layout.RUN, layout.OPT, layout.STATE}
    return folders | {layout.VENVS, layout.WHEELHOUSE}

"""
The certificate of the public port; before HAProxy, whose configuration names its file.
"""

from deploy.certificates.pair import Pair
from deploy.host import layout
from deploy.provision.certificate_resources import AcmeIssuer, Certificate, Issuer
from deploy.provision.requirements import AnyRequirement
from deploy.provision.resource_set import ResourceSet
from deploy.provision.resources import AnyResource, Directory
from deploy.provision.spec import HostSpec


def requirements(spec: HostSpec) -> list[AnyRequirement]:
    return []


def install(spec: HostSpec) -> list[AnyResource]:
    return [Directory(path=layout.CERTIFICATES, mode="0700")] if spec.certificate else []


def configure(spec: HostSpec) -> list[AnyResource]:
    return [_resource(spec.certificate, spec.mac_key, spec.issuer)] if spec.certificate else []


def activate(spec: HostSpec) -> list[AnyResource]:
    return []


def with_certificate(resource_set: ResourceSet, pair: Pair) -> ResourceSet:
    """
    Return *resource_set*, planned with the certificate of another host, with that of *pair*.

    Hosts of a row differ in nothing else, and planning takes some milliseconds.
    """
    placed = (
        _resource(pair, resource.mac_key, resource.issuer)
        if isinstance(resource, Certificate)
        else resource
        for resource in resource_set.placed
    )
    return resource_set.model_copy(update={"placed": tuple(placed)})


def _resource(pair: Pair, mac_key: str, issuer: Issuer | AcmeIssuer | None) -> Certificate:
    return Certificate(
        path=layout.CERTIFICATE,
        pem=pair.pem.reveal(),
        mac_key=mac_key,
        issuer=issuer,
        ends=f"{pair.leaf.not_valid_after_utc:%Y-%m-%d}",
    )

"""
Schema of the fleet file, a module for each section, and the loaded fleet.  Pure.

Instances are frozen and always valid.  `inventories/example.yml` shows every key with its meaning,
unit, default and range; a test compares the file with this schema in both directions.
"""

from deploy.inventory.schema.fleet import Fleet, Host
from deploy.inventory.schema.fleet_file import FleetFile
from deploy.inventory.schema.hooks import Hook, Phase
from deploy.inventory.schema.hosts import HostEntry, HostGroup
from deploy.inventory.schema.mirrors import AptSource, Mirrors, PythonArchive, PythonMirror
from deploy.inventory.schema.release import CanaryPolicy, ErrorRateGate, Gates, ReleasePolicy, Wave
from deploy.inventory.schema.secret import Secret
from deploy.inventory.schema.service import Service
from deploy.inventory.schema.signing import Signing
from deploy.inventory.schema.ssh import Hop, Ssh
from deploy.inventory.schema.state import StateSettings
from deploy.inventory.schema.tls import Acme, Tls
from deploy.inventory.schema.webhooks import Webhook

__all__ = [
    "Acme",
    "AptSource",
    "CanaryPolicy",
    "ErrorRateGate",
    "Fleet",
    "FleetFile",
    "Gates",
    "Hook",
    "Hop",
    "Host",
    "HostEntry",
    "HostGroup",
    "Mirrors",
    "PythonArchive",
    "PythonMirror",
    "Phase",
    "ReleasePolicy",
    "Secret",
    "Service",
    "Signing",
    "Ssh",
    "StateSettings",
    "Tls",
    "Wave",
    "Webhook",
]

"""
The keys `hosts` and `groups`, as the file has them.  Pure.
"""

from deploy.inventory.names import Address, HostName, RowName, Text, VariableName
from deploy.inventory.schema.ssh import SshOverride
from deploy.inventory.schema.strict import Strict

VariableValue = Text | int | float | bool


class HostEntry(Strict):
    """
    A host as the file has it, before values of its groups and of the fleet are applied.
    """

    address: Address
    ssh: SshOverride = SshOverride()
    row: RowName | None = None
    vars: dict[VariableName, VariableValue] = {}


class HostGroup(Strict):
    """
    A named set of hosts, with values for all of them.
    """

    hosts: tuple[HostName, ...]
    row: RowName | None = None
    vars: dict[VariableName, VariableValue] = {}
